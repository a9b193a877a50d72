"""Say which methods can be told apart over keys, and which cannot.

Source: J. Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006,
https://jmlr.org/papers/v7/demsar06a.html, section 3.2: Friedman's test over all methods at once,
then Nemenyi's critical difference of mean ranks. His data sets are keys here. Keys of one owner
share its model and its innocents, so what is said holds for this owner and these attacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

ALPHA = 0.05


@dataclass(frozen=True)
class Order:
    """The mean ranks of methods, 1 the best, and what difference of them is more than chance."""

    ranks: Mapping[str, float]  # the best first
    keys: int
    difference: float | None  # Nemenyi's; None with fewer than two keys or methods
    p_value: float | None  # Friedman's; None with fewer than three methods

    @property
    def groups(self) -> list[list[str]]:
        """Return the largest sets of methods that nothing tells apart, the best first."""
        names = list(self.ranks)
        if self.difference is None or (self.p_value is not None and self.p_value > ALPHA):
            return [names]
        runs = [
            [name for name in names[start:] if self._alike(names[start], name)]
            for start in range(len(names))
        ]
        return [
            run
            for n, run in enumerate(runs)
            if not any(set(run) <= set(other) for other in runs[:n])
        ]

    def _alike(self, best: str, name: str) -> bool:
        assert self.difference is not None
        return self.ranks[name] - self.ranks[best] < self.difference


def order(scores: Mapping[str, Sequence[float]]) -> Order:
    """Rank methods by their scores, key by key, a higher score the better; ties share a rank.

    Every method has a score for every key, in one order of the keys.
    """
    from scipy.stats import friedmanchisquare, rankdata

    names = list(scores)
    keys = min(map(len, scores.values()), default=0)
    ranked = [rankdata([-scores[name][key] for name in names]) for key in range(keys)]
    means = (
        {name: fmean(float(r[i]) for r in ranked) for i, name in enumerate(names)} if keys else {}
    )
    p_value = None
    if keys > 1 and len(names) > 2:
        tied = all(len(set(map(float, r))) == 1 for r in ranked)  # nothing is divided by nothing
        p_value = 1.0 if tied else float(friedmanchisquare(*scores.values()).pvalue)
    return Order(
        ranks=dict(sorted(means.items(), key=lambda one: one[1])),
        keys=keys,
        difference=critical_difference(len(names), keys),
        p_value=p_value,
    )


def critical_difference(methods: int, keys: int, alpha: float = ALPHA) -> float | None:
    """Return Nemenyi's critical difference of mean ranks; None where there is nothing to tell."""
    from scipy.stats import studentized_range

    if methods < 2 or keys < 2:
        return None
    quantile = float(studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * keys))
