import dataclasses

import pytest
import torch

from attacks.cleanse import Regularise, Wild, Wrk, _apart
from bench.data import Images
from bench.models import Architecture, Head, build
from bench.records.nouns import Incompatible, UserError
from bench.testing import CPU, _with_digits_head, context, owner

LABELLED = [Regularise, Wild, Wrk]

QUICK = {"epochs": 1, "batch": 32}


def victim():
    return _with_digits_head(owner())


def watched(monkeypatch):
    """Collect the indices of every batch that an attack takes, and of how many images."""
    seen, batch = [], Images.batch

    def spy(images, indices, device):
        seen.append((len(images), len(torch.arange(len(images))[indices])))
        return batch(images, indices, device)

    monkeypatch.setattr(Images, "batch", spy)
    return seen


@pytest.mark.parametrize("attack", LABELLED)
def test_images_without_labels_are_refused_by_the_name_of_their_set(attack):
    ctx = context()
    photos = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, labels=None))
    with pytest.raises(UserError, match=r"^finetune\.\w+: [^\n]*got 'photos' without labels"):
        attack(data="photos").run(victim(), photos)


def test_a_heavier_penalty_leaves_smaller_weights_and_smaller_features():
    def size(**how):
        made = Regularise(**QUICK, decay_epochs=2, **how).run(owner(), context(3))
        with torch.no_grad():
            tokens = made.forward_features(context().images.batch(slice(None), CPU))
        weights = [p.square().sum() for b in made.blocks for p in b.parameters() if p.ndim == 2]
        return float(sum(weights).detach()), float(tokens.square().mean())

    plain, decayed, shrunk = (
        size(decay=0.0, weight_decay=0.0),
        size(decay=50.0, weight_decay=0.0),
        size(decay=0.0, weight_decay=0.0, feature_decay=10.0),
    )
    assert decayed[0] < 0.9 * plain[0]  # four steps of 1 - 0.001 * 50 leave 0.66 of the squares
    assert shrunk[1] < plain[1]


def test_a_share_of_the_images_is_looked_at_and_each_one_twice(monkeypatch):
    seen = watched(monkeypatch)
    made = Wild(share=0.25, **QUICK).run(owner(), context(3))
    assert set(seen) == {(16, 16)}
    assert (Wild(share=0.25).looks_at(64), made.notes["images"]) == (16, 16)
    assert Wild(share=0.001).looks_at(64) == 1
    assert made.architecture.head == Head(10, 0.1)


def test_moments_that_agree_are_not_apart():
    one = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    assert float(_apart(one, one.flip(0))) == pytest.approx(0.0, abs=1e-12)
    assert float(_apart(one, one + 2)) == pytest.approx(4.0, rel=1e-4)
    spread = float((one.std(0, correction=0).square()).mean())
    mean = float(one.mean(0).square().mean())
    assert float(_apart(one, 2 * one)) == pytest.approx(mean + spread, rel=1e-3)


def test_wild_learns_where_a_part_of_the_image_is_gone():
    losses = [
        Wild(share=0.5, epochs=e, batch=16).run(owner(), context(3)).notes["final_loss"]
        for e in (1, 8)
    ]
    assert losses[1] < 0.8 * losses[0]


def test_a_step_brings_images_closer_to_another_class_and_labels_say_a_third():
    how, ctx, model = Wrk(step=1.0), context(3), victim()
    labels, chosen = ctx.images.labels, torch.arange(32)
    moved, wrong = how._moved(model, chosen, labels, ctx)
    assert moved.dtype == torch.uint8
    assert (wrong != labels[:32]).all()
    assert wrong.unique().numel() > 3
    # The classes that were stepped towards, drawn again.
    first = torch.randint(1, 10, (32,), generator=torch.Generator().manual_seed(3))
    towards = (labels[:32] + first) % 10
    assert (towards != wrong).all()
    with torch.no_grad():
        before, after = (
            model.logits(pixels / 255).log_softmax(1).gather(1, towards[:, None]).mean()
            for pixels in (ctx.images.pixels[:32], moved)
        )
    assert after > before + 0.5


def test_a_step_is_as_long_as_it_says_where_pixels_have_room():
    ctx = context(3)
    moved, _ = Wrk(step=0.5)._moved(victim(), torch.arange(16), ctx.images.labels, ctx)
    before, after = ctx.images.pixels[:16].float() / 255, moved.float() / 255
    free = (before > 0.3) & (before < 0.7)
    apart = (after - before).abs()[free]
    # Half a deviation of 0.5; where the slope is 0 nothing moves.
    assert float(apart.median()) == pytest.approx(0.25, abs=1 / 255)


def test_the_fresh_head_turns_away_from_the_old_one():
    def along(alpha):
        made = Wrk(alpha=alpha, perturbed=16, batch=16, epochs=3).run(victim(), context(3))
        return float((made.head.linear.weight * victim().head.linear.weight).sum().detach())

    assert along(1.0) < along(0.0) - 0.1


def test_no_more_images_are_looked_at_than_are_trained_on_or_moved():
    how = Wrk(perturbed=20, share=0.05)
    assert [how.looks_at(n) for n in (10, 64, 1000)] == [10, 20, 50]
    made = Wrk(perturbed=20, **QUICK).run(victim(), context(3))
    assert made.notes["images"] == 20 + 3


def test_a_head_that_the_library_keeps_is_drawn_anew_as_well():
    own = build(Architecture("timm", "vit_tiny_patch16_224", 32, "own"))
    ctx = context(3)
    many = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, classes=1000))
    made = Wrk(lr=0.0, perturbed=4, batch=8, epochs=1).run(own, many)
    assert made.architecture == own.architecture
    before, after = (m.trunk.get_classifier().weight for m in (own, made))
    assert float(after.detach().std()) == pytest.approx(0.02, rel=0.01)
    assert not torch.equal(before, after)


def test_a_victim_of_another_kind_is_refused_in_one_line():
    with pytest.raises(Incompatible, match=r"^finetune\.wrk: expected a victim whose classifier"):
        Wrk().run(owner(), context())
    ctx = context()
    other = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, classes=7))
    with pytest.raises(UserError, match=r"^finetune\.wrk: data: expected images of 10 classes"):
        Wrk().run(victim(), other)
