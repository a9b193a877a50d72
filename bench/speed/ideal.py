"""Count what a piece of work takes, and time it by the fewest passes that could do it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from bench.models.meter import measuring, timed
from bench.workload import Prepared, Workload


@dataclass(frozen=True, slots=True)
class Counts:
    """What a run took, the same on every machine.

    Passes are images through the whole depth. A training is an optimiser that took a step. `files`
    counts all that were written to the store, `bytes` those of tensors alone: a sidecar holds
    times, whose digits vary.
    """

    forward: float = 0.0
    backward: float = 0.0
    images: int = 0  # sent into a model at all, however far
    queries: int = 0  # images a suspect was asked about
    trainings: int = 0
    steps: int = 0  # of optimisers
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Effort:
    """What a workload took here, or in words why that could not be measured.

    `share` is what a run reaches of the device's throughput, the ideal's operations counted.
    """

    counts: Counts | None = None
    ratio: Ratio | None = None  # of its time to the ideal's
    share: float | None = None
    reason: str = ""


def effort(
    workload: Workload,
    device: torch.device,
    limit: float | None = None,
    ceiling: float | None = None,
) -> Effort:
    """Prepare a workload, count one run, and time it beside its ideal until `limit` is settled."""
    try:
        prepared = workload.prepare(device)
        counts = counted(prepared, device)
        if prepared.ideal is None:
            return Effort(counts)
        prepared.ideal()  # the first is cold, as the run's was
        quickest = [float("inf")]
        ratio = settled(functools.partial(_pair, prepared, device, quickest), limit)
        share = None if ceiling is None else _operations(prepared.ideal) / quickest[0] / ceiling
    except Exception as error:  # whatever work it is: its row says so, and others are measured
        return Effort(reason=" ".join(f"{type(error).__name__}: {error}".split())[:200])
    return Effort(counts, ratio, share)


def counted(prepared: Prepared, device: torch.device) -> Counts:
    """Run once and count."""
    stepped = list[Optimizer]()

    def step(optimiser: Optimizer, *_: object) -> None:
        stepped.append(optimiser)

    before, hook = _files(prepared.store), register_optimizer_step_post_hook(step)
    try:
        with measuring(device) as meter:
            prepared.run()
    finally:
        hook.remove()
    after = _files(prepared.store)
    written = [path for path, state in after.items() if before.get(path) != state]
    return Counts(
        forward=round(meter.forward_passes, 6),  # sums of shares of the depth, in whatever order
        backward=round(meter.backward_passes, 6),
        images=meter.images,
        queries=meter.queries,
        trainings=len({id(optimiser) for optimiser in stepped}),
        steps=len(stepped),
        files=len(written),
        bytes=sum(after[path][0] for path in written if path.suffix == ".safetensors"),
    )


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second that the device reaches on large matrices, best of several."""
    side = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    multiply = functools.partial(torch.mm, left, right)
    quickest: float = min(timed(multiply, device) for _ in range(10))
    return 2 * side**3 / quickest


def _pair(
    prepared: Prepared, device: torch.device, quickest: list[float], run_first: bool
) -> float:
    """Time run and ideal, in this order or the other; keep the quickest run's time."""
    assert prepared.ideal is not None
    order = (prepared.run, prepared.ideal)
    spent = {work: _seconds(work, device) for work in (order if run_first else order[::-1])}
    quickest[0] = min(quickest[0], spent[prepared.run])
    return spent[prepared.run] / spent[prepared.ideal]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the time of one run, less what it puts aside and what others had of its processor."""
    with measuring(device) as meter:
        work()
    return meter.seconds - meter.waited


def _files(store: Path | None) -> dict[Path, tuple[int, int, int]]:
    """Return the files below a folder, with what a write changes: size, time, place on the disk."""
    if store is None:
        return {}
    found = {path: path.stat() for path in store.rglob("*") if path.is_file()}
    return {path: (s.st_size, s.st_mtime_ns, s.st_ino) for path, s in found.items()}


def _operations(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


LEAST, MOST = 9, 45
"""Rounds: fewer give no interval of 99 %, more are not spent on a machine that is too noisy."""

NARROW = 0.05
"""The width, relative to the median, at which a ratio without a limit is known well enough."""

ERROR = 0.01
"""How often the interval may miss; small, for it is looked at after every round."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of paired ratios, with an interval of 99 % for it, and the rounds it took."""

    median: float
    low: float
    high: float
    rounds: int


def settled(pair: Callable[[bool], float], limit: float | None = None) -> Ratio:
    """Take rounds until the ratio is above or below `limit`, or without one until it is known.

    `pair` times both, side by side, and returns the ratio; it is told which goes first, in turns.
    """
    ratios = list[float]()
    while len(ratios) < MOST:
        ratios.append(pair(len(ratios) % 2 == 0))
        if len(ratios) < LEAST:
            continue
        found = interval(ratios)
        if limit is None and found.high - found.low <= NARROW * found.median:
            break
        if limit is not None and not found.low <= limit < found.high:
            break
    return found


def interval(ratios: Sequence[float]) -> Ratio:
    """Return the median between two of the ratios themselves, whatever their distribution.

    The k-th smallest lies above the true median as often as fewer than k of n coins show heads.
    """
    ordered, rounds = sorted(ratios), len(ratios)
    rank, above = 0, 0.5**rounds
    while 2 * above <= ERROR:
        rank += 1
        above += math.comb(rounds, rank) * 0.5**rounds
    assert rank, f"an interval takes {LEAST} rounds, got {rounds}"
    return Ratio(median(ordered), ordered[rank - 1], ordered[-rank], rounds)
