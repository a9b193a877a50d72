import dataclasses

import pytest
import torch
import torch.nn.functional as F
from made_models import CPU, small_vit

from bench import testing
from bench.models import View, clone, measuring
from bench.testing import context
from bench.training import MicroBatches
from bench.types import Sizes, UserError
from methods.fitprint import Spelling, TargetedFeatures, TargetedScores
from methods.perturb import uphill

SHORT = {"bits": 12, "steps": 12, "copies": 1}

BOTH = [TargetedScores(**SHORT), TargetedFeatures(**SHORT)]


class Answering:
    """A suspect that gives the answers it was given: those of first images, then of second ones."""

    def __init__(self, first, second):
        self._answers = iter([first, second])

    def logits(self, images):
        return next(self._answers)

    features = logits


def drawn(n, width, seed):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def read(first, second, bits):
    blank = torch.zeros(len(first), 3, 2, 2, dtype=torch.uint8)
    secret = {"first": blank, "second": blank, "bits": bits}
    return TargetedFeatures().extract(secret, Answering(first, second), context())


FIRST, SECOND = drawn(40, 6, 0), drawn(40, 6, 1)


def spelt(first, second):
    """The bits of pairs by a plain loop: 1 where the cosine lies below the mean of all."""
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(first, second, strict=True)]
    return torch.tensor([int(c < sum(cosines) / len(cosines)) for c in cosines])


CHANGES = {
    "itself": lambda z: z,
    "other order of classes": lambda z: z.roll(2, 1).flip(1),
    "rotated and scaled": lambda z: 7 * z @ torch.linalg.qr(drawn(z.shape[1], z.shape[1], 4)).Q,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_bits_are_distances_above_the_mean_in_any_basis(change):
    bits = spelt(FIRST, SECOND)
    assert 10 < bits.sum() < 30
    assert read(change(FIRST), change(SECOND), bits).score == 1.0
    assert read(change(FIRST), change(SECOND), 1 - bits).score == 0.0
    bits[:10] = 1 - bits[:10]
    evidence = read(change(FIRST), change(SECOND), bits)
    assert (evidence.score, evidence.rate) == (0.75, 0.75)
    assert (evidence.unit, evidence.chance) == ("bit", None)


def test_what_no_sample_was_made_for_spells_half_the_bits():
    """Answers drawn apart from the bits: the mean of 200 lies within five deviations of 1/2."""
    rng = torch.Generator().manual_seed(0)
    scores = [
        read(drawn(64, 6, 2 * i), drawn(64, 6, 2 * i + 1), torch.randint(2, (64,), generator=rng))
        for i in range(200)
    ]
    mean = sum(evidence.score for evidence in scores) / 200
    assert abs(mean - 0.5) < 5 * 0.5 / (200 * 64) ** 0.5


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_the_gradient_is_that_of_the_hinge_against_the_last_mean(batch):
    model = clone(small_vit()).double().requires_grad_(False)
    rng = torch.Generator().manual_seed(0)
    first = torch.rand(5, 3, 32, 32, generator=rng).double()
    second = (first + 0.05 * torch.randn(first.shape, generator=rng)).clamp(0, 1)
    signs = torch.tensor([1.0, -1, 1, -1, -1]).double()
    goal = Spelling(model.logits, first, signs, 0.1, batch)
    goal.look(second)
    found = uphill(goal.gain, second, MicroBatches(batch))
    with torch.no_grad():
        level = (1 - F.cosine_similarity(model.logits(first), model.logits(second))).mean()
    x = second.clone().requires_grad_(True)
    distances = 1 - F.cosine_similarity(model.logits(first), model.logits(x))
    (0.1 - signs * (distances - level)).clamp(min=0).sum().backward()
    torch.testing.assert_close(found, -x.grad, rtol=1e-6, atol=1e-9)
    assert (found.flatten(1).abs().amax(1) > 0).any()


@pytest.mark.parametrize("method", BOTH, ids=lambda m: type(m).__name__)
def test_the_owner_spells_its_bits_and_passes_are_counted(method):
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
    assert evidence.rate == made.notes["spelt"] / 12 > 0.8
    first, second = (made.secret[name].int() for name in ("first", "second"))
    assert (first - second).abs().max() <= 0.06 * 255 + 0.5
    assert set(made.secret["bits"].tolist()) == {0, 1}


def test_bits_are_drawn_before_anything_is_known_of_the_owner():
    ctx = context(0, "owner")
    method = TargetedFeatures(bits=12, steps=1, copies=0)
    made = method.protect(testing.owner(), ctx)
    expected = torch.randint(2, (12,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.secret["bits"], expected)


def test_more_bits_than_images_take_each_image_as_often():
    ctx = context(0, "owner")
    few = dataclasses.replace(ctx, images=ctx.images.subset(range(4)))
    first = TargetedFeatures(bits=10)._drawn(few)
    same = (first[:, None] == few.images.pixels[None]).flatten(2).all(2)  # (10, 4)
    assert sorted(same.sum(0).tolist()) == [2, 2, 3, 3]


def test_copies_are_pruned_and_noised_in_turns_and_more_and_more():
    owner = testing.owner().requires_grad_(False)
    method = TargetedFeatures(copies=4, pruned=0.4, noise=0.1)
    copies = method._augmented(owner, context(0, "owner"))
    weight = owner.blocks[0].mlp.fc1.weight
    found = [copy.blocks[0].mlp.fc1.weight for copy in copies]
    assert [float((w == 0).double().mean()) for w in found] == pytest.approx(
        [0.2, 0, 0.4, 0], abs=1e-3
    )
    for number, size in ((1, 0.05), (3, 0.1)):
        moved = (found[number] - weight).std() / weight.std()
        assert float(moved) == pytest.approx(size, rel=0.1)
    biases = [copy.blocks[0].mlp.fc1.bias for copy in copies]
    assert all(torch.equal(bias, owner.blocks[0].mlp.fc1.bias) for bias in biases)


def test_an_owner_without_images_is_refused():
    ctx = context(0, "owner")
    none = dataclasses.replace(ctx, images=ctx.images.subset(range(0)))
    with pytest.raises(UserError, match="expected images of the owner's, got none; give"):
        TargetedFeatures().protect(testing.owner(), none)
