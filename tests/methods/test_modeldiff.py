import dataclasses
import math

import pytest
import torch
from made_models import CPU, small_vit

from bench import testing
from bench.models import View, clone, measuring
from bench.testing import context
from bench.training import MicroBatches
from bench.types import Sizes, UserError
from methods.modeldiff import FeatureDiff, ModelDiff, cosine_distances, similarity, spread
from methods.perturb import Ball, climb, rounded, uphill

SHORT = {"pairs": 8, "steps": 4}

BOTH = [ModelDiff(**SHORT), FeatureDiff(**SHORT)]


class Answering:
    """A suspect that gives the answers it was given: first those of seeds, then of partners."""

    def __init__(self, seeds, partners):
        self._answers = iter([seeds, partners])

    def logits(self, images):
        return next(self._answers)

    features = logits


def drawn(n, width, seed):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def read(method, distances, seeds, partners):
    blank = torch.zeros(len(seeds), 3, 2, 2, dtype=torch.uint8)
    secret = {"seeds": blank, "partners": blank, "distances": distances}
    return method.extract(secret, Answering(seeds, partners), context())


def by_hand(one, other):
    """Cosine distances of two lists of rows, pair by pair."""
    return [
        1 - sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
        for a, b in zip(one.tolist(), other.tolist(), strict=True)
    ]


