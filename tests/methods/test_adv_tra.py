import dataclasses
import functools
import itertools

import pytest
import torch
from made_models import CPU, digits_owner, images, small_vit

from bench import testing
from bench.models.building import build
from bench.models.heads import Head
from bench.models.meter import count, measuring
from bench.models.surgery import with_head
from bench.models.suspect import View
from bench.models.vision import Architecture, clone
from bench.records.nouns import UserError
from bench.registry import METHODS
from bench.types import Context
from methods.adv_tra import AdvTra, Tally, _step

QUICK = {"mode": "fast", "trajectories": 4, "classes": 4}


def context(seed=0, pool=None):
    pool = pool or images()
    return Context(CPU, torch.Generator().manual_seed(seed), pool, pool.subset([]))


def precise(model):
    return clone(model).double().requires_grad_(False)


# The authors' algorithm for one image: every point classified by a pass of its own, the two
# penalties differentiated by autograd, nothing remembered from one epoch to the next. Steps are
# leaves of their own; each is told to take a gradient once the pair it ends has been looked at.


def reference_step(model, x, target, size):
    x = x.clone().requires_grad_(True)
    loss = -model.logits(x)[0, target]
    loss.backward()
    moved = x.detach() - size * x.grad.sign()
    outside = (moved < 0) | (moved > 1)
    moved[outside] = x.detach()[outside]
    return moved


def reference_hop(model, start, target, how):
    """Return the steps found, or why there are none, and the epochs that took."""
    half = how.length // 2
    sizes = torch.tensor([0.05 - 0.002 * i for i in range(half)], dtype=torch.float64)
    accepted = False
    for epoch in range(how.max_iterations):
        points = [start]
        for i in range(half):
            points.append(reference_step(model, points[-1], target, sizes[i]))
        checked = [points[0], *points[2:]]
        with torch.no_grad():
            hits = [model.logits(point).argmax().item() == target for point in checked]
        early = any(hits[:-1])
        missed = not hits[-1] and not early
        accepted = not missed and not early
        if accepted and (how.mode == "fast" or epoch > how.max_iterations / 4):
            return sizes, epoch + 1
        leaves = [size.clone() for size in sizes]
        penalty = torch.zeros((), dtype=torch.float64)
        for a, b in itertools.pairwise(leaves):
            a.requires_grad_(True)
            penalty = penalty + (how.brake * a - b) ** 2
        leaves[-1].requires_grad_(True)
        for size in leaves:
            penalty = penalty + (size < 0) * -size
        penalty.backward()
        sizes = sizes - how.step_lr * torch.stack([leaf.grad for leaf in leaves])
        if missed:
            sizes = sizes * (1 / how.length_control - 0.049 * epoch / how.max_iterations)
        if early:
            sizes = sizes * (how.length_control + 0.049 * epoch / how.max_iterations)
        if (sizes > 1).any():
            return "a step above 1", epoch + 1
    return "no epoch left", how.max_iterations


def fresh(batch=64):
    return Tally.of(batch, 9, CPU)


def reference_walk(model, start, targets, how):
    """Return all points, the steps of each hop, and the epochs of each (0 for a lost start)."""
    points, found, spent = [start], [], []
    for target in targets:
        lost = model.logits(points[-1]).argmax().item() == target
        sizes, epochs = reference_hop(model, points[-1], target, how)
        spent.append(0 if lost else epochs)
        if isinstance(sizes, str):
            return None, found, spent
        assert not lost
        for size in [*sizes, *reversed(sizes)]:
            points.append(reference_step(model, points[-1], target, size))
        found.append(sizes)
    return torch.cat(points), found, spent


WALKS = 3
"""Enough for a batch of two and one of one; the reference takes each step of each by itself."""

OWNERS = {"digits": digits_owner, "random": functools.partial(small_vit, 64)}


