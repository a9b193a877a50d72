import dataclasses
import functools
import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from attacks.finetune import FinetuneClassify, LowRank, _adapt, _worst_nearby
from bench.data import images, manifest
from bench.data.settings import DataSettings
from bench.models.building import build
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.models.vision import Architecture
from bench.models.weights import load_state, weights_digest
from bench.records.nouns import Incompatible, UserError
from bench.registry import ATTACKS
from bench.testing import ATTACK_CHECKS, CPU, context, owner, stranger
from bench.training.probe import head_accuracy

MODES = ("all", "last", "retrain_all", "retrain_last", "lora")


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


@pytest.mark.parametrize(("mode", "least"), [("retrain_all", 0.9), ("lora", 0.8), ("last", 0.7)])
def test_the_thief_learns_the_task(mode, least):
    train, test = thiefs_digits()
    ctx = dataclasses.replace(context(), images=train)
    made = FinetuneClassify(epochs=6, lr=1e-3, mode=mode).run(owner(), ctx)
    assert head_accuracy(made, test, CPU) > least
    assert made.notes["steps"] == 6 * 20
    assert 0 < made.notes["final_loss"] < 1.5


@functools.cache
def thiefs_digits():
    """The thief's digits to train on, and those to be judged on."""
    digits = manifest.read("digits", DataSettings("digits"))
    pools, size = manifest.split(digits), owner().preprocess
    train = images.load(digits, pools.thief_images, size)
    return train, images.load(digits, pools.thief_held_out, size)


EPOCHS = 3
"""After so many nine digits of ten are right; what a wrong loop or rounding costs shows by then."""


def plain_script(model, train, seed):
    """Fine-tune as a script of twenty lines would: nothing of ours but the model's tokens."""
    torch.manual_seed(seed)
    head = nn.Sequential(nn.LayerNorm(96), nn.Dropout(0.1), nn.Linear(96, 10))
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(train)).split(32):
            tokens = model.forward_features(train.pixels[chosen] / 255)
            pooled = torch.cat([tokens[:, 0], tokens[:, model.prefix :].mean(1)], dim=1)
            F.cross_entropy(head(pooled), train.labels[chosen]).backward()
            optimiser.step()
            optimiser.zero_grad()
    head.eval()
    return lambda x: head(
        torch.cat([(t := model.forward_features(x))[:, 0], t[:, model.prefix :].mean(1)], dim=1)
    )


@functools.cache
def accuracy(seed, precision="float32"):
    train, test = thiefs_digits()
    ctx = dataclasses.replace(context(seed), images=train)
    made = FinetuneClassify(epochs=EPOCHS, lr=1e-3, precision=precision).run(owner(), ctx)
    return head_accuracy(made, test, CPU)


@pytest.mark.slow
def test_fine_tuning_is_as_good_as_a_plain_script():
    train, test = thiefs_digits()
    ours, theirs = [accuracy(seed) for seed in range(3)], []
    for seed in range(3):
        with torch.random.fork_rng(devices=[]):
            ask = plain_script(owner(), train, seed)
        with torch.no_grad():
            right = ask(test.pixels / 255).argmax(1) == test.labels
        theirs.append(float(right.double().mean()))
    print(f"ours {ours}, plain script {theirs}")
    assert min(ours) > 0.85
    assert abs(sum(ours) - sum(theirs)) / 3 < 0.02


@pytest.mark.bfloat16
@pytest.mark.slow
def test_fine_tuning_in_half_precision_is_as_good_as_in_full():
    full = [accuracy(seed) for seed in range(3)]
    half = [accuracy(seed, "bfloat16") for seed in range(3)]
    print(f"in float32 {full}, in bfloat16 {half}")
    assert abs(sum(full) - sum(half)) / 3 < 0.02


def test_half_precision_trains_other_weights_in_full_precision():
    full = FinetuneClassify(epochs=1, lr=1e-3).run(owner(), context(3))
    half = FinetuneClassify(epochs=1, lr=1e-3, precision="bfloat16").run(owner(), context(3))
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert weights_digest(full) != weights_digest(half)
    assert half.notes["final_loss"] == pytest.approx(full.notes["final_loss"], rel=0.02)


def moved(before, after):
    """Names of the backbone's tensors that changed by so much as a bit."""
    old, new = before.trunk.state_dict(), after.trunk.state_dict()
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize("check", ATTACK_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("mode", ["all", "last", "retrain_last", "lora"])
def test_every_mode_keeps_an_attacks_promises(mode, check):
    check(FinetuneClassify(mode=mode, epochs=1, lr=1e-3, layer_decay=0.9))


@pytest.mark.parametrize("mode", ["last", "retrain_last"])
def test_the_last_layer_is_trained_as_if_the_backbone_ran_at_every_step(mode):
    settings = FinetuneClassify(mode=mode, epochs=2, batch=24, lr=1e-2, dropout=0.0)
    victim = owner()
    made = settings.run(victim, context(5))
    assert weights_digest(made) == weights_digest(victim)

    ctx, rng = context(), torch.Generator().manual_seed(5)
    model = with_head(owner(), Head(10, 0.0), rng)
    torch.randint(2**62, (), generator=rng)  # the seed of dropout
    optimiser = torch.optim.AdamW(model.head.parameters(), lr=1e-2, weight_decay=0.01)
    for _ in range(2):
        for chosen in torch.randperm(64, generator=rng).split(24):
            optimiser.zero_grad()
            logits = model.logits(ctx.images.pixels[chosen] / 255)
            F.cross_entropy(logits, ctx.images.labels[chosen]).backward()
            optimiser.step()
    for name, value in model.head.state_dict().items():
        assert torch.allclose(made.head.state_dict()[name], value, atol=1e-5), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [10, 7])
