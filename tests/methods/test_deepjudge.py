import dataclasses
import math

import pytest
import torch
from made_models import CPU, digits_owner
from scipy.spatial.distance import jensenshannon

from bench import testing
from bench.models import View, measuring
from bench.testing import context
from bench.types import Access, Sizes, UserError
from methods.deepjudge import OutputDistance, RobustnessDistance, divergence

SHORT = {"iterations": 4, "radius": 0.06}

BOTH = [RobustnessDistance(**SHORT), OutputDistance(**SHORT)]


class Answering:
    """A suspect that gives the scores it was given, whatever it is shown."""

    def __init__(self, scores):
        self._scores = scores

    def logits(self, images):
        return self._scores

    def labels(self, images):
        return self._scores.argmax(1)


def drawn(n, width, seed):
    return 3 * torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


BLANK = torch.zeros(12, 3, 2, 2, dtype=torch.uint8)


def test_robd_is_the_suspects_accuracy_where_the_owner_is_always_wrong():
    scores, truth = drawn(12, 4, 0), [0, 1, 2, 3] * 3
    secret = {"pixels": BLANK, "labels": torch.tensor(truth)}
    evidence = RobustnessDistance().extract(secret, Answering(scores), context())
    named = [row.index(max(row)) for row in scores.tolist()]
    right = sum(said == true for said, true in zip(named, truth, strict=True))
    assert 0 < right < 12
    assert evidence.rate == pytest.approx(1 - right / 12)
    assert evidence.score == pytest.approx(evidence.rate, abs=1e-8)
    assert (evidence.unit, evidence.chance) == ("example", None)


def test_the_divergence_is_scipys():
    ours, theirs = drawn(12, 4, 0), drawn(12, 4, 1)
    evidence = OutputDistance().extract(
        {"pixels": BLANK, "logits": ours}, Answering(theirs), context()
    )
    expected = jensenshannon(ours.double().softmax(1), theirs.double().softmax(1), axis=1) ** 2
    assert evidence.statistic == pytest.approx(expected.tolist(), abs=1e-6)
    assert evidence.agreement == pytest.approx((1 - expected / math.log(2)).tolist(), abs=1e-6)


def test_the_divergence_ends_where_no_class_is_common():
    sure = 100 * torch.eye(3)
    assert divergence(sure, sure).tolist() == pytest.approx([0.0] * 3)
    assert divergence(sure, sure.roll(1, 1)).tolist() == pytest.approx([math.log(2)] * 3)
    assert divergence(sure, sure + 5).tolist() == pytest.approx([0.0] * 3)  # a softmax has no level
    evidence = OutputDistance().extract(
        {"pixels": BLANK[:3], "logits": sure}, Answering(sure.roll(1, 1)), context()
    )
    assert (evidence.score, evidence.rate) == (0.0, 0.0)


@pytest.fixture(scope="module")
def made():
    return {type(m): m.protect(digits_owner(), context(0, "owner")) for m in BOTH}


@pytest.mark.parametrize("method", BOTH, ids=lambda m: type(m).__name__)
def test_examples_mislead_the_owner_and_are_near_images_it_gets_right(method, made):
    protected, ctx, owner = made[type(method)], context(0, "owner"), digits_owner()
    pixels = protected.secret["pixels"]
    with torch.no_grad():
        right = owner.logits(ctx.held_out.pixels / 255).argmax(1) == ctx.held_out.labels
        found = owner.logits(pixels / 255)
    assert protected.notes["seeds"] == int(right.sum())
    assert 0 < protected.notes["tests"] == len(pixels) <= int(right.sum())
    known, labels = ctx.held_out.pixels[right].int(), ctx.held_out.labels[right]
    apart = (pixels[:, None].int() - known[None]).abs().flatten(2).amax(2)  # (n, seeds)
    near, which = apart.min(1)
    assert near.max() <= 0.06 * 255 + 0.5
    assert (found.argmax(1) != labels[which]).all()
    if "labels" in protected.secret:
        assert torch.equal(protected.secret["labels"], labels[which])
    own = method.extract(protected.secret, View(protected.model, method.needs), ctx)
    assert own.score == pytest.approx(1.0, abs=1e-6)
    assert own.rate == 1.0


