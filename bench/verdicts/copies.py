"""Tell which innocents are one model, from sketches of their weights: plain numbers in and out.

A sketch is a random projection of all matrices of a model, the same for all models of one shape. It
is linear: the distance of two sketches is that of the weights, to about a fifth (64 numbers). So
models that nearly agree are told apart from those that do not without loading both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NEAR = 0.999
"""Cosine of the weights from which two strangers are one model: no two trainings come as near."""

ROUNDED = 1 - 2e-6
"""The same for descendants of one owner. All of these are nearer to each other than `NEAR`, so only
what rounding explains is one model: bfloat16 moves weights by 0.1 %, the cosine by 6e-7."""


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Estimate the cosine of two models' weights from their sketches; exact where they agree."""
    apart = math.dist(one, other) ** 2 - (math.hypot(*one) - math.hypot(*other)) ** 2
    sizes = math.hypot(*one) * math.hypot(*other)
    return 1 - apart / (2 * sizes) if sizes else float(one == other)


def one_model(sketches: Sequence[Sequence[float]], least: float) -> list[int]:
    """Return for every model the first that it is one with: a chain of near ones is one model."""
    first = list(range(len(sketches)))
    for i, one in enumerate(sketches):
        for j in range(i):
            if first[i] != first[j] and cosine(one, sketches[j]) > least:
                joined, kept = sorted((first[i], first[j]), reverse=True)
                first = [kept if name == joined else name for name in first]
    return first
