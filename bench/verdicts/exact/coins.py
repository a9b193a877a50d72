"""Tell how seldom fair coins agree with a secret as well as a suspect does.

What a query adds to the sum is its distance from 1/2, in steps, with a sign tossed anew. The sum's
tail is computed, not bounded nor drawn. It is taken under coins tilted so that the sum seen becomes
an ordinary one, and turned back by the tilt's likelihood ratio, so p keeps its digits at 1e-1000.
"""

from __future__ import annotations

import functools
import math
from collections import Counter

from bench.records.nouns import Evidence

TILT = 60.0
"""The largest tilt of a coin, in log odds a step: heads all but surely."""


def log10_p(evidence: Evidence) -> float:
    """Return log10 of the chance that coins agree at least as well, in [-queries, 0].

    Raises:
        ValueError: the evidence declares no exact null.

    """
    steps = steps_of(evidence)
    return _log10_tail(tuple(sorted(Counter(map(abs, steps)).items())), sum(steps))


def least_log10_p(evidence: Evidence) -> float:
    """Return log10 of the smallest p these queries allow: that all agree which were read."""
    return -math.log10(2) * sum(step != 0 for step in steps_of(evidence))


def steps_of(evidence: Evidence) -> tuple[int, ...]:
    """Return how far above 1/2 each query lies, in steps of its null."""
    if evidence.null is None:
        raise ValueError("expected evidence with an exact null, got none")
    return evidence.null.steps(evidence.agreement)


def power_of_ten(exponent: float) -> float:
    """Return 10 to a power, or the smallest float where that is below it: no p is 0."""
    return max(math.pow(10.0, exponent), math.ulp(0.0))


def p_text(exponent: float) -> str:
    """Write 10 to a power as tables print p: "0.031", "4.2e-05", "1.3e-412"."""
    if exponent >= -3:
        return f"{10**exponent:.3f}"
    whole = math.floor(exponent)
    digits = f"{10 ** (exponent - whole):.1f}"
    if digits == "10.0":
        digits, whole = "1.0", whole + 1
    return f"{digits}e{whole:03d}"


@functools.lru_cache(maxsize=4096)  # tables ask of one record in several places
def _log10_tail(counted: tuple[tuple[int, int], ...], seen: int) -> float:
    """Return log10 P(sum of +- step >= seen); `counted` says how many queries have a step."""
    import numpy as np

    told = [(step, count) for step, count in counted if step]
    steps, counts = (np.array([pair[i] for pair in told], dtype=np.int64) for i in (0, 1))
    total, coins = int(steps @ counts), int(counts.sum())
    least = (seen + total) // 2  # heads, each worth its step, that make the sum seen
    if least <= 0:
        return 0.0
    if least >= total:
        return -coins * math.log10(2)
    tilt = _tilt(told, least)
    heads = 1 / (1 + np.exp(-tilt * steps))
    # The distribution of the tilted sum, by its characteristic function: 0 .. total, no wrap.
    turn = -2j * np.pi / (total + 1) * np.arange((total + 1) // 2 + 1)
    spectrum = np.ones(len(turn), dtype=np.complex128)
    for step, count, head in zip(steps, counts, heads, strict=True):
        spectrum *= (1 - head + head * np.exp(turn * step)) ** count
    tilted = np.fft.irfft(spectrum, total + 1).clip(0)
    tail = float(tilted[least:] @ np.exp(-tilt * np.arange(total + 1 - least)))
    ratio = float(counts @ np.logaddexp(0, tilt * steps)) - coins * math.log(2) - tilt * least
    return min(0.0, (ratio + math.log(tail)) / math.log(10))


def _tilt(told: list[tuple[int, int]], wanted: int) -> float:
    """Return the log odds a step, 0 or more, at which the mean of the heads' sum is `wanted`."""
    low, high = 0.0, TILT
    for _ in range(60):
        middle = (low + high) / 2
        mean = sum(count * step / (1 + math.exp(-middle * step)) for step, count in told)
        low, high = (middle, high) if mean < wanted else (low, middle)
    return low
