import dataclasses

import pytest
import torch
from made_models import CPU, digits_owner, small_vit

from bench import testing
from bench.models.building import build
from bench.models.heads import Head
from bench.models.meter import measuring
from bench.models.surgery import segmentation_head, with_head
from bench.models.suspect import View
from bench.models.vision import Architecture, clone
from bench.records.nouns import UserError
from bench.registry import METHODS
from bench.testing import context
from methods.ipguard import IPGuard, QurdIPGuard, boundary_loss

SOME = {"points": 5, "iterations": 40, "lr": 1e-2}


OWNERS = {"small ViT": small_vit, "mini with a digits head": digits_owner}


def doubled(owner):
    return clone(owner).double().requires_grad_(False)


def one_by_one(model, starts, targets, k, settings):
    """The method without a batch: every point on its own, PyTorch's optimiser, plain indexing."""
    points, steps = [], []
    for start, chosen in zip(starts, targets, strict=True):
        x = start[None].clone().requires_grad_(True)
        optimiser = torch.optim.Adam([x], lr=settings.lr)
        i, j = int(model.logits(x).argmax()), int(chosen)
        for step in range(settings.iterations + 1):
            scores = model.logits(x)[0]
            loss = torch.relu(scores[i] - scores[j] + k)
            others = [t for t in range(len(scores)) if t not in (i, j)]
            if others:
                loss = loss + torch.relu(scores[others].max() - scores[i])
            if loss <= settings.tolerance or step == settings.iterations:
                break
            if settings.adam_reset:
                optimiser = torch.optim.Adam([x], lr=settings.lr)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if settings.clamp:
                with torch.no_grad():
                    x.clamp_(0, 1)
        points.append(x.detach()[0])
        steps.append(step)
    return torch.stack(points), torch.tensor(steps)


def starts_for(owner, settings, seed):
    """Draw starting points with nothing of the method's own but where they come from."""
    rng = torch.Generator().manual_seed(seed)
    if settings.initialisation == "noise":
        size = owner.preprocess.size
        return torch.rand(settings.points, 3, *size, generator=rng, dtype=torch.float64)
    pixels = context(party="owner").images.pixels
    return pixels[torch.randperm(len(pixels), generator=rng)[: settings.points]].double() / 255


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("adam_reset", [False, True])
@pytest.mark.parametrize("target", ["least_likely", "random"])
@pytest.mark.parametrize("initialisation", ["data", "noise"])
@pytest.mark.parametrize("name", OWNERS)
def test_a_batch_does_what_a_loop_over_points_does(name, initialisation, target, adam_reset, seed):
    model = doubled(OWNERS[name]())
    settings = IPGuard(
        initialisation=initialisation, target=target, adam_reset=adam_reset, batch=4, **SOME
    )
    starts = starts_for(model, settings, seed)
    with torch.no_grad():
        logits = model.logits(starts)
    k = 0.5 * float(logits.topk(2).values.diff().abs().median())
    source = logits.argmax(1)
    targets = settings._targets(logits, torch.Generator().manual_seed(seed))
    assert (targets != source).all()
    assert target == "random" or torch.equal(targets, logits.argmin(1))

    found = settings.descend(model.logits, starts, source, targets, k, CPU)
    points, steps = one_by_one(model, starts, targets, k, settings)

    assert torch.equal(found.steps, steps)
    torch.testing.assert_close(found.points, points, rtol=0, atol=1e-9)
    with torch.no_grad():
        assert torch.equal(model.logits(found.points).argmax(1), model.logits(points).argmax(1))
    assert steps.min() > 0
    assert (steps < settings.iterations).any(), "no point of the comparison stopped early"


def test_qurds_points_stop_as_soon_as_the_owner_calls_them_the_target():
    settings = QurdIPGuard(**SOME)
    assert (settings.target, settings.k, settings.clamp) == ("random", 10.0, False)
    model = doubled(digits_owner())
    starts = starts_for(model, settings, 0)
    with torch.no_grad():
        logits = model.logits(starts)
    target = logits.topk(2).indices[:, 1]  # one that is near
    found = settings.descend(model.logits, starts, logits.argmax(1), target, 10.0, CPU)
    stopped = found.steps < settings.iterations
    assert stopped.any()
    with torch.no_grad():
        scores = model.logits(found.points)
    assert torch.equal(scores.argmax(1)[stopped], target[stopped])
    assert (boundary_loss(scores, logits.argmax(1), target, 10.0)[stopped] > 0).all()
    for start, end, goal, steps in zip(starts, found.points, target, found.steps, strict=True):
        x = start[None].clone().requires_grad_(True)
        optimiser = torch.optim.Adam([x], lr=settings.lr)
        for _ in range(int(steps)):
            assert int(model.logits(x).argmax()) != int(goal)
            optimiser.zero_grad()
            source = logits.argmax(1)[(starts == start).flatten(1).all(1)]
            boundary_loss(model.logits(x), source, goal[None], 10.0).sum().backward()
            optimiser.step()
        torch.testing.assert_close(end[None], x.detach(), rtol=0, atol=1e-9)