@pytest.mark.parametrize(("length", "seed"), [(4, 0), (4, 1), (6, 1)])
@pytest.mark.parametrize("mode", ["official", "fast"])
@pytest.mark.parametrize("owner", OWNERS)
def test_walks_in_lock_step_equal_walks_one_at_a_time(owner, mode, length, seed):
    model = precise(OWNERS[owner]())
    how = AdvTra(mode=mode, length=length, classes=3, max_iterations=20, batch=2)
    rng = torch.Generator().manual_seed(seed)
    if owner == "digits":
        pool = testing.context(0, "owner").images
        start = pool.batch(torch.randperm(len(pool), generator=rng)[:WALKS], CPU).double()
    else:
        start = images(WALKS, 64, seed).batch(slice(None), CPU).double()
    targets = torch.rand(WALKS, model.classes, generator=rng).argsort(1)[:, :2]
    tally, found = fresh(), []

    class Watched(AdvTra):
        def _search(self, *given):
            found.append(super()._search(*given))
            return found[-1]

    walks = Watched(**dataclasses.asdict(how))._walk(model, start, targets, tally)
    expected = [
        reference_walk(model, start[i : i + 1], targets[i].tolist(), how) for i in range(WALKS)
    ]
    arrived = [points for points, _, _ in expected if points is not None]
    assert arrived, "a comparison of nothing"
    assert tally.epochs == sum(sum(spent) for _, _, spent in expected)
    assert len(walks) == len(arrived)
    for hop, made in enumerate(found):
        wanted = [sizes[hop] for _, sizes, _ in expected if len(sizes) > hop]
        assert len(made.steps) == len(wanted)
        if wanted:
            torch.testing.assert_close(made.steps, torch.stack(wanted), rtol=0, atol=1e-9)
    for walk, points in zip(walks, arrived, strict=True):
        assert torch.equal(walk, (points * 255).round().to(torch.uint8))
        kept = model.logits(walk.double() / 255).argmax(1)
        assert torch.equal(kept, model.logits((points * 255).round() / 255).argmax(1))


class ChannelMeans:
    """A linear classifier: class c scores the mean of channel c, and nothing else moves it.

    From channels (a, b, .) the way uphill for class 1 crosses into it after a - b, exactly.
    """

    mean = torch.zeros(1)
    classes = 3

    def logits(self, x):
        count(forward=len(x))
        return x.mean((2, 3))


def grey(*channels):
    return torch.tensor(channels, dtype=torch.float64).view(1, 3, 1, 1).repeat(1, 1, 2, 2)


