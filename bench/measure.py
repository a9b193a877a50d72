"""Measure what a stage costs where it runs: seconds, passes through the model, peak memory."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(slots=True, eq=False)  # two meters may read alike and are two all the same
class Meter:
    """Running totals of one measured block.

    Passes are images through the whole depth of a model; half the blocks count half.
    """

    seconds: float = 0.0
    images: int = 0  # sent into a model at all, however far
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    peak_memory_mb: float = 0.0


_running: list[Meter] = []


def count(forward: float = 0.0, backward: float = 0.0, images: int = 0) -> None:
    """Add passes to every meter that is running."""
    for meter in _running:
        meter.images += images
        meter.forward_passes += forward
        meter.backward_passes += backward


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
    start = now(device)
    try:
        yield meter
    finally:
        meter.seconds += now(device) - start  # `aside` has subtracted its own share already
        _note_peak(device)
        _running.remove(meter)


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Leave the block out of every running meter: timing an ideal is not part of the work."""
    before = [(m, m.seconds, m.images, m.forward_passes, m.backward_passes) for m in _running]
    start = now(device)
    try:
        yield
    finally:
        elapsed = now(device) - start
        for meter, seconds, images, forward, backward in before:
            meter.seconds = seconds - elapsed  # which holds what an inner `aside` took already
            meter.images = images
            meter.forward_passes, meter.backward_passes = forward, backward


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the time of one run of `work`, device-synchronised, in seconds."""
    start = now(device)
    work()
    return now(device) - start


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