def test_qurds_settings_are_ipguards_with_other_defaults():
    assert METHODS.get("ipguard.qurd") is QurdIPGuard
    said = {
        field.name: (field.default, getattr(IPGuard(), field.name))
        for field in dataclasses.fields(QurdIPGuard)
    }
    assert {name for name, (ours, plain) in said.items() if ours != plain} == {
        *("target", "lr", "tolerance", "clamp"),
    }


def test_clamping_can_be_left_out():
    model, settings = doubled(digits_owner()), IPGuard(clamp=False, **SOME)
    starts = starts_for(model, settings, 0)
    logits = model.logits(starts)
    source, target = logits.argmax(1), logits.argmin(1)
    found = settings.descend(model.logits, starts, source, target, 1.0, CPU)
    points, steps = one_by_one(model, starts, target, 1.0, settings)
    assert torch.equal(found.steps, steps)
    torch.testing.assert_close(found.points, points, rtol=0, atol=1e-9)
    assert found.points.min() < 0


@pytest.mark.parametrize("k", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("adam_reset", [False, True])
def test_two_linear_classes_meet_at_the_margin_after_the_steps_that_algebra_gives(k, adam_reset):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 12, generator=rng, dtype=torch.float64)
    start = torch.rand(5, 3, 2, 2, generator=rng, dtype=torch.float64)

    def logits(x):
        return x.flatten(1) @ weight.T

    settings = IPGuard(adam_reset=adam_reset, clamp=False, lr=1e-3, iterations=5000)
    before = logits(start)
    source, target = before.argmax(1), before.argmin(1)
    found = settings.descend(logits, start, source, target, k, CPU)

    # The gradient w_i - w_j never changes, so each of Adam's steps is lr times its sign.
    uphill = weight[target] - weight[source]  # (n, 12)
    lead = before.gather(1, source[:, None]) - before.gather(1, target[:, None])
    per_step = settings.lr * uphill.abs().sum(1)
    needed = ((lead[:, 0] + k) / per_step).ceil()
    assert torch.equal(found.steps.double(), needed)
    expected = start.flatten(1) + settings.lr * needed[:, None] * uphill.sign()
    torch.testing.assert_close(found.points.flatten(1), expected, rtol=0, atol=1e-6)
    after = logits(found.points)
    margin = (after.gather(1, target[:, None]) - after.gather(1, source[:, None]))[:, 0]
    assert (margin >= k).all()
    assert (margin < k + per_step).all()


def test_of_three_classes_the_point_ends_where_both_boundaries_meet():
    settings = IPGuard(adam_reset=True, clamp=False, lr=1e-3, iterations=5000)
    start = torch.tensor([3.0, 0.0, 2.0], dtype=torch.float64).view(1, 3, 1, 1)

    def logits(x):  # every pixel is the score of one class
        return x.flatten(1)

    found = settings.descend(logits, start, torch.tensor([0]), torch.tensor([1]), 1.0, CPU)
    # Class 1 rises by lr a step and class 0 falls by as much until it meets class 2 at 2. From
    # there each of the two falls in every other step: 1 + u = (2 - u / 2) + k gives u = 4 / 3.
    expected = torch.tensor([4 / 3, 7 / 3, 4 / 3], dtype=torch.float64)
    torch.testing.assert_close(found.points.flatten(), expected, rtol=0, atol=2 * settings.lr)
    assert abs(int(found.steps) - 2333) <= 2


def test_the_loss_is_the_papers():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [1.0, 4.0, 0.5, 0.0], [1.0, 4.0, 2.0, 0.0]])
    source, target = torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])
    # Worked by hand with k = 2: relu(3 - 1 + 2) + relu(2 - 3); both met; relu(2 - 1) of the third.
    assert boundary_loss(logits, source, target, 2.0).tolist() == [4.0, 0.0, 1.0]
    two = boundary_loss(logits[:, :2], source, target, 2.0)
    assert two.tolist() == [4.0, 0.0, 0.0]


def test_an_iteration_is_one_forward_and_one_backward_pass():
    model, settings = doubled(digits_owner()), IPGuard(**{**SOME, "points": 8}, batch=5)
    starts = starts_for(model, settings, 0)
    logits = model.logits(starts)
    source, target = logits.argmax(1), logits.argmin(1)
    with measuring(CPU) as meter:
        found = settings.descend(model.logits, starts, source, target, 1.0, CPU)
    forward = backward = 0
    for steps in found.steps.split(5):
        # A point is seen once more than it moves: where it stands, tested, is what is stored.
        seen = (steps + 1).clamp(max=settings.iterations)
        last = seen.max()
        done = steps.max() < settings.iterations  # nothing left to move: no backward pass
        forward += int(seen.sum())
        backward += int(seen.sum()) - done * int((seen == last).sum())
    assert meter.forward_passes == pytest.approx(forward)
    assert meter.backward_passes == pytest.approx(backward)
    assert 0 < forward < 8 * settings.iterations


