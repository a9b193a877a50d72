"""Say how far a number can be trusted: intervals for rates, means and differences."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Interval = tuple[float, float]
"""A 95 % confidence interval, low and high end, unless a function says otherwise."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean rate with its two kinds of spread, never mixed."""

    mean: float
    within: Interval  # Wilson, over the queries of one suspect
    between: Interval | None  # lowest and highest model; None with a single model
    models: int
    queries: int


@functools.lru_cache(maxsize=4096)  # tables say the same rate in several places
def wilson(rate: float, n: int) -> Interval:
    """Return the Wilson interval of a proportion seen over `n` trials."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(rate * n, n, method="wilson")
    return float(low), float(high)


def spread(rates: Sequence[float], queries: int) -> Spread:
    """Summarise one rate per model, each over `queries` queries."""
    mean = fmean(rates)
    return Spread(mean, wilson(mean, queries), between(rates), len(rates), queries)


def between(values: Sequence[float]) -> Interval | None:
    """Return the lowest and highest of several models, or None for one: it has no spread."""
    return (min(values), max(values)) if len(values) > 1 else None


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's interval for the mean, or None for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def means_agree(ones: Sequence[float], others: Sequence[float]) -> bool:
    """Say whether Welch's 95 % interval for the difference of two means covers 0.

    Each sample needs two values at least.
    """
    from scipy.stats import t

    parts = [(stdev(values) ** 2 / len(values), len(values) - 1) for values in (ones, others)]
    squared, apart = sum(part for part, _ in parts), abs(fmean(ones) - fmean(others))
    if squared == 0.0:
        return math.isclose(apart, 0.0, abs_tol=1e-12)  # a mean of equal values may round
    freedom = squared**2 / sum(part**2 / free for part, free in parts)
    return apart <= float(t.ppf(0.975, freedom)) * math.sqrt(squared)


def difference_interval(before: float, after: float, n: int) -> Interval:
    """Return Newcombe's interval for `after - before`, two accuracies over `n` images each.

    The images are the same, but totals do not say which ones both got right, so the pairing cannot
    be used: the two count as independent, which makes the interval too wide rather than too narrow
    whenever the models tend to err on the same images.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(
        round(after * n), n, round(before * n), n, method="newcomb", compare="diff"
    )
    return float(low), float(high)


def paired_interval(pairs: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> Interval:
    """Return Newcombe's interval for the change of an accuracy on the same images, paired.

    A pair says which images one model got right, then which another did; of several pairs it is the
    interval of one, at their means. Source: R. G. Newcombe, "Improved confidence intervals for the
    difference between binomial proportions based on paired data", Statistics in Medicine 17, 1998,
    method 10.
    """
    n = len(pairs[0][0])
    before, after = (fmean(fmean(pair[side]) for pair in pairs) for side in (0, 1))
    both = fmean(fmean(a and b for a, b in zip(*pair, strict=True)) for pair in pairs)
    together, apart = both - before * after, before * (1 - before) * after * (1 - after)
    if together > 0:  # Newcombe's correction for continuity
        together = max(0.0, together - 1 / (2 * n))
    phi = together / math.sqrt(apart) if apart > 0 else 0.0
    (low, high), (lower, upper) = wilson(before, n), wilson(after, n)
    down, up = (after - lower, high - before), (upper - after, before - low)
    below, above = (math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)) for x, y in (down, up))
    return after - before - below, after - before + above


def upper_bound(hits: int, trials: int, level: float = 0.05) -> float | None:
    """Return the exact one-sided Clopper-Pearson bound on a rate; None without trials."""
    # The upper end of a two-sided interval at twice the level.
    return exact(hits, trials, 2 * level)[1] if trials else None


def exact(hits: int, trials: int, alpha: float) -> Interval:
    """Return the two-sided Clopper-Pearson interval of a proportion."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(hits, trials, alpha=alpha, method="beta")
    return float(low), float(high)