def predicted(distance, how, room=0.95):
    """Find steps and epochs by arithmetic on the distance, and on the room there is, alone."""
    sizes = [how.initial_step - how.step_drop * i for i in range(how.length // 2)]
    for epoch in range(how.max_iterations):
        travelled = [0.0]
        for size in sizes:
            travelled.append(travelled[-1] + (size if travelled[-1] + size <= room else 0))
        early = any(t > distance for t in travelled[2:-1])
        missed = travelled[-1] <= distance
        burnt_in = how.mode == "fast" or epoch > how.max_iterations / 4
        if not early and not missed and burnt_in:
            return sizes, epoch + 1
        gaps = [how.brake * a - b for a, b in itertools.pairwise(sizes)]
        slopes = [2 * how.brake * g for g in gaps] + [0.0]  # of a pair the earlier moves
        relaxed = 0.049 * epoch / how.max_iterations
        factor = 1 / how.length_control - relaxed if missed else 1.0
        factor = how.length_control + relaxed if early else factor
        sizes = [(a - how.step_lr * b) * factor for a, b in zip(sizes, slopes, strict=True)]
        if max(sizes) > 1:
            break
    return None, epoch + 1


@pytest.mark.parametrize("length", [4, 6, 8])
@pytest.mark.parametrize("mode", ["official", "fast"])
def test_length_control_stops_just_beyond_a_boundary_at_a_known_distance(mode, length):
    how = AdvTra(mode=mode, length=length, max_iterations=60)
    distances = [0.01, 0.03, 0.06, 0.097, 0.12, 0.2, 0.35, 0.5, 0.7, 0.95]
    start = torch.cat([grey(0.05 + d, 0.05, 0.0) for d in distances])
    tally = fresh()
    goals = torch.ones(len(start), dtype=torch.long)
    found = how._search(ChannelMeans(), start, goals, tally)
    wanted = [predicted(d, how) for d in distances]
    reached = [i for i, (sizes, _) in enumerate(wanted) if sizes is not None]
    assert found.arrived.tolist() == reached
    assert 9 not in reached, "a pixel at 0.05 can rise to 1, not above"
    assert {4, 5, 6, 7} <= set(reached)
    assert tally.epochs == sum(epochs for _, epochs in wanted)
    steps = torch.tensor([wanted[i][0] for i in reached], dtype=torch.float64)
    torch.testing.assert_close(found.steps, steps, rtol=0, atol=1e-12)
    crossed = torch.tensor(distances, dtype=torch.float64)[reached]
    assert (found.steps.sum(1) > crossed).all()
    if length > 4:
        assert (found.steps[:, :-1].sum(1) <= crossed).all()
    grown = crossed > 0.2
    assert (found.steps.sum(1)[grown] < 1.12 * crossed[grown]).all()


def test_the_last_step_of_a_hop_moves_by_length_control_alone():
    # By hand, of steps 0.06, 0.05, 0.04: the gaps 0.95 s_j - s_j+1 are 0.007 and 0.0075, and a
    # step goes down 0.05 * 2 * 0.95 of its own gap. A miss at epoch 30 of 300 divides by 0.9,
    # relaxed by 0.049 / 10.
    steps = torch.tensor([[0.06, 0.05, 0.04]], dtype=torch.float64)
    none, all_ = torch.tensor([False]), torch.tensor([True])
    smoothed = torch.tensor([[0.059335, 0.0492875, 0.04]], dtype=torch.float64)
    found = AdvTra(length=6)._controlled(steps, none, none, 30)
    torch.testing.assert_close(found, smoothed, rtol=0, atol=1e-15)
    found = AdvTra(length=6)._controlled(steps, all_, none, 30)
    torch.testing.assert_close(found, smoothed * (1 / 0.9 - 0.0049), rtol=0, atol=1e-15)


def test_a_start_that_is_its_own_target_costs_one_pass_and_fails():
    tally, start = fresh(), torch.cat([grey(0.2, 0.5, 0.1), grey(0.5, 0.45, 0.1)])
    found = AdvTra(mode="fast")._search(ChannelMeans(), start, torch.tensor([1, 1]), tally)
    assert found.arrived.tolist() == [1]
    assert (tally.starts, tally.epochs) == (2, 1)


@pytest.mark.parametrize(
    ("value", "sign", "size", "expected"),
    [
        (0.50, 1.0, 0.05, 0.55),
        (0.50, -1.0, 0.05, 0.45),
        (0.98, 1.0, 0.05, 0.98),  # frozen, not clipped to 1
        (0.02, -1.0, 0.05, 0.02),
        (0.95, 1.0, 0.05, 1.00),
        (0.50, 0.0, 0.05, 0.50),
        (0.02, 1.0, -0.05, 0.02),  # penalised, but a step may be negative
    ],
)
def test_a_pixel_that_would_leave_the_range_stays(value, sign, size, expected):
    pixel = torch.full((1, 3, 1, 1), value, dtype=torch.float64)
    moved = _step(pixel, torch.full_like(pixel, sign), pixel.new_tensor([size]))
    torch.testing.assert_close(moved, torch.full_like(pixel, expected))


@pytest.mark.parametrize("mode", ["official", "fast"])
def test_results_do_not_depend_on_the_batch(mode):
    model = precise(digits_owner())
    start = testing.context(0, "owner").images.batch(slice(0, 9), CPU).double()
    targets = torch.rand(9, 10, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :2]
    walks = [
        AdvTra(mode=mode, classes=3, max_iterations=8, batch=batch)._walk(
            model, start, targets, fresh(batch)
        )
        for batch in (1, 4, 64)
    ]
    assert len(walks[0])
    assert torch.equal(walks[0], walks[1])
    assert torch.equal(walks[0], walks[2])


def test_images_that_are_done_cost_no_more():
    sizes = []

    class Counting(ChannelMeans):
        def logits(self, x):
            sizes.append(len(x))
            return super().logits(x)

    start = torch.cat([grey(0.1 + d, 0.1, 0.0) for d in (0.05, 0.3, 0.05, 0.6)])
    AdvTra(mode="fast")._search(Counting(), start, torch.ones(4, dtype=torch.long), fresh())
    # The start once, then x_1 and x_2 an epoch: two arrive at once, the nearer other one first.
    assert sizes[:3] == [4, 4, 4]
    assert sizes[3] == 2
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("length", [4, 6])
@pytest.mark.parametrize("mode", ["official", "fast"])
@pytest.mark.parametrize("labelled", [True, False])
def test_passes_are_those_the_algorithm_needs(mode, length, labelled):
    how = AdvTra(**{**QUICK, "mode": mode, "length": length, "max_iterations": 20})
    owner, ctx = digits_owner(), testing.context(0, "owner")  # whose classifier is trained by now
    if not labelled:
        ctx = dataclasses.replace(ctx, images=dataclasses.replace(ctx.images, labels=None))
    with measuring(CPU) as meter:
        made = how.protect(owner, ctx)
    notes, half = made.notes, length // 2
    starts = notes["tried"] + notes["hops"] - notes["trajectories"]
    gradients = starts + notes["epochs"] * (half - 1) + notes["hops"] * half
    labels = made.secret["labels"].numel() + (0 if labelled else notes["tried"])
    assert meter.backward_passes == gradients
    assert meter.forward_passes == gradients + notes["epochs"] + labels
    assert made.ideal_seconds > 0


@pytest.mark.parametrize(
    "settings", [{"classes": 10}, {"mode": "official", "classes": 5, "max_iterations": 16}]
)
def test_the_owner_reads_one_and_a_stranger_much_less(settings):
    how = AdvTra(**{**QUICK, **settings})
    made = how.protect(digits_owner(), testing.context(0, "owner"))
    own = how.extract(made.secret, View(made.model, how.needs), context())
    assert own.agreement == (1.0,) * 4
    assert own.rate == 1.0
    stranger = testing._strangers_for(how.needs)[0]
    other = how.extract(made.secret, View(stranger, how.needs), context())
    assert other.score < 0.5


def test_equal_randomness_gives_the_same_walks_and_other_randomness_others():
    first, again, other = (
        AdvTra(**QUICK).protect(digits_owner(), testing.context(seed, "owner")).secret
        for seed in (0, 0, 1)
    )
    assert torch.equal(first["pixels"], again["pixels"])
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["pixels"], other["pixels"])


def test_a_walk_that_fails_is_replaced_as_if_images_were_tried_one_after_another():
    how = AdvTra(mode="fast", trajectories=8, classes=4, max_iterations=8)
    ctx, seen = testing.context(0, "owner"), []

    class Watched(AdvTra):
        def _walk(self, model, start, targets, tally):
            seen.append((start, targets))
            return super()._walk(model, start, targets, tally)

    made = Watched(**dataclasses.asdict(how)).protect(digits_owner(), ctx)
    starts, targets = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert made.notes["trajectories"] == 8
    assert 8 < made.notes["tried"] == len(starts) <= 16
    assert made.notes["failed"] == made.notes["tried"] - 8
    model = clone(digits_owner()).requires_grad_(False)
    singly = [
        how._walk(model, starts[i : i + 1], targets[i : i + 1], fresh()) for i in range(len(starts))
    ]
    assert torch.equal(torch.cat(singly)[:, 0], made.secret["pixels"][:, 0])
    assert len(singly[-1]), "an image was tried that was not needed"


def test_no_more_base_images_are_tried_than_twice_the_walks():
    how = AdvTra(mode="fast", trajectories=5, classes=6, max_iterations=4)
    made = how.protect(digits_owner(), testing.context(0, "owner"))
    assert made.notes["tried"] == 10
    assert 0 < made.notes["trajectories"] == len(made.secret["labels"]) < 5


def targets_of(pool, owner=None, **settings):
    found = []

    class Watched(AdvTra):
        def _walk(self, model, start, targets, tally):
            found.append((start, targets))
            return super()._walk(model, start, targets, tally)

    Watched(**{**QUICK, **settings}).protect(owner or digits_owner(), context(0, pool))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def test_targets_are_distinct_and_never_the_images_own_label():
    pool = dataclasses.replace(images(12), labels=torch.arange(12) % 10, classes=10)
    starts, targets = targets_of(pool)
    known = {image.numpy().tobytes(): i % 10 for i, image in enumerate(pool.pixels)}
    own = [known[(start * 255).round().byte().numpy().tobytes()] for start in starts]
    assert all(label not in row.tolist() for label, row in zip(own, targets, strict=True))
    assert all(len(set(row.tolist())) == 3 for row in targets)
    assert set(targets.flatten().tolist()) <= set(range(10))


@pytest.mark.parametrize("classes", [0, 3], ids=["unlabelled", "labelled in other classes"])
def test_without_labels_in_the_owners_classes_its_prediction_is_left_out(classes):
    labels = torch.arange(12) % 3 if classes else None
    starts, targets = targets_of(images(12, labels=labels, classes=classes), classes=10)
    with torch.no_grad():
        own = digits_owner().logits(starts).argmax(1)
    assert targets.shape[1] == 9
    assert not (targets == own[:, None]).any()


class Oracle:
    """A suspect that answers from a list, and remembers in what portions it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers.flatten(), []

    def labels(self, queries):
        first = sum(self.asked)
        self.asked.append(len(queries))
        return self.answers[first : first + len(queries)]


@pytest.mark.parametrize(
    ("changed", "mutation"),
    [([], 0.0), ([0], 0.1), ([4], 0.2), ([8], 0.1), ([0, 1, 2, 3, 5], 0.5), (range(9), 1.0)],
)
def test_a_point_where_two_hops_meet_counts_twice(changed, mutation):
    # Two hops of four steps: nine images, of which the fifth ends one hop and begins the other.
    labels = torch.zeros(2, 9, dtype=torch.long)
    answers = labels.clone()
    answers[1, list(changed)] = 1
    suspect = Oracle(answers)
    secret = {"pixels": torch.zeros(2, 9, 3, 2, 2, dtype=torch.uint8), "labels": labels}
    evidence = AdvTra(classes=3, batch=8).extract(secret, suspect, context())
    assert evidence.statistic == (0.0, mutation)
    assert evidence.agreement == (1.0, 1 - mutation)
    assert evidence.rate == (1.0 if mutation < 0.5 else 0.5)  # strictly below tau
    assert evidence.chance is None
    assert suspect.asked == [8, 8, 2]


def test_the_owner_is_released_as_it_is_and_left_untouched():
    owner = clone(digits_owner())
    before = testing._snapshot(owner)
    made = AdvTra(**QUICK).protect(owner, testing.context(0, "owner"))
    after = testing._snapshot(owner)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(v, owner.state_dict()[n]) for n, v in made.model.state_dict().items())
    assert made.model.architecture == owner.architecture


def of_four_classes():
    return with_head(digits_owner(), Head(4), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("owner", "settings", "message"),
    [
        (lambda: build(Architecture("embedded", "mini")), {}, "mini with none; give"),
        (of_four_classes, {"classes": 5}, "tells 5 classes apart or more, got mini with 4"),
        (digits_owner, {"trajectories": 13}, "expected 13 base images, the owner's pool has 12"),
        (digits_owner, {"initial_step": 1e-6, "max_iterations": 2}, "all 8 failed"),
    ],
)
def test_what_the_user_can_put_right_is_said_in_one_line(owner, settings, message):
    with pytest.raises(UserError, match=message) as error:
        AdvTra(**{**QUICK, **settings}).protect(owner(), context())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 5}, "length: expected a multiple of 2, got 5"),
        ({"length": 2}, "length: expected a number greater than or equal to 4, got 2"),
        ({"classes": 1}, "classes: expected a number greater than or equal to 2, got 1"),
        ({"tau": 0.0}, "tau: expected a number greater than 0, got 0.0"),
        ({"mode": "slow"}, "mode: expected 'official' or 'fast', got 'slow'"),
        ({"readout": "guess"}, "readout: expected 'graft', 'relinear' or 'native'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        METHODS.build("adv_tra", settings)
