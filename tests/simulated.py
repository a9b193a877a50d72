"""Scores as innocent models may have them, and how often chance alone may err."""

import math

import numpy as np
from made import cell

from bench.records.nouns import Spec
from bench.verdicts.families import Answer, paired
from bench.verdicts.separation import Reading

SIZES = (5, 19, 40, 99, 299)


def correlated(rng, n):
    """Scores of models that share a large part: exchangeable, far from independent."""
    return rng.normal() + 0.3 * rng.normal(size=n)


SCORES = {
    "skewed": lambda rng, n: rng.beta(0.3, 4, n),
    "heavy-tailed": lambda rng, n: rng.standard_cauchy(n),
    "tied": lambda rng, n: rng.integers(0, 3, n) / 2,
    "mostly zero": lambda rng, n: rng.binomial(1, 0.03, n) * rng.random(n),
    "all zero": lambda rng, n: np.zeros(n),
    "correlated": correlated,
}


def allowed(level, trials):
    """The most a test of this level errs by chance alone in all but 1 of 2,000 runs."""
    return level + 3.3 * math.sqrt(level * (1 - level) / trials)


def named(scores, who, key="0"):
    return [Reading(f"{who} {i}", key, float(s)) for i, s in enumerate(scores)]


def pairs(scores, who):
    return [(f"{who} {i}", float(s)) for i, s in enumerate(scores)]


def answer(asked, owned, key=None, reading=None):
    """Answer a cell with a key of its owner's and seed's own, and a reading of its own."""
    own = f"{asked.method.text} {asked.owner.text} {asked.method_seed}"
    return Answer(asked, owned, key or own, reading or f"{own} {asked.attack}")


def answers(method, clusters):
    """Detections per cluster of owner and key, one attack each."""
    return [
        answer(cell(Spec(method), attack=(Spec(f"attack {i}"),), seed=seed), bool(hit))
        for seed, hits in enumerate(clusters)
        for i, hit in enumerate(hits)
    ]


def compared(first, second, alpha=0.05):
    return paired(answers("a", first), answers("b", second), alpha)
