import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.finetune import FinetuneClassify
from bench import data, manifest
from bench.manifest import DataSettings
from bench.models import Architecture, Head, build, load_state, weights_digest, with_head
from bench.probe import head_accuracy
from bench.testing import CPU, context, owner, stranger
from bench.types import UserError


def test_every_layer_moves_and_the_head_stays_on():
    victim = owner()
    made = FinetuneClassify(epochs=1).run(victim, context())
    before, after = victim.state_dict(), made.state_dict()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == []
    assert made.architecture.head == Head(10, 0.1)
    assert made.logits(context().images.batch(slice(0, 4), CPU)).shape == (4, 10)


def test_at_a_rate_of_zero_the_backbone_keeps_its_bytes_and_the_head_is_as_drawn():
    victim = owner()
    made = FinetuneClassify(lr=0.0, epochs=2).run(victim, context(7))
    assert weights_digest(made) == weights_digest(victim)
    fresh = with_head(victim, Head(10), torch.Generator().manual_seed(7))
    for name, value in fresh.head.state_dict().items():
        assert torch.equal(made.head.state_dict()[name], value)


def test_a_twin_starts_from_the_same_head_whatever_the_victim():
    twins = [FinetuneClassify(lr=0.0, epochs=1).run(v, context(7)) for v in (owner(), stranger())]
    assert torch.equal(twins[0].head.linear.weight, twins[1].head.linear.weight)


def test_it_equals_a_plain_loop_over_pytorchs_own_parts():
    settings = FinetuneClassify(epochs=2, batch=24, lr=1e-3, dropout=0.0, schedule="linear")
    made = settings.run(owner(), context(5))

    ctx, rng = context(), torch.Generator().manual_seed(5)
    model = with_head(owner(), Head(10, 0.0), rng)
    torch.randint(2**62, (), generator=rng)  # the seed of dropout
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 6)
    for _ in range(2):
        for chosen in torch.randperm(64, generator=rng).split(24):
            optimiser.zero_grad()
            logits = model.logits(ctx.images.pixels[chosen] / 255)
            F.cross_entropy(logits, ctx.images.labels[chosen]).backward()
            optimiser.step()
            scheduler.step()
    # Answers, not weights: a key's bias has no gradient but rounding, which Adam blows up.
    asked = ctx.held_out.batch(slice(None), CPU)
    with torch.no_grad():
        assert torch.allclose(made.logits(asked), model.logits(asked), atol=1e-3)
        assert not torch.allclose(made.logits(asked), model.logits(asked.flip(-1)), atol=1e-3)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_the_owners_own_classifier_gives_way_to_the_thiefs(name):
    size = 32 if name.startswith("vit") else None
    victim = build(Architecture("timm", name, size, "own"))
    made = FinetuneClassify(lr=0.0, epochs=1).run(victim, context())
    again = load_state(build(made.architecture), made.state_dict(), "the suspect")
    asked = context().held_out.batch(slice(0, 4), CPU)
    with torch.no_grad():
        assert torch.equal(again.logits(asked), made.logits(asked))
        assert torch.equal(made.features(asked), victim.features(asked))


def test_dropout_is_active_in_the_head_alone():
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, out: seen.append((type(module), module.training, bool((out == 0).any())))
    )
    try:
        made = FinetuneClassify(epochs=1, dropout=0.5).run(owner(), context())
    finally:
        hook.remove()
    in_training = {kind for kind, training, _ in seen if training}
    assert nn.Dropout in {kind for kind, training, zeros in seen if training and zeros}
    assert in_training == {nn.Dropout, nn.Linear, nn.LayerNorm, type(made.head)}
    assert not any(module.training for module in made.modules())


def test_the_thief_learns_the_task():
    digits = manifest.read("digits", DataSettings("digits"))
    pools, size = manifest.split(digits), owner().preprocess
    train = data.load(digits, pools.thief_images, size)
    test = data.load(digits, pools.thief_held_out, size)
    ctx = dataclasses.replace(context(), images=train)
    made = FinetuneClassify(epochs=6, lr=1e-3).run(owner(), ctx)
    assert head_accuracy(made, test, CPU) > 0.7
    assert made.notes["steps"] == 6 * 20
    assert 0 < made.notes["final_loss"] < 1


def test_images_without_labels_are_refused_by_the_name_of_their_set():
    ctx = context()
    photos = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, labels=None))
    with pytest.raises(UserError, match="got 'photos' without labels"):
        FinetuneClassify(data="photos").run(owner(), photos)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("batch", 0), ("lr", -1e-4), ("lr", float("nan")), ("weight_decay", -1.0),
     ("warmup", 1.0), ("warmup", -0.1), ("dropout", 1.0), ("dropout", -0.1)],
)  # fmt: skip
def test_settings_out_of_range_are_refused_in_one_line(setting, value):
    with pytest.raises(ValueError, match=rf"^{setting}: expected [^\n]*, got {value}$"):
        FinetuneClassify(**{setting: value})