def correlation(a, b):
    a, b = ([x - sum(part) / len(part) for x in part] for part in (a, b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


OURS, THEIRS = (drawn(9, 5, 0), drawn(9, 5, 1)), (drawn(9, 7, 2), drawn(9, 7, 3))


def test_the_similarity_is_what_a_plain_loop_finds():
    ours, theirs = by_hand(*OURS), by_hand(*THEIRS)
    distances = cosine_distances(*OURS)
    assert distances.tolist() == pytest.approx(ours, abs=1e-6)
    found = read(ModelDiff(), distances, *THEIRS)
    assert found.statistic == pytest.approx((correlation(ours, theirs),), abs=1e-6)
    plain = sum(x * y for x, y in zip(ours, theirs, strict=True)) / (
        math.hypot(*ours) * math.hypot(*theirs)
    )
    uncentred = read(ModelDiff(centred=False), distances, *THEIRS)
    assert uncentred.statistic == pytest.approx((plain,), abs=1e-6)
    assert found.agreement == (max(0.0, found.statistic[0]),)
    a, b = ([(x - min(p)) / (max(p) - min(p)) for x in p] for p in (ours, theirs))
    pairs = read(ModelDiff(compared="pairs"), distances, *THEIRS)
    apart = sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)
    assert pairs.statistic == pytest.approx((apart,), abs=1e-6)
    assert pairs.agreement == pytest.approx((1 - apart,), abs=1e-6)
    assert found.unit == pairs.unit == ModelDiff.facts.unit


CHANGES = {
    "itself": lambda z: z,
    "other order of classes": lambda z: z.roll(2, 1).flip(1),
    "rotated and scaled": lambda z: 7 * z @ torch.linalg.qr(drawn(z.shape[1], z.shape[1], 4)).Q,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("compared", ["vectors", "pairs"])
def test_answers_in_another_basis_are_the_same(compared, change):
    method = FeatureDiff(compared=compared)
    found = read(method, cosine_distances(*OURS), *map(change, OURS))
    assert found.score == pytest.approx(1.0, abs=1e-6)
    assert found.rate == 1.0


def test_distances_that_are_all_large_are_alike_unless_they_are_centred():
    rng = torch.Generator().manual_seed(0)
    one, other = (1 + 0.1 * torch.rand(100, generator=rng) for _ in range(2))
    assert similarity(one, other, centred=False) > 0.99
    assert abs(similarity(one, other, centred=True)) < 0.3


def test_equal_distances_say_nothing():
    same = torch.full((5,), 0.3)
    assert similarity(same, torch.arange(5.0), centred=True) == 0.0
    assert spread(same).tolist() == [0.0] * 5


@pytest.mark.parametrize("method", BOTH, ids=lambda m: type(m).__name__)
def test_passes_are_counted_and_partners_are_near_their_seeds(method):
    ctx, owner = context(0, "owner"), testing._owner_for(method.needs)
    sizes = Sizes(len(ctx.images), len(ctx.held_out), 6, 65, 48)
    with measuring(CPU) as protecting:
        made = method.protect(owner, ctx)
    view = View(made.model, method.needs)
    with measuring(CPU) as extracting:
        evidence = method.extract(made.secret, view, ctx)
    planned = method.protect_passes(sizes)
    assert protecting.forward_passes == pytest.approx(planned.forward)
    assert protecting.backward_passes == pytest.approx(planned.backward)
    assert made.ideal_seconds > 0
    assert extracting.forward_passes == pytest.approx(method.extract_passes(sizes).forward)
    assert evidence.score == pytest.approx(1.0, abs=1e-6)
    seeds, partners = (made.secret[name].int() for name in ("seeds", "partners"))
    assert (seeds - partners).abs().max() <= 0.06 * 255 + 0.5
    assert made.secret["distances"].min() > 1e-4


@pytest.mark.parametrize("method", BOTH, ids=lambda m: type(m).__name__)
def test_partners_leave_their_seeds_more_than_noise_of_that_size_does(method):
    owner, ctx = testing._owner_for(method.needs), context(0, "owner")
    made = method.protect(owner, ctx)
    ask = method._ask(method._copied(owner, CPU))
    seeds = made.secret["seeds"] / 255
    noise = Ball(0.04, 0.01).drawn(seeds, torch.Generator().manual_seed(0))
    with torch.no_grad():
        random = cosine_distances(ask(seeds), ask(noise))
    assert made.secret["distances"].mean() > 3 * random.mean()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_does_what_one_image_at_a_time_does(batch):
    model = clone(small_vit()).double().requires_grad_(False)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    ball, goal = Ball(0.03, 0.01), torch.arange(4)

    def gain(pixels, part):
        return model.logits(pixels)[torch.arange(len(pixels)), goal[part]]

    found = climb(gain, images, images, ball, 5, MicroBatches(batch))
    for image, end, number in zip(images, found, goal, strict=True):
        x = image.clone()
        for _ in range(5):
            x = x.requires_grad_(True)
            (slope,) = torch.autograd.grad(model.logits(x[None])[0, number], x)
            x = (image + (x.detach() + 0.01 * slope.sign() - image).clamp(-0.03, 0.03)).clamp(0, 1)
        torch.testing.assert_close(end, x, rtol=0, atol=1e-9)


def test_of_a_straight_slope_the_edge_of_the_ball_is_reached_and_no_more():
    slope = torch.tensor([1.0, -2.0, 0.0]).view(1, 3, 1, 1)
    centre = torch.tensor([0.5, 0.5, 0.5]).view(1, 3, 1, 1)

    def gain(pixels, part):
        return (pixels * slope).flatten(1).sum(1)

    assert torch.equal(uphill(gain, centre, MicroBatches(1)), slope)
    for steps, far in [(2, 0.2), (9, 0.25)]:
        found = climb(gain, centre, centre, Ball(0.25, 0.1), steps, MicroBatches(1))
        assert found.flatten().tolist() == pytest.approx([0.5 + far, 0.5 - far, 0.5])
    found = climb(gain, centre, centre, Ball(1.0, 0.1), 9, MicroBatches(1))
    assert found.flatten().tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert rounded(found).flatten().tolist() == [255, 0, 128]


def test_too_few_images_are_refused():
    ctx = context(0, "owner")
    few = dataclasses.replace(ctx, images=ctx.images.subset(range(2)))
    with pytest.raises(UserError, match="pairs: expected 3 images or more, the owner has 2"):
        FeatureDiff().protect(testing.owner(), few)
