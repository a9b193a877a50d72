"""Measure what a stage costs where it runs: seconds, passes through the model, peak memory."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

_STATUS = Path("/proc/self/status")

_CLEAR = Path("/proc/self/clear_refs")

_SCHEDULED = Path("/proc/thread-self/schedstat")


@dataclass(slots=True, eq=False)  # two meters may read alike and are two all the same
class Meter:
    """Running totals of one measured block.

    Passes are images through the whole depth of a model; half the blocks count half.
    """

    seconds: float = 0.0
    waited: float = 0.0  # of them, for a processor that others had
    images: int = 0  # sent into a model at all, however far
    queries: int = 0  # images that a suspect was asked about
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    peak_memory_mb: float = 0.0
    micro_batch: int | None = None  # the smallest that want of memory led to, if it did


_running: list[Meter] = []


def count(forward: float = 0.0, backward: float = 0.0, images: int = 0, queries: int = 0) -> None:
    """Add passes to every meter that is running."""
    for meter in _running:
        meter.images += images
        meter.queries += queries
        meter.forward_passes += forward
        meter.backward_passes += backward


def note_micro_batch(size: int) -> None:
    """Tell every meter that is running that memory was short, and that `size` images were tried."""
    for meter in _running:
        meter.micro_batch = min(size, meter.micro_batch or size)


def bookmark() -> Callable[[], None]:
    """Return what takes back the passes counted from here on: they came to nothing."""
    counts = ("images", "queries", "forward_passes", "backward_passes")
    before = [(meter, name, getattr(meter, name)) for meter in _running for name in counts]

    def take_back() -> None:
        for meter, name, value in before:
            setattr(meter, name, value)

    return take_back


def counting() -> bool:
    """Say whether any meter is running."""
    return bool(_running)


@contextmanager
def measuring(device: torch.device) -> Iterator[Meter]:
    """Measure the block, device-synchronised; the meter is complete when the block ends."""
    meter = Meter()
    _note_peak(device)  # resetting the mark would lose it for the meters around this one
    _running.append(meter)
    _reset_peak(device)
    start, queued = now(device), waited()
    try:
        yield meter
    finally:
        meter.seconds += now(device) - start  # `aside` has subtracted its own share already
        meter.waited += waited() - queued
        _note_peak(device)
        _running.remove(meter)


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Leave the block out of every running meter: timing an ideal is not part of the work."""
    before = [(m, m.seconds, m.waited, m.micro_batch) for m in _running]
    uncount = bookmark()
    start, queued = now(device), waited()
    try:
        yield
    finally:
        elapsed, waiting = now(device) - start, waited() - queued
        uncount()
        for meter, seconds, in_line, micro_batch in before:
            meter.seconds = seconds - elapsed  # which holds what an inner `aside` took already
            meter.waited = in_line - waiting
            meter.micro_batch = micro_batch


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the time of one run of `work`, device-synchronised, in seconds."""
    start = now(device)
    work()
    return now(device) - start


@dataclass(slots=True, eq=False)
class Ideal:
    """What the fewest passes take, timed beside the work in some of its rounds, and put aside.

    `rounds` are the numbers of those; `seconds` hold what came of each, of one image or one step.
    """

    device: torch.device
    rounds: Collection[int] = range(1)
    seconds: list[float] = field(default_factory=list)

    def time(self, passes: Callable[[], object], images: int = 1) -> float:
        """Time one run of `passes`, left out of every running meter; return its share of each."""
        with aside(self.device):
            self.seconds.append(timed(passes, self.device) / images)
        return self.seconds[-1]

    @property
    def median(self) -> float:
        """The round in the middle: one that met with a hiccup counts no more than another."""
        return median(self.seconds)


def waited() -> float:
    """Return the seconds this thread was ready and another had its processor; 0 off Linux."""
    # `bench.workload` has the same: it runs in older revisions, which lack this module.
    try:
        return int(_SCHEDULED.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def now(device: torch.device) -> float:
    """Return the clock in seconds, after the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _note_peak(device: torch.device) -> None:
    """Raise every running meter's peak to the mark that stands now."""
    for meter in _running:
        meter.peak_memory_mb = max(meter.peak_memory_mb, _peak(device))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        with suppress(AttributeError, OSError):  # a C library without malloc_trim
            ctypes.CDLL(None).malloc_trim(0)  # what earlier stages freed is not this one's
        try:
            _CLEAR.write_text("5")  # resets the process's high-water mark (Linux)
        except OSError:  # a hardened container: the mark is then the process's whole life
            return


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