def test_protecting_adds_one_pass_before_and_one_after():
    settings, owner = IPGuard(points=4, iterations=3), digits_owner()
    with measuring(CPU) as meter:
        protected = settings.protect(owner, context(party="owner"))
    assert protected.notes["zero_loss"] == 0
    assert meter.forward_passes == pytest.approx(4 * (1 + 3 + 1))
    assert meter.backward_passes == pytest.approx(4 * 3)
    assert protected.ideal_seconds > 0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("settings", [{}, {"initialisation": "noise"}, {"target": "random"}])
def test_the_owner_reads_one_even_where_points_stopped_short(settings, seed):
    method = IPGuard(points=10, iterations=20, batch=4, lr=1e-2, k=1.0, **settings)
    protected = method.protect(digits_owner(), context(seed, "owner"))
    suspect = View(protected.model, method.needs)
    evidence = method.extract(protected.secret, suspect, context(9, "owner"))
    assert evidence.rate == 1.0
    assert suspect.queries == 10
    assert evidence.chance is None
    assert 0 < protected.notes["zero_loss"] <= 10


def test_points_past_the_boundary_carry_the_target_as_their_label():
    method = IPGuard(points=10, iterations=200, lr=1e-2, k=1.0)
    protected = method.protect(digits_owner(), context(0, "owner"))
    assert protected.notes["zero_loss"] == 10
    points, labels = protected.secret["points"], protected.secret["labels"]
    with torch.no_grad():
        logits = protected.model.logits(points)
    lead = logits.topk(2).values.diff().abs()
    assert torch.equal(logits.argmax(1), labels)
    assert (lead > 1 - 1e-4).all()
    assert points.min() >= 0
    assert points.max() <= 1


def test_the_seed_decides_everything():
    method = IPGuard(points=5, iterations=5, target="random", initialisation="noise")
    first, again, other = (
        method.protect(digits_owner(), context(seed, "owner")).secret for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["points"], other["points"])


@pytest.mark.parametrize("target", ["least_likely", "random"])
def test_the_batch_changes_nothing(target):
    owner = doubled(digits_owner())
    found = [
        IPGuard(target=target, batch=batch, k=1.0, **SOME).protect(owner, context(0, "owner"))
        for batch in (1, 4, 100)
    ]
    for other in found[1:]:
        assert torch.equal(found[0].secret["labels"], other.secret["labels"])
        torch.testing.assert_close(
            found[0].secret["points"], other.secret["points"], rtol=0, atol=1e-9
        )
        assert found[0].notes == pytest.approx(other.notes)


def test_k_can_be_given_in_the_owners_median_margins():
    owner, ctx = digits_owner(), context(0, "owner")
    method = IPGuard(points=64, iterations=1, k=2.0, k_unit="median margin")  # all its images
    notes = method.protect(owner, ctx).notes
    with torch.no_grad():
        logits = owner.logits(ctx.images.batch(slice(None), CPU)).double().numpy()
    logits.sort(axis=1)
    margin = sorted(logits[:, -1] - logits[:, -2])[31]  # torch's median is the lower of two
    assert notes["median_margin"] == pytest.approx(margin, rel=1e-4)
    assert notes["k_logits"] == pytest.approx(2 * margin, rel=1e-4)
    assert notes["k_median_margins"] == pytest.approx(2.0)


def test_a_classifier_of_another_size_is_asked_all_the_same():
    method = IPGuard(points=3, iterations=2)
    secret = method.protect(digits_owner(), context(0, "owner")).secret
    larger = build(Architecture("timm", "test_vit", 64, Head(10)))
    assert len(method.extract(secret, View(larger, method.needs), context()).agreement) == 3


WITHOUT_CLASSES = {
    "no head": lambda: testing.owner(),
    "a single class": lambda: with_head(testing.owner(), Head(1), context().rng),
    "masks": lambda: with_head(
        testing.owner(), segmentation_head(testing.owner(), "linear", 11), context().rng
    ),
}


@pytest.mark.parametrize("name", WITHOUT_CLASSES)
def test_an_owner_that_tells_no_classes_apart_is_refused_with_the_way_out(name):
    with pytest.raises(UserError, match="`classifier:` in the suite") as refused:
        IPGuard().protect(WITHOUT_CLASSES[name](), context(0, "owner"))
    assert "\n" not in str(refused.value)


def test_more_points_than_images_are_refused():
    with pytest.raises(UserError, match="the owner has 64 for 65 points"):
        IPGuard(points=65).protect(digits_owner(), context(0, "owner"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("points", 0), ("iterations", 0), ("batch", 0), ("k", -1.0), ("tolerance", -1.0), ("lr", 0.0)],
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(UserError, match=f"{setting}: expected"):
        dataclasses.replace(IPGuard(), **{setting: value})
