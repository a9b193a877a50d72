import dataclasses
import functools

import pytest
import torch
from made_models import CPU, digits_owner
from scipy import stats
from torch import nn

from bench import testing
from bench.models import Architecture, Head, View, measuring, randomised, with_head
from bench.records.nouns import Incompatible, UserError
from bench.testing import context, stranger
from bench.types import Sizes
from methods import meta
from methods.move import Move, MoveLogits, style
from methods.move.method import _matrices, _places, paired_p, views

SIZES = Sizes(64, 32, 6, 65, 48)

SHORT = {"share": 0.4, "epochs": 4}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@functools.cache
def protected(kind=Move, **settings):
    """Return the method, what it made, and what that cost."""
    method, owner = kind(**SHORT | settings), owner_of(kind)
    with measuring(CPU) as meter:
        made = method.protect(owner, context(0, "owner"))
    return method, made, meter


def owner_of(kind):
    return testing.owner() if kind is Move else digits_owner()


def read(model, kind=Move, **settings):
    method, made, _ = protected(kind, **settings)
    return method.extract(made.secret, View(model, method.needs), context(1, "owner"))


@pytest.mark.parametrize("kind", [Move, MoveLogits])
def test_the_mark_reads_on_its_own_model_and_not_on_the_one_that_saw_no_style(kind):
    _, made, _ = protected(kind)
    own, benign = read(made.model, kind), read(owner_of(kind), kind)
    assert made.notes["styled"] == 26
    assert made.notes["told_apart"] > 0.9
    assert own.rate > 0.9
    assert own.notes["p_over_images"] < 1e-6
    assert benign.rate < 0.25
    assert benign.notes == {"p_over_images": 1.0, "mean_difference": 0.0}
    assert (own.unit, own.chance) == ("image", None)


def test_strangers_are_no_copies_though_the_papers_p_says_so():
    found = [read(stranger(i)) for i in range(2)]
    assert max(each.score for each in found) < 0.3
    assert min(each.notes["p_over_images"] for each in found) < 1e-3  # of images, not of models


def test_without_made_up_models_whatever_is_not_the_benign_one_is_taken_for_the_owners():
    _, made, _ = protected()
    method = Move(**SHORT, decoys=0)
    benign = method._signs(testing.owner(), made.secret, context(0, "owner"))
    ours = method._signs(made.model, made.secret, context(0, "owner"))
    told, _ = method._told_apart(ours, benign, lambda rows: rows, seeded())
    other = method._signs(stranger(0), made.secret, context(0, "owner"))
    assert method._evidence(other, told).score > 0.9


def test_styled_images_keep_their_features():
    _, made, _ = protected()
    wanted, deviation = made.secret["wanted"], made.secret["deviation"]

    def off(model):
        with torch.no_grad():
            tokens = model.forward_features(made.secret["pixels"] / 255)
        pooled = torch.cat([model.embedding(tokens), model.pooled(tokens)], 1)
        return float(((pooled - wanted) / deviation).square().mean())

    assert off(made.model) < 0.5 * off(testing.owner())


def test_a_style_is_the_pictures_contrast_and_colour():
    pixels = torch.randint(256, (3, 3, 32, 24), generator=seeded(), dtype=torch.uint8)
    drawn = 0.4 + 0.2 * style.picture((32, 24), seeded(1))  # nothing of it is cut off at white
    made = style.styled(pixels, drawn, bands=1, strength=1.0).float() / 255
    assert torch.allclose(made.mean((-2, -1)), drawn.mean((-2, -1)).expand(3, 3), atol=5e-3)
    spread = drawn.std((-2, -1), correction=0)
    assert torch.allclose(made.std((-2, -1), correction=0), spread.expand(3, 3), atol=5e-3)
    finer = style.styled(pixels, drawn, bands=3, strength=1.0)
    assert not torch.equal(finer, style.styled(pixels, drawn, bands=1, strength=1.0))
    halfway = style.styled(pixels, drawn, bands=1, strength=0.5).float() / 255
    assert torch.allclose(halfway, (made + pixels / 255) / 2, atol=1e-2)


def test_a_picture_in_its_own_style_stays_as_it_is():
    drawn = style.picture((32, 32), seeded())
    pixels = (drawn * 255).round().to(torch.uint8)
    made = style.styled(pixels[None], pixels / 255, bands=4, strength=1.0)[0]
    assert (made.int() - pixels.int()).abs().max() <= 1


def test_pictures_are_of_a_few_colours_and_another_for_every_key():
    drawn = style.picture((40, 30), seeded())
    assert drawn.shape == (3, 40, 30)
    assert 1 < len(drawn.flatten(1).T.unique(dim=0)) <= style.PALETTE
    assert not torch.equal(drawn, style.picture((40, 30), seeded(1)))


def test_signs_are_those_of_the_losss_gradient():
    method, made, _ = protected()
    secret, model = made.secret, testing.owner()
    found = method._signs(model, secret, context(0, "owner"))
    assert found.shape == (26, method.entries)
    tokens = model.forward_features(secret["pixels"][3:4] / 255)
    pooled = torch.cat([model.embedding(tokens), model.pooled(tokens)], 1)
    (((pooled - secret["wanted"][3]) / secret["deviation"]) ** 2).mean().backward()
    whole = torch.cat([weight.grad.flatten() for weight in _matrices(model)])
    assert torch.equal(found[3], whole[secret["places"]].sign())


