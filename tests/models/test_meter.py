import time

import pytest
import torch
from made_models import CPU

from bench.models import meter as module
from bench.models.meter import (
    _CLEAR,
    _STATUS,
    Ideal,
    aside,
    count,
    counting,
    measuring,
    timed,
)


def test_counts_go_to_every_running_meter_and_to_none_after():
    with measuring(CPU) as outer:
        count(forward=1, images=2)
        with measuring(CPU) as inner:
            count(forward=0.5, backward=3, images=4)
    count(forward=100)
    assert (outer.forward_passes, outer.backward_passes, outer.images) == (1.5, 3, 6)
    assert (inner.forward_passes, inner.backward_passes, inner.images) == (0.5, 3, 4)
    assert not counting()


def test_seconds_are_those_of_the_block(monkeypatch):
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(module, "now", lambda device: next(clock))
    with measuring(CPU) as meter:
        pass
    assert meter.seconds == 4.0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_is_put_aside_counts_for_nothing_however_deeply(monkeypatch, depth):
    ticks = iter(range(100))  # every look at the clock costs one second
    monkeypatch.setattr(module, "now", lambda device: float(next(ticks)))

    def nested(levels):
        with aside(CPU):
            count(forward=9, backward=9, images=9)
            if levels > 1:
                nested(levels - 1)

    with measuring(CPU) as meter:
        count(forward=1)
        nested(depth)
        count(forward=1)
    # 2 depth looks lie in between; the outermost aside takes 2 depth - 1 seconds of 2 depth + 1.
    assert meter.seconds == 2.0
    assert (meter.forward_passes, meter.backward_passes, meter.images) == (2, 0, 0)


def test_time_spent_waiting_for_a_processor_is_told_apart_and_put_aside_alike(monkeypatch):
    queued = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(module, "waited", lambda: next(queued))
    with measuring(CPU) as meter:
        with aside(CPU):
            count(queries=9)
        count(queries=4)
    assert (meter.waited, meter.queries) == (7.0 - 2.0, 4)


def test_a_meter_started_aside_measures_all_the_same():
    with measuring(CPU) as outer, aside(CPU), measuring(CPU) as inner:
        count(forward=2)
    assert (outer.forward_passes, inner.forward_passes) == (0, 2)


def test_meters_that_read_alike_are_told_apart(monkeypatch):
    monkeypatch.setattr(module, "now", lambda device: 0.0)
    monkeypatch.setattr(module, "_peak", lambda device: 0.0)
    with measuring(CPU) as outer:
        with measuring(CPU) as inner:
            pass
        count(forward=1)
    assert (outer.forward_passes, inner.forward_passes) == (1, 0)


def test_an_error_stops_the_meter_too():
    with pytest.raises(RuntimeError), measuring(CPU):
        raise RuntimeError
    assert not counting()


def test_peak_memory_sees_what_was_allocated_and_freed():
    with measuring(CPU) as outer:
        torch.ones(64 * 2**20 // 4).add_(1)
        with measuring(CPU) as inner:
            torch.ones(8)
    if _CLEAR.exists() and _STATUS.exists():
        assert outer.peak_memory_mb > inner.peak_memory_mb + 32
    assert outer.peak_memory_mb >= inner.peak_memory_mb > 0


def test_a_time_covers_the_work():
    assert timed(lambda: time.sleep(0.02), CPU) >= 0.02


def test_an_ideal_is_timed_beside_the_work_and_counts_for_nothing(monkeypatch):
    ticks = iter(range(100))  # every look at the clock costs one second
    monkeypatch.setattr(module, "now", lambda device: float(next(ticks)))
    with measuring(CPU) as alone:
        count(forward=1)
    with measuring(CPU) as meter:
        count(forward=1)
        assert Ideal(CPU).time(lambda: count(forward=9), images=4) == 0.25
    # Besides its own, `aside` costs the meter around it the two looks that it takes itself.
    assert (alone.seconds, meter.seconds) == (1.0, 2.0)
    assert meter.forward_passes == 1


def test_a_hiccup_in_one_round_moves_no_ideal(monkeypatch):
    took = iter([0.5, 90.0, 1.5])
    monkeypatch.setattr(module, "timed", lambda passes, device: next(took))
    ideal = Ideal(CPU, range(0, 9, 4))
    for number in range(9):
        if number in ideal.rounds:
            ideal.time(lambda: None, images=2)
    assert (ideal.seconds, ideal.median) == ([0.25, 45.0, 0.75], 0.75)