def test_only_ftal_and_ftll_start_from_the_victims_head_if_it_knows_as_many_classes(mode, classes):
    victim = with_head(owner(), Head(classes, 0.3), torch.Generator().manual_seed(1))
    bare, headed = context(7), context(7)
    fresh = FinetuneClassify(lr=0.0, epochs=1, mode=mode).run(owner(), bare).head
    made = FinetuneClassify(lr=0.0, epochs=1, mode=mode).run(victim, headed).head
    expected = victim.head if mode in ("all", "last") and classes == 10 else fresh
    assert torch.equal(made.linear.weight, expected.linear.weight)
    assert made.dropout.p == expected.dropout.p
    # A head that stays costs no draw: batches and dropout are those of any other victim.
    assert torch.equal(bare.rng.get_state(), headed.rng.get_state())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_the_librarys_own_classifier_can_be_trained_on_alone(name):
    victim = build(Architecture("timm", name, 32 if name.startswith("vit") else None, "own"))
    ctx = context()
    thousand = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, classes=1000))
    still = FinetuneClassify(lr=0.0, epochs=1, mode="last").run(victim, thousand)
    with torch.no_grad():
        logits = victim.logits(ctx.images.batch(slice(None), CPU))
    expected = F.cross_entropy(logits, ctx.images.labels)
    assert still.notes["final_loss"] == pytest.approx(float(expected), rel=1e-4)
    made = FinetuneClassify(lr=1e-2, epochs=1, mode="last").run(victim, thousand)
    library = "vit.head." if name.startswith("vit") else "net.fc."
    assert moved(victim, made) == {library + "weight", library + "bias"}


@pytest.mark.parametrize("mlp", [False, True])
def test_lora_moves_the_named_matrices_of_every_block_by_an_update_of_its_rank(mlp):
    victim = owner()
    made = FinetuneClassify(mode="lora", lora_mlp=mlp, rank=4, lr=1e-3, epochs=2).run(
        victim, context()
    )
    layers = ["attn.qkv", "attn.proj"] + (["mlp.fc1", "mlp.fc2"] if mlp else [])
    names = {f"vit.blocks.{i}.{layer}.weight" for i in range(6) for layer in layers}
    assert moved(victim, made) == names
    for name in names:
        update = made.trunk.state_dict()[name] - victim.trunk.state_dict()[name]
        found = torch.linalg.svdvals(update.double())
        assert found[4:].max() < 1e-3 * found[0], name
    assert not any(parametrize.is_parametrized(module) for module in made.modules())
    assert all(p.requires_grad for p in made.parameters())


def test_lora_merged_equals_lora_beside_the_weights():
    model, plain = owner(), owner()
    rng = torch.Generator().manual_seed(3)
    adapted = _adapt(model, 4, True, rng)
    hooks = []
    for layer, name in adapted:
        update = layer.parametrizations[name][0]
        assert isinstance(update, LowRank)
        assert not update.up.any()
        with torch.no_grad():
            update.up.normal_(std=0.1, generator=rng)
        path = next(n for n, module in model.named_modules() if module is layer)

        def beside(_, given, out, a=update.down, b=update.up):
            return out + 2.0 * F.linear(F.linear(given[0], a), b)

        hooks.append(plain.get_submodule(path).register_forward_hook(beside))
    asked = context().images.batch(slice(0, 8), CPU)
    with torch.no_grad():
        unmerged = model(asked)
        for layer, name in adapted:
            parametrize.remove_parametrizations(layer, name)
        assert torch.equal(model(asked), unmerged)
        assert torch.allclose(plain(asked), unmerged, atol=1e-5)
        assert not torch.allclose(owner()(asked), unmerged, atol=0.1)


def test_lora_reaches_the_packed_attention_of_open_clip(tmp_path):
    vision = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "lora-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    victim = build(Architecture("open_clip", "lora-clip"))
    made = FinetuneClassify(mode="lora", epochs=1, layer_decay=0.5).run(victim, context())
    blocks = [f"visual.transformer.resblocks.{i}.attn." for i in range(2)]
    assert moved(victim, made) == {
        block + name for block in blocks for name in ("in_proj_weight", "out_proj.weight")
    }


