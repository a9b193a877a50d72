import dataclasses
import math

import pytest
import torch
from made_models import CPU

from bench import testing
from bench.models import View, measuring
from bench.testing import context
from bench.types import Access, Sizes, UserError
from methods.cutmix import cutmix
from methods.sac import FeatureCorrelation, LabelCorrelation, SampleCorrelation, softened

ALL = [SampleCorrelation(), LabelCorrelation(), FeatureCorrelation()]

WITH_SCORES = [SampleCorrelation(), SampleCorrelation(centred=True), FeatureCorrelation()]


class Answering:
    """A suspect that gives the answers it was given, whatever it is shown."""

    def __init__(self, outputs):
        self._outputs = outputs

    def logits(self, images):
        return self._outputs

    features = logits

    def labels(self, images):
        return self._outputs.argmax(1)


def drawn(n, width, seed):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def read(method, ours, theirs):
    secret = {"images": torch.zeros(len(ours), 3, 2, 2, dtype=torch.uint8), "outputs": ours}
    return method.extract(secret, Answering(theirs), context())


def by_hand(ours, theirs, centred):
    """The mean difference of correlations of each image with all, one pair after another."""

    def one_less_cosine(rows, i, j):
        middle = [sum(column) / len(rows) if centred else 0.0 for column in zip(*rows, strict=True)]
        a, b = ([x - m for x, m in zip(rows[k], middle, strict=True)] for k in (i, j))
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return (1 - dot / math.hypot(*a) / math.hypot(*b)) / 2

    ours, theirs, n = ours.tolist(), theirs.tolist(), len(ours)
    return [
        sum(abs(one_less_cosine(theirs, i, j) - one_less_cosine(ours, i, j)) for j in range(n)) / n
        for i in range(n)
    ]


@pytest.mark.parametrize("method", WITH_SCORES, ids=repr)
def test_the_distance_is_what_a_plain_loop_finds(method):
    ours, theirs = drawn(6, 5, 0), drawn(6, 9, 1)
    evidence = read(method, ours, theirs)
    expected = by_hand(ours, theirs, method.centred)
    assert evidence.statistic == pytest.approx(expected, abs=1e-6)
    assert evidence.agreement == pytest.approx([1 - x for x in expected], abs=1e-6)
    assert (evidence.unit, evidence.chance) == ("image", None)


CHANGES = {
    "itself": lambda z: z,
    "other order of classes": lambda z: z.roll(3, 1).flip(1),
    "rotated and scaled": lambda z: 7 * z @ torch.linalg.qr(drawn(z.shape[1], z.shape[1], 3)).Q,
    "more numbers, all 0": lambda z: torch.cat([z, torch.zeros(len(z), 4)], 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("method", WITH_SCORES, ids=repr)
def test_answers_in_another_basis_are_the_same(method, change):
    ours = drawn(20, 10, 0)
    assert read(method, ours, change(ours)).statistic == pytest.approx([0.0] * 20, abs=1e-6)


def test_another_mean_is_the_same_only_where_it_is_taken_off():
    ours = drawn(20, 10, 0)
    assert read(FeatureCorrelation(), ours, ours + 3).score == pytest.approx(1, abs=1e-6)
    assert read(SampleCorrelation(), ours, ours + 3).score < 0.9


def test_independent_answers_are_apart():
    assert read(SampleCorrelation(), drawn(20, 10, 0), drawn(20, 10, 1)).rate == 0.0


def test_of_labels_it_matters_which_are_equal_and_not_what_they_are_called():
    labels = torch.tensor([0, 0, 1, 1, 2])
    other = torch.tensor([0, 1, 1, 1, 2])  # the second has left the first
    renamed = torch.tensor([2, 0, 1])[labels]
    e = math.e**0.99  # a softmax of 1 and 0.01 is one of 0.99 and 0
    apart = (1 - (2 * e + 1) / (e**2 + 2)) / 2  # of two images of unequal labels
    ours = softened(labels, 3)
    for theirs, expected in [(renamed, [0] * 5), (other, [apart * k / 5 for k in (1, 3, 1, 1, 0)])]:
        found = read(LabelCorrelation(), ours, torch.eye(3)[theirs]).statistic
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("method", ALL, ids=lambda m: type(m).__name__)
def test_passes_are_counted_and_only_held_out_images_are_mixed(method):
    ctx = context(0, "owner")
    sizes = Sizes(len(ctx.images), len(ctx.held_out), 6, 65, 48)
    method, owner = dataclasses.replace(method, queries=20), testing._owner_for(method.needs)
    with measuring(CPU) as protecting:
        made = method.protect(owner, ctx)
    view = View(made.model, method.needs)
    with measuring(CPU) as extracting:
        evidence = method.extract(made.secret, view, ctx)
    assert protecting.forward_passes == pytest.approx(method.protect_passes(sizes).forward)
    assert extracting.forward_passes == pytest.approx(method.extract_passes(sizes).forward)
    assert view.queries == 20
    assert evidence.score == pytest.approx(1.0, abs=1e-6)
    mixed, known = made.secret["images"], ctx.held_out.pixels
    same = (mixed[:, None] == known[None]).all(2).flatten(2).double().mean(2)  # (20, 32)
    nearest = same.topk(1).values
    assert (nearest > 0.9).all()  # all but a box of 0.04 of the area is one image
    assert (nearest < 1).any()


def test_one_image_cannot_be_mixed():
    ctx = context(0, "owner")
    few = dataclasses.replace(ctx, held_out=ctx.held_out.subset(range(1)))
    with pytest.raises(UserError, match="2 held-out images or more to mix, the owner has 1"):
        FeatureCorrelation().protect(testing.owner(), few)


def test_an_owner_without_classes_has_features_alone():
    assert FeatureCorrelation().needs == Access.FEATURES
    with pytest.raises(UserError, match="give the owner a `classifier:`"):
        SampleCorrelation().protect(testing.owner(), context(0, "owner"))


@pytest.mark.parametrize("share", [0.0, 0.04, 0.25])
def test_a_box_is_as_large_as_its_share_and_at_one_place(share):
    black, white = torch.zeros(200, 3, 40, 40), torch.ones(200, 3, 40, 40)
    rng = torch.Generator().manual_seed(0)
    mixed = cutmix(black, white, torch.full((200,), share), rng)
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mixed[:, 0], mixed[:, 2])
    areas = mixed[:, 0].mean((1, 2))
    assert areas.max() == pytest.approx(share, abs=0.02)
    rows, columns = mixed[:, 0].amax(2), mixed[:, 0].amax(1)
    assert torch.equal(rows[:, :, None] * columns[:, None], mixed[:, 0])  # a box, and no more


def test_one_share_makes_one_box_for_all():
    black, white = torch.zeros(5, 3, 8, 8), torch.ones(5, 3, 8, 8)
    mixed = cutmix(black, white, torch.tensor([0.5]), torch.Generator().manual_seed(1))
    assert 0 < mixed.mean() < 1
    assert all(torch.equal(mixed[0], each) for each in mixed)
