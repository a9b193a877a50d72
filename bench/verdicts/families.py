"""Decide several questions together: families of verdicts, and methods compared in pairs."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from bench.records.nouns import Cell, canonical
from bench.verdicts.verdict import Verdict, innocents_needed

ENOUGH_KEYS = 4
"""Keys; among fewer the bootstrap sees too little of how they differ."""


@dataclass(frozen=True, slots=True)
class Family:
    """Verdicts passed together, so that calling any innocent owned has the chance alpha in all."""

    outcomes: tuple[Literal["owned", "not owned", "undecided"], ...]
    adjusted: tuple[float | None, ...]  # Holm's p-values, to be compared with alpha itself
    needed: int  # innocents per null without which the least p cannot survive


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a method's verdict calls one copy owned, and what that hangs on.

    `key` names the secret it was read with, whose luck it shares; answers with one `reading` are
    one, however often the suspect was asked for.
    """

    cell: Cell
    owned: bool
    key: str
    reading: str


Difference = Literal["first detects more", "second detects more", "no difference", "undecided"]


@dataclass(frozen=True, slots=True)
class Paired:
    """Two methods on the same recipes, and whether they differ by more than chance."""

    outcome: Difference
    only_first: int
    only_second: int
    pairs: int
    unmatched: int  # recipes that only one of the two answered
    clusters: int
    p_value: float | None  # None without pairs
    attainable: float  # the smallest p that so many clusters allow
    needed: int  # clusters without which nothing is ever decided

    @property
    def total(self) -> int:
        """Return how many more copies the first detects than the second."""
        return self.only_first - self.only_second


def holm(verdicts: Sequence[Verdict], alpha: float) -> Family:
    """Pass verdicts together by Holm's procedure, whatever their dependence.

    A verdict without a p-value counts as a hypothesis all the same. Undecided is one that could not
    survive even if every suspect scored above all innocents there are.
    """
    if not verdicts:
        return Family((), (), innocents_needed(alpha))
    owned, possible, adjusted = _together(verdicts, alpha)
    return Family(
        outcomes=tuple(
            "owned" if yes else "not owned" if could else "undecided"
            for yes, could in zip(owned, possible, strict=True)
        ),
        adjusted=adjusted,
        needed=innocents_needed(alpha / len(verdicts)),
    )


def _together(
    tests: Sequence[Verdict | Paired], alpha: float
) -> tuple[list[bool], list[bool], tuple[float | None, ...]]:
    """Say by Holm's procedure what is rejected, what could have been, and the adjusted p-values."""
    from statsmodels.stats.multitest import multipletests

    p_values = [1.0 if test.p_value is None else test.p_value for test in tests]
    least = [1.0 if test.p_value is None else test.attainable for test in tests]
    rejected, adjusted, *_ = multipletests(p_values, alpha, method="holm")
    possible, *_ = multipletests(least, alpha, method="holm")
    known = zip(tests, adjusted, strict=True)
    told = tuple(None if test.p_value is None else float(p) for test, p in known)
    return rejected.tolist(), possible.tolist(), told


def paired(first: Iterable[Answer], second: Iterable[Answer], alpha: float) -> Paired:
    """Compare two methods on the recipes both answered.

    McNemar's test counts discordant pairs as independent, but copies read with one key of either
    method share its luck. So the unit of exchange is the cluster of pairs that keys tie together:
    were the methods alike, each cluster could as well have come out with the two swapped. All
    2 ** clusters swaps are counted, exactly.
    """
    ours, theirs = ({_recipe(a.cell): a for a in side} for side in (first, second))
    made = ((ours[recipe], theirs[recipe]) for recipe in sorted(ours.keys() & theirs.keys()))
    pairs = [*{(one.reading, other.reading): (one, other) for one, other in made}.values()]
    lone = {(ours.get(r) or theirs[r]).reading for r in ours.keys() ^ theirs.keys()}
    differences: Counter[int] = Counter()
    for cluster, (one, other) in zip(_clusters(pairs), pairs, strict=True):
        differences[cluster] += one.owned - other.owned
    clusters = len(differences)
    attainable = min(1.0, 2.0 ** (1 - clusters))
    p_value = _sign_flips(list(differences.values())) if pairs else None
    rejected = p_value is not None and p_value <= alpha
    return Paired(
        outcome=_difference(sum(differences.values()), rejected, attainable <= alpha),
        only_first=sum(one.owned and not other.owned for one, other in pairs),
        only_second=sum(other.owned and not one.owned for one, other in pairs),
        pairs=len(pairs),
        unmatched=len(lone),
        clusters=clusters,
        p_value=p_value,
        attainable=attainable,
        needed=_clusters_needed(alpha),
    )


def paired_together(
    found: Sequence[Paired], alpha: float
) -> tuple[tuple[Paired, float | None], ...]:
    """Pass comparisons together by Holm's procedure: each as then decided, with its adjusted p."""
    if not found:
        return ()
    needed = _clusters_needed(alpha / len(found))
    together = zip(found, *_together(found, alpha), strict=True)
    return tuple(
        (dataclasses.replace(pair, outcome=_difference(pair.total, yes, could), needed=needed), p)
        for pair, yes, could, p in together
    )


def _difference(total: int, rejected: bool, possible: bool) -> Difference:
    if not rejected:
        return "no difference" if possible else "undecided"
    return "first detects more" if total > 0 else "second detects more"


def _clusters_needed(alpha: float) -> int:
    return 1 + math.ceil(-math.log2(alpha))


def _recipe(cell: Cell) -> str:
    """Name how a suspect was made, whichever method is asked about it."""
    return canonical({**dataclasses.asdict(cell), "method": None})


def _clusters(pairs: Sequence[tuple[Answer, Answer]]) -> list[int]:
    """Return the number of each pair's cluster: those that share a key of either are in one."""
    tied: list[set[str]] = []
    for one, other in pairs:
        keys = {one.key, other.key}
        apart = [cluster for cluster in tied if cluster.isdisjoint(keys)]
        tied = [*apart, keys.union(*(cluster for cluster in tied if cluster not in apart))]
    return [next(i for i, keys in enumerate(tied) if one.key in keys) for one, _ in pairs]


def _sign_flips(differences: Sequence[int]) -> float:
    """Return the share of all sign flips with a sum at least as far from zero as the one seen."""
    sums = Counter({0: 1})
    for difference in differences:
        flipped: Counter[int] = Counter()
        for value, ways in sums.items():
            flipped[value + difference] += ways
            flipped[value - difference] += ways
        sums = flipped
    seen = abs(sum(differences))
    as_far = sum(ways for value, ways in sums.items() if abs(value) >= seen)
    return float(Fraction(as_far, 2 ** len(differences)))