def test_without_projection_examples_go_farther(made):
    method = RobustnessDistance(**SHORT, projected=False)
    far = method.protect(digits_owner(), context(0, "owner")).secret["pixels"]
    known = context(0, "owner").held_out.pixels.int()
    apart = (far[:, None].int() - known[None]).abs().flatten(2).amax(2).amin(1)
    assert 0.06 * 255 + 0.5 < apart.max() <= 2 * 0.06 * 255 + 0.5


@pytest.mark.parametrize("certain", ["most", "least"])
def test_seeds_are_chosen_by_how_certain_the_owner_is(certain):
    logits = torch.tensor([[3.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [9.0, 0, 0]])
    truth = torch.tensor([0, 0, 0, 1])  # the last it gets wrong
    method = RobustnessDistance(seeds=2, certain=certain)
    assert method._chosen(logits, truth).tolist() == ([0, 2] if certain == "most" else [1, 2])


@pytest.mark.parametrize("method", BOTH, ids=lambda m: type(m).__name__)
def test_passes_are_at_most_what_is_planned_and_that_where_all_is_right(method):
    ctx, owner = context(0, "owner"), digits_owner()
    with torch.no_grad():
        said = owner.logits(ctx.held_out.pixels / 255).argmax(1)
    ctx = dataclasses.replace(ctx, held_out=dataclasses.replace(ctx.held_out, labels=said))
    sizes = Sizes(len(ctx.images), len(ctx.held_out), 6, 65, 48)
    with measuring(CPU) as protecting:
        protected = method.protect(owner, ctx)
    planned, asked = method.protect_passes(sizes), method.extract_passes(sizes)
    assert protecting.forward_passes == pytest.approx(planned.forward)
    assert protecting.backward_passes == pytest.approx(planned.backward)
    assert protected.ideal_seconds > 0
    view = View(protected.model, method.needs)
    method.extract(protected.secret, view, ctx)
    assert view.queries == protected.notes["tests"] <= asked.forward == 32
    assert planned.bound == asked.bound == "at most"


def unlabelled(ctx):
    return dataclasses.replace(ctx, held_out=dataclasses.replace(ctx.held_out, labels=None))


def of_other_classes(ctx):
    return dataclasses.replace(ctx, held_out=dataclasses.replace(ctx.held_out, classes=7))


def mislabelled(ctx):
    with torch.no_grad():
        said = digits_owner().logits(ctx.held_out.pixels / 255).argmax(1)
    wrong = dataclasses.replace(ctx.held_out, labels=(said + 1) % 10)
    return dataclasses.replace(ctx, held_out=wrong)


@pytest.mark.parametrize(
    ("owner", "change", "settings", "message"),
    [
        (digits_owner, unlabelled, {}, "the owner's 10 classes, got unlabelled ones; name such"),
        (digits_owner, of_other_classes, {}, "the owner's 10 classes, got 7; name such a data set"),
        (digits_owner, mislabelled, {}, "images the owner gets right, got none of 32; give it"),
        (testing.owner, lambda ctx: ctx, {}, "mini with none; give the owner a `classifier:`"),
        (
            digits_owner,
            lambda ctx: ctx,
            {"radius": 1e-6, "iterations": 1},
            "examples that mislead the owner, got none of 24 within 1e-06; raise it",
        ),
    ],
)
def test_what_cannot_be_tested_is_refused_with_the_way_out(owner, change, settings, message):
    with pytest.raises(UserError, match=message) as refused:
        RobustnessDistance(**settings).protect(owner(), change(context(0, "owner")))
    assert "\n" not in str(refused.value)


def test_each_metric_asks_for_no_more_than_it_compares():
    assert RobustnessDistance.needs == Access.LABELS
    assert OutputDistance.needs == Access.LOGITS
