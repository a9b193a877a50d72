"""Check of a method with an exact null that its evidence owes nothing to the secret's bits.

Where that is so, redrawn bits turn some queries over and leave every distance from 1/2 as it was.
A method that fits anything to its bits, or picks queries by them, moves distances, or has p-values
below what coins allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from bench.records.nouns import Evidence
from bench.verdicts.exact.coins import log10_p, steps_of

LEVEL = 1e-6
"""How seldom a sound method is blamed, by any one of the checks that leave something to chance."""


S = TypeVar("S")
"""A secret, as the method keeps it."""

M = TypeVar("M")
"""A model, as the method reads it."""


def why_unfair(
    read: Callable[[S, M], Evidence],
    secret: S,
    redrawn: Sequence[S],
    released: M,
    innocent: Sequence[M],
) -> str:
    """Say why the null of a method is not exact, from what it reads; "" if nothing speaks for that.

    `redrawn` are secrets with other bits. They are tried on the released model too, which knows
    nothing of them. `innocent` models are read with the secret's own bits, which a method may have
    picked to fit them.
    """
    for suspect in (released, *innocent[:1]):
        said = complaint(read(secret, suspect), [read(other, suspect) for other in redrawn])
        if said:
            return said
    return next(filter(None, (too_good(read(secret, model)) for model in innocent)), "")


def complaint(first: Evidence, redrawn: Sequence[Evidence]) -> str:
    """Say how evidence off one suspect betrays its bits, drawn anew each time; "" if it does not.

    `first` was read with the secret's own bits, `redrawn` with others.
    """
    if any(evidence.null != first.null for evidence in redrawn) or first.null is None:
        return "extract() declares another null, or none, once bits are redrawn"
    if len({len(evidence.agreement) for evidence in (first, *redrawn)}) > 1:
        return "extract() asks another number of queries once bits are redrawn"
    steps = [steps_of(evidence) for evidence in (first, *redrawn)]
    moved = sum(len({*map(abs, query)}) > 1 for query in zip(*steps, strict=True))
    if moved:
        return f"distances from 1/2 depend on the bits, in {moved} of {len(steps[0])} queries"
    return _kept(steps) or _uneven(redrawn)


def too_good(innocent: Evidence) -> str:
    """Say that a model which owes nothing to the released one agrees with the secret; "" if not."""
    p = log10_p(innocent)
    return f"p = 1e{p:.0f} off an innocent model" if p < math.log10(LEVEL) else ""


def _kept(steps: Sequence[Sequence[int]]) -> str:
    """Say that redrawn bits are too often the secret's own, or too seldom."""
    from scipy.stats import binomtest

    pairs = [
        (own > 0) == (drawn > 0)
        for other in steps[1:]
        for own, drawn in zip(steps[0], other, strict=True)
        if own
    ]
    if not pairs or binomtest(sum(pairs), len(pairs)).pvalue >= LEVEL:
        return ""
    return f"redrawn() leaves {sum(pairs)} of {len(pairs)} bits as they were, not half of them"


def _uneven(redrawn: Sequence[Evidence]) -> str:
    """Say that p-values under redrawn bits are smaller than uniform ones."""
    from scipy.stats import kstest

    # One-sided: p-values that come in jumps are larger than uniform ones, which harms nobody.
    p_values = [10 ** log10_p(evidence) for evidence in redrawn]
    if kstest(p_values, "uniform", alternative="greater").pvalue >= LEVEL:
        return ""
    return f"p-values under redrawn bits are too small: {sorted(p_values)[:3]} the smallest"
