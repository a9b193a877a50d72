import time

import pytest
import torch
from made_models import CPU

from bench import testing
from bench.models import meter
from bench.models.vision import clone
from bench.records.nouns import Access
from methods.adv_tra import AdvTra, Tally

HOW = AdvTra(mode="official", classes=3, max_iterations=20)
"""The slice: eight digits, two hops each on mini, at least 6 epochs a hop instead of 77."""


def step(model, x, target, size):
    x = x.clone().requires_grad_(True)
    (-model.logits(x)[0, target]).backward()  # through the weights as well: nobody froze them
    model.zero_grad()
    moved = x.detach() - size * x.grad.sign()
    return torch.where((moved < 0) | (moved > 1), x.detach(), moved)


def hop(model, start, target):
    """Search as the authors' code does: h passes to walk, h more to classify, one image."""
    sizes = torch.tensor([0.05, 0.048], requires_grad=True)
    for epoch in range(HOW.max_iterations):
        points = [start]
        for size in sizes.detach():
            points.append(step(model, points[-1], target, size))
        first, last = (model.logits(points[i]).argmax().item() for i in (0, 2))
        if first != target and last == target and epoch > HOW.max_iterations / 4:
            return sizes.detach()
        later = sizes[1].detach()  # takes no gradient yet when the penalty is built
        penalty = (HOW.brake * sizes[0] - later) ** 2 + (-sizes[sizes < 0]).sum()
        (slope,) = torch.autograd.grad(penalty, sizes)
        factor = 1.0
        if first == target:
            factor = HOW.length_control + 0.049 * epoch / HOW.max_iterations
        elif last != target:
            factor = 1 / HOW.length_control - 0.049 * epoch / HOW.max_iterations
        sizes = ((sizes.detach() - HOW.step_lr * slope) * factor).requires_grad_(True)
        if (sizes > 1).any():
            break
    return None


def one_at_a_time(model, start, targets):
    arrived = 0
    for x, goals in zip(start.split(1), targets.tolist(), strict=True):
        for target in goals:
            sizes = hop(model, x, target)
            if sizes is None:
                break
            points = [x]
            for size in [*sizes, *reversed(sizes)]:
                points.append(step(model, points[-1], target, size))
            for point in points:  # looked at one by one, then labelled as a batch
                model.logits(point)
            model.logits(torch.cat(points)).argmax(1)
            x = points[-1]
        else:
            arrived += 1
    return arrived


@pytest.mark.perf
def test_lock_step_takes_fewer_passes_and_less_time_than_one_image_after_another():
    owner = testing._owner_for(Access.LABELS)
    theirs, ours = clone(owner), clone(owner).requires_grad_(False)
    images = testing.context(0, "owner").images
    start = images.batch(slice(0, 8), CPU)
    orders = torch.rand(8, 10, generator=torch.Generator().manual_seed(0)).argsort(1)
    targets = orders[orders != images.labels[:8, None]].view(8, 9)[:, : HOW.hops]

    def lock_step():
        walks = HOW._walk(ours, start, targets, Tally.of(HOW.batch, HOW.hops, CPU))
        HOW._read(lambda x: ours.logits(x).argmax(1), walks, CPU)
        return len(walks)

    lock_step()  # warms up
    began = time.process_time()  # what others do on this machine meanwhile is not counted
    with meter.measuring(CPU) as official:
        reference = one_at_a_time(theirs, start, targets)
    between = time.process_time()
    with meter.measuring(CPU) as batched:
        assert min(lock_step(), reference) >= 4
    ratio = (between - began) / (time.process_time() - between)
    # In forward passes: one backward to the input alone costs one, to the weights as well two.
    full = official.forward_passes + 2 * official.backward_passes
    least = batched.forward_passes + batched.backward_passes
    print(
        f"one at a time / lock step: {full:.0f} / {least:.0f} passes = {full / least:.2f}, "
        f"time {ratio:.2f}"
    )
    # Labels that come with gradients, and no gradient where none is used: 4 h against 2 h + 1.
    # The start, looked at once a hop and not once an epoch, makes that 2 h - 1.
    assert full / least > 8 / 5
    assert ratio > 1
