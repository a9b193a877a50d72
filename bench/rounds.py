"""Settle how much longer one piece of work takes than another, by as many rounds as that takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

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