def test_the_first_step_of_a_block_is_as_long_as_its_own_rate():
    victim = owner()
    settings = FinetuneClassify(epochs=1, batch=64, lr=1e-2, weight_decay=0.0, layer_decay=0.5)
    made = settings.run(victim, context())
    before, after = victim.state_dict(), made.state_dict()
    # AdamW's first step is the rate times the sign of the gradient.
    for layer, level in [("norm", 0), ("blocks.5.mlp.fc1", 1), ("blocks.0.norm1", 6),
                         ("patch_embed.proj", 7)]:  # fmt: skip
        name = f"trunk.vit.{layer}.weight"
        step = (after[name] - before[name]).abs().max()
        assert float(step) == pytest.approx(1e-2 * 0.5**level, rel=1e-2), layer


@pytest.mark.parametrize("settings", [{"mode": "lora"}, {"layer_decay": 0.7}])
def test_what_needs_blocks_refuses_a_model_without_in_one_line(settings):
    victim = build(Architecture("timm", "test_resnet"))
    with pytest.raises(Incompatible, match=r"^expected a sequence of .*got test_resnet[^\n]*$"):
        FinetuneClassify(epochs=1, **settings).run(victim, context())


def test_images_without_labels_are_refused_by_the_name_of_their_set():
    ctx = context()
    photos = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, labels=None))
    with pytest.raises(UserError, match="got 'photos' without labels"):
        FinetuneClassify(data="photos").run(owner(), photos)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("epochs", 0), ("batch", 0), ("lr", -1e-4), ("lr", float("nan")), ("weight_decay", -1.0),
     ("warmup", 1.0), ("warmup", -0.1), ("dropout", 1.0), ("dropout", -0.1),
     ("rank", 0), ("layer_decay", 0.0), ("layer_decay", 1.1), ("layer_decay", float("nan"))],
)  # fmt: skip
def test_settings_out_of_range_are_refused_in_one_line(setting, value):
    with pytest.raises(UserError, match=rf"': {setting}: expected [^\n]*, got {value}$"):
        FinetuneClassify(**{setting: value})


SMOOTHED = [{"label_smoothing": 0.5}, {"mixup": 0.4}, {"noise": 0.2}, {"sam": 0.05}]


def test_what_smooths_boundaries_goes_without_saying_where_it_is_not_asked_for():
    usual = ATTACKS.spec("finetune.classify", {}).args
    assert not {"label_smoothing", "mixup", "noise", "sam"} & usual.keys()
    assert ATTACKS.spec("finetune.classify", {"sam": 0.05}).args == {**usual, "sam": 0.05}


@pytest.mark.parametrize("settings", SMOOTHED)
def test_each_of_them_trains_another_model(settings):
    plain, made = (
        FinetuneClassify(epochs=1, **how).run(owner(), context(5)) for how in ({}, settings)
    )
    assert moved(plain, made)
    assert all(p.isfinite().all() for p in made.parameters())


def test_smoothed_labels_cost_as_much_as_pytorch_says():
    """At a rate of 0 the loss of the one batch is that of the head as drawn."""
    made = FinetuneClassify(epochs=1, batch=64, lr=0.0, dropout=0.0, label_smoothing=0.6).run(
        owner(), context(5)
    )
    images = context().images
    with torch.no_grad():
        found = made.logits(images.batch(slice(None), CPU)).log_softmax(1)
    right = found.gather(1, images.labels[:, None]).mean()
    expected = -(0.4 * right + 0.6 * found.mean())
    assert made.notes["final_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_the_worst_weights_nearby_are_a_radius_away_along_the_slope():
    layer = nn.Linear(3, 1, bias=False)
    start = torch.tensor([[1.0, -2.0, 0.5]])
    with torch.no_grad():
        layer.weight.copy_(start)
    images = torch.tensor([[1.0, 2.0, 2.0]])

    def loss():
        return layer(images).square().sum()

    found = _worst_nearby(layer, loss, 0.3)
    found.backward()
    # The slope is along the image (1, 2, 2) of length 3, and away from 0: the answer is -2.
    worst = start - 0.3 * images / 3
    answer = float((worst * images).sum())
    assert float(found.detach()) == pytest.approx(answer**2, rel=1e-5)
    assert torch.allclose(layer.weight.grad, 2 * answer * images)
    assert torch.equal(layer.weight, start)


@pytest.mark.parametrize("settings", [{"mixup": 0.2}, {"noise": 0.1}])
def test_images_that_are_looked_at_once_are_not_changed(settings):
    with pytest.raises(UserError, match=r"^finetune\.classify: mode: expected all, [^\n]*got last"):
        FinetuneClassify(mode="last", **settings).run(owner(), context())


def test_a_head_alone_may_look_for_the_worst_weights_too():
    made = FinetuneClassify(mode="retrain_last", sam=0.05, epochs=1).run(owner(), context(5))
    plain = FinetuneClassify(mode="retrain_last", epochs=1).run(owner(), context(5))
    assert weights_digest(made) == weights_digest(plain) == weights_digest(owner())
    assert not torch.equal(made.head.linear.weight, plain.head.linear.weight)
