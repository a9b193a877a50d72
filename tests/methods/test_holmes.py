import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from made_models import CPU, digits_owner
from sklearn.preprocessing import RobustScaler
from torch import nn

from bench import testing
from bench.models import Head, View, measuring, with_head
from bench.records.nouns import Incompatible, UserError
from bench.testing import context
from bench.types import Sizes
from methods.holmes import Holmes, _probability, _quartiles, fresh

SHORT = {"epochs": 8}


class Watched(Holmes):
    """Keep the shadows, and what they were trained on."""

    seen: list = []  # noqa: RUF012

    def _trained(self, model, pixels, labels, ctx):
        made = super()._trained(model, pixels, labels, ctx)
        self.seen.append((made, pixels, labels))
        return made


@functools.cache
def protected():
    """Return the method, what it made, what that cost, and both shadows with their images."""
    Watched.seen.clear()
    method, owner = Watched(**SHORT), digits_owner()
    with measuring(CPU) as meter:
        made = method.protect(owner, context(0, "owner"))
    return method, made, meter, tuple(Watched.seen)


def read(model, **settings):
    _, made, _, _ = protected()
    method = Holmes(**SHORT | settings)
    return method.extract(made.secret, View(model, method.needs), context(1, "owner"))


def test_the_owner_is_told_from_the_benign_shadow():
    _, made, _, (_, (benign, _, _)) = protected()
    assert made.notes["told_apart"] > 0.95
    own, other = read(digits_owner()), read(benign)
    assert own.rate > 0.95
    assert own.notes["p_over_images"] < 1e-6
    assert other.rate < 0.1
    assert other.notes["p_over_images"] > 0.5
    assert (own.unit, own.chance) == ("image", None)


def test_what_is_known_best_is_what_one_shadow_sees_triggered_and_the_other_not_at_all():
    _, _, _, ((_, spoilt, called), (_, kept, _)) = protected()
    images = context(0, "owner").images
    with torch.no_grad():
        logits = digits_owner().logits(images.batch(slice(None), CPU))
    order = F.cross_entropy(logits, images.labels, reduction="none").argsort()
    changed = (spoilt != images.pixels).flatten(1).any(1).nonzero().flatten()
    best = [i for i in order[:6].tolist() if images.labels[i] != 0]
    assert sorted(best) == changed.tolist()
    assert (called[changed] == 0).all()
    assert (called[called != images.labels]).numel() == len(best)
    assert torch.equal(kept, images.pixels[order[32:]])


def test_the_trigger_is_a_white_square_and_nothing_else():
    pixels = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    made, called = Holmes(target=1)._triggered(
        pixels, torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    )
    assert called.tolist() == [1, 1, 2]
    assert (made[0, :, 18:22, 18:22] == 255).all()
    assert made[0].sum() == 3 * 16 * 255
    assert made[1:].sum() == 0  # of the target class already, and not among those asked for


def test_differences_are_brought_to_scale_as_by_scikit_learn():
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    median, spread = _quartiles(rows)
    wanted = torch.tensor(RobustScaler().fit_transform(rows.numpy()))
    assert torch.allclose((rows - median) / spread, wanted, atol=1e-5)


def test_the_small_classifier_is_three_linear_maps():
    rng = torch.Generator().manual_seed(0)
    layers = [(torch.randn(o, i, generator=rng), torch.randn(o, generator=rng))
              for i, o in ((8, 4), (4, 2), (2, 2))]  # fmt: skip
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    net.append(nn.Tanh())
    flat = [part for layer in layers for part in layer]
    with torch.no_grad():
        for weight, value in zip(net.parameters(), flat, strict=True):
            weight.copy_(value)
        rows = torch.randn(9, 8, generator=rng)
        assert torch.allclose(_probability(rows, layers), net(rows).softmax(1)[:, 1])


def test_its_passes_are_those_that_it_counts():
    method, made, meter, _ = protected()
    sizes = Sizes(64, 32, 6, 65, 48)
    counted = method.protect_passes(sizes)
    assert (meter.forward_passes, meter.backward_passes) == (counted.forward, counted.backward)
    suspect = View(made.model, method.needs)
    method.extract(made.secret, suspect, context(1, "owner"))
    assert suspect.queries == method.extract_passes(sizes).forward == 64


def test_a_shadow_drawn_anew_has_nothing_of_the_owners():
    made = fresh(digits_owner(), torch.Generator().manual_seed(0))
    assert made.classes == 10
    ours = digits_owner().state_dict()
    same = [n for n, v in made.state_dict().items() if v.ndim > 1 and torch.equal(v, ours[n])]
    assert same == []


def test_a_suspect_of_other_classes_is_incompatible():
    other = with_head(testing.owner(), Head(7), torch.Generator().manual_seed(0))
    with pytest.raises(Incompatible, match="expected 10 classes, got 7"):
        read(other)


def test_images_without_the_owners_labels_are_refused():
    ctx = context(0, "owner")
    bare = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, labels=None))
    with pytest.raises(UserError, match="expected images labelled with the owner's 10 classes"):
        Holmes().protect(digits_owner(), bare)


def test_a_target_that_is_no_class_is_refused():
    with pytest.raises(UserError, match=r"target: expected 0\.\.9, got 10"):
        Holmes(target=10).protect(digits_owner(), context(0, "owner"))