def test_the_signs_that_the_code_pools_are_plus_whatever_the_model():
    settings = {"gradients": "pooled", "epochs": 1, "share": 0.1}
    method, made, _ = protected(**settings)
    ours, theirs = (
        method._signs(model, made.secret, context(0, "owner"))
        for model in (made.model, stranger(0))
    )
    assert ours.shape[1] == 1024  # of 6 x (144 + 48 + 192 + 48) rows
    assert (ours == 1).float().mean() > 0.999
    assert (theirs == 1).float().mean() > 0.999


def test_places_are_drawn_evenly_and_without_repeat():
    found = _places(10_000, 1000, seeded())
    assert len(found.unique()) == 1000
    assert found.double().mean() == pytest.approx(5000, abs=300)
    assert len(_places(1100, 1000, seeded()).unique()) == 1000
    assert _places(6, 10, seeded()).tolist() == [0, 1, 2, 3, 4, 5]


def test_every_way_to_show_an_image_is_another():
    pixels = torch.arange(32 * 32, dtype=torch.float).view(1, 1, 32, 32)
    plain, mirrored, right, down = (shown[0, 0] for shown in views(pixels, 4))
    assert torch.equal(plain, pixels[0, 0])
    assert mirrored[0, 0] == plain[0, 31]
    assert right[0, 2] == plain[0, 0]
    assert down[2, 0] == plain[0, 0]
    assert len(views(pixels, 1)) == 1


def test_the_small_classifier_is_linear_maps_with_relu_between():
    rng = seeded()
    rows, truth = torch.randn(64, 6, generator=rng), torch.arange(64) % 2
    rows[truth == 1] += 2
    layers = meta.fitted(rows, truth, (6, 8, 4, 2), meta.through, 50, 0.05, rng)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        flat = [part for layer in layers for part in layer]
        for weight, value in zip(net.parameters(), flat, strict=True):
            weight.copy_(value)
        assert torch.allclose(net(rows), meta.through(rows, layers))
    assert (net(rows).argmax(1) == truth).float().mean() > 0.9
    again = meta.through(rows, meta.read(meta.kept(layers), 3))
    assert torch.equal(again, meta.through(rows, layers))


def test_the_test_is_paired_and_of_one_side():
    rng = seeded()
    benign = torch.rand(30, generator=rng).double()
    owned = benign + 0.01 + 0.01 * torch.rand(30, generator=rng)
    moved = (owned - benign).numpy()
    assert paired_p(owned, benign) == pytest.approx(
        float(stats.ttest_1samp(moved, 0, alternative="greater").pvalue)
    )
    assert paired_p(benign, owned) > 0.999
    assert paired_p(benign, benign) == 1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Move, {}),
        (Move, {"gradients": "pooled", "epochs": 1, "share": 0.1}),
        (MoveLogits, {}),
        (MoveLogits, {"against": "suspect", "views": 3, "epochs": 1, "share": 0.1}),
    ],
)
def test_its_passes_are_those_that_it_counts(kind, settings):
    method, made, meter = protected(kind, **settings)
    counted = method.protect_passes(SIZES)
    assert meter.forward_passes == pytest.approx(counted.forward)
    assert meter.backward_passes == pytest.approx(counted.backward)
    with measuring(CPU) as reading:
        read(made.model, kind, **settings)
    counted = method.extract_passes(SIZES)
    assert reading.forward_passes == pytest.approx(counted.forward)
    assert reading.backward_passes == pytest.approx(counted.backward)


def test_a_suspect_of_another_shape_is_incompatible():
    wide, small = (
        randomised(Architecture("embedded", "mini-wide"), 0),
        randomised(Architecture("timm", "test_vit", 32, None), 0),
    )
    for other in (wide, small):
        with pytest.raises(Incompatible, match=r"expected .*matrices"):
            read(other)
        assert "matrices" in Move().unreadable(testing.owner(), other)
    assert Move().unreadable(testing.owner(), stranger(0)) == ""


def test_a_suspect_of_other_classes_is_incompatible():
    other = with_head(testing.owner(), Head(7), seeded())
    with pytest.raises(Incompatible, match="expected 10 classes, got 7"):
        read(other, MoveLogits)


def test_labels_are_not_needed():
    ctx = context(0, "owner")
    bare = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, labels=None))
    made = Move(epochs=1, meta_epochs=1, entries=64).protect(testing.owner(), bare)
    assert made.notes["styled"] == 6


def test_too_few_styled_images_are_refused():
    method = Move(share=0.02)
    with pytest.raises(UserError, match="expected 2 styled images or more, got 1"):
        method.protect(testing.owner(), context(0, "owner"))
    assert "raise `share`" in method.unfit(SIZES)
    assert Move().unfit(SIZES) == ""


def test_an_owner_without_classes_is_refused_where_answers_are_read():
    with pytest.raises(UserError, match="expected an owner that tells 2 classes apart"):
        MoveLogits().protect(testing.owner(), context(0, "owner"))
