"""Compare populations of models: how well scores part them, and what many verdicts amount to.

What is counted is a model, or a cluster of models that share an owner and a secret; never an image.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from bench.statistics import (
    Interval,
    Verdict,
    claim,
    innocent_name,
    innocents_needed,
    is_other_key,
    lineage,
    model_name,
    trained_strangers,
)
from bench.types import Cell, Record, canonical, digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator
    from numpy.typing import NDArray

RESAMPLES = 999
"""Bootstrap draws behind an interval for the area under a curve."""

ENOUGH_KEYS = 4
"""Keys; among fewer the bootstrap sees too little of how they differ."""


@dataclass(frozen=True, slots=True)
class Population:
    """The suspects read with one secret: one record per distinct model, in order of name."""

    marked: tuple[Record, ...]
    twins: tuple[Record, ...]  # empty for a fingerprint: the owner's descendants are guilty
    strangers: tuple[Record, ...]
    other_keys: tuple[Record, ...] = ()  # the owner's model marked with another key

    @property
    def innocent(self) -> tuple[Record, ...]:
        """Return all whom the owner must not be recognised in."""
        return self.twins + self.other_keys + self.strangers


@dataclass(frozen=True, slots=True)
class Reading:
    """The score of one model, read with one secret."""

    model: str
    key: str
    score: float


@dataclass(frozen=True, slots=True)
class Point:
    """One threshold and the shares of either population that score at least as high."""

    threshold: float
    false_positive_rate: float
    true_positive_rate: float


@dataclass(frozen=True, slots=True)
class Separation:
    """The chance that a marked copy outscores an innocent, ties counting half."""

    area: float
    interval: Interval
    marked: int  # models
    innocent: int
    keys: int


@dataclass(frozen=True, slots=True)
class AtRate:
    """Detection under a threshold that half of the innocents set, checked on the other half.

    A suspect is detected above `threshold`. With fewer than `needed` innocents in all no threshold
    holds the rate: it is None, and so is all that follows from it.
    """

    rate: float
    threshold: float | None
    true_positive_rate: float | None
    interval: Interval | None  # exact, 95 %, over marked models
    false_positives: int | None  # of the held-out innocents
    upper: float | None  # one-sided 95 % bound on their rate
    marked: int
    calibrating: int
    held_out: int
    needed: int


@dataclass(frozen=True, slots=True)
class Family:
    """Verdicts passed together, so that calling any innocent owned has the chance alpha in all."""

    outcomes: tuple[Literal["owned", "not owned", "undecided"], ...]
    adjusted: tuple[float | None, ...]  # Holm's p-values, to be compared with alpha itself
    needed: int  # innocents per null without which the least p cannot survive


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


def upper_bound(hits: int, trials: int, level: float = 0.05) -> float | None:
    """Return the exact one-sided Clopper-Pearson bound on a rate; None without trials."""
    # The upper end of a two-sided interval at twice the level.
    return exact(hits, trials, 2 * level)[1] if trials else None


def exact(hits: int, trials: int, alpha: float) -> Interval:
    """Return the two-sided Clopper-Pearson interval of a proportion."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(hits, trials, alpha=alpha, method="beta")
    return float(low), float(high)


def populations(records: Iterable[Record]) -> dict[str, Population]:
    """Collect, for every claim, the suspects with evidence, each model once.

    Of a model that comes more than once the conservative record stays: the lowest score of a marked
    copy, the highest of an innocent. Attacked versions of a stranger are one stranger.
    """
    read = list(records)
    trained = trained_strangers(read)
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for record in read:
        if record.evidence is None:
            continue
        origin = "other key" if is_other_key(record) else lineage(record)
        groups = found.setdefault(
            claim(record.cell), {"released": {}, "owner": {}, "stranger": {}, "other key": {}}
        )
        name = innocent_name(record, trained)
        held = groups[origin].setdefault(name, record)
        higher = (_score(record), record.key) > (_score(held), held.key)
        if held is not record and higher != (origin == "released"):
            groups[origin][name] = record
    ordered = {c: {o: _in_order(g) for o, g in groups.items()} for c, groups in found.items()}
    return {
        c: Population(g["released"], g["owner"], g["stranger"], g["other key"])
        for c, g in ordered.items()
    }


def _in_order(models: Mapping[str, Record]) -> tuple[Record, ...]:
    return tuple(record for _, record in sorted(models.items()))


def _score(record: Record) -> float:
    assert record.evidence is not None  # `populations` lets nothing else through
    return record.evidence.score


def readings(records: Iterable[Record]) -> tuple[tuple[Reading, ...], tuple[Reading, ...]]:
    """Return the scores of marked copies and of innocents, over all claims among the records.

    Copies marked with other keys are left out: known models are no draws of the innocents.
    """
    read = list(records)
    trained = trained_strangers(read)
    marked, innocent = [], []
    for key, population in sorted(populations(read).items()):
        marked += [Reading(model_name(r), key, _score(r)) for r in population.marked]
        for record in population.twins + population.strangers:
            innocent.append(Reading(innocent_name(record, trained), key, _score(record)))
    return tuple(marked), tuple(innocent)


def roc(marked: Sequence[float], innocent: Sequence[float]) -> tuple[Point, ...]:
    """Return the curve from the strictest threshold to the mildest, one point per score."""
    ours, theirs = sorted(marked), sorted(innocent)
    return tuple(
        Point(threshold, _share(theirs, threshold), _share(ours, threshold))
        for threshold in (math.inf, *sorted({*marked, *innocent}, reverse=True))
    )


def _share(ranked: Sequence[float], threshold: float) -> float:
    return (len(ranked) - bisect_left(ranked, threshold)) / len(ranked)


def separation(
    marked: Sequence[Reading],
    innocent: Sequence[Reading],
    rng: Generator | None = None,
) -> Separation:
    """Return the area under the curve with a 95 % interval over models and keys.

    The bootstrap draws models within either population, and keys for both at once (Owen's
    pigeonhole bootstrap): a model read with two keys, and two models read with one key, are not
    independent. Keys are few: under two or three that differ the interval is too narrow, under one
    it knows no spread between keys at all. Without a generator the readings seed one. Neither
    population may be empty.
    """
    import numpy as np

    marked, innocent = (sorted(p, key=dataclasses.astuple) for p in (marked, innocent))
    if rng is None:
        content = [[dataclasses.astuple(r) for r in p] for p in (marked, innocent)]
        rng = np.random.default_rng(int(digest("bootstrap", content), 16))
    ours = np.array([r.score for r in marked])[:, None]  # (m, 1)
    theirs = np.array([r.score for r in innocent])[None, :]  # (1, i)
    wins = (ours > theirs) + 0.5 * (ours == theirs)  # (m, i)
    models = tuple(len({r.model for r in population}) for population in (marked, innocent))
    return Separation(
        area=float(wins.mean()),
        interval=_interval(wins, marked, innocent, rng),
        marked=models[0],
        innocent=models[1],
        keys=len({r.key for r in (*marked, *innocent)}),
    )


def interval_note(keys: int) -> str:
    """Say what the interval of `separation` is, over so many keys at least."""
    said = (
        "95 % bootstrap over models and keys, exact (Clopper-Pearson) where scores do not overlap"
    )
    few = f", too narrow over fewer than {ENOUGH_KEYS} keys, as here"
    return said + few * (keys < ENOUGH_KEYS)


def _interval(
    wins: NDArray[np.float64],
    marked: Sequence[Reading],
    innocent: Sequence[Reading],
    rng: Generator,
) -> Interval:
    """Return the percentile interval, or an exact one where the populations do not overlap.

    There, resampling finds no spread. The exact one is that of as many disjoint pairs of a marked
    and an innocent model as there are, all of them won.
    """
    import numpy as np

    area = float(wins.mean())
    if area in (0.0, 1.0):
        pairs = min(len({r.model for r in marked}), len({r.model for r in innocent}))
        return exact(round(area) * pairs, pairs, 0.05)
    names = sorted({r.key for r in (*marked, *innocent)})
    keys = _drawn(len(names), rng)
    ours = _weights(marked, names, keys, rng)
    theirs = _weights(innocent, names, keys, rng)
    weight = ours.sum(axis=1) * theirs.sum(axis=1)  # 0 where no key of one population was drawn
    areas = ((ours @ wins) * theirs).sum(axis=1)[weight > 0] / weight[weight > 0]
    low, high = np.quantile(areas, (0.025, 0.975))
    return float(low), float(high)


def _weights(
    population: Sequence[Reading], names: list[str], keys: NDArray[np.int64], rng: Generator
) -> NDArray[np.int64]:
    """Count every reading in every draw (draws, readings): its model's draws times its key's."""
    models = sorted({r.model for r in population})
    drawn = _drawn(len(models), rng)[:, [models.index(r.model) for r in population]]
    weights: NDArray[np.int64] = drawn * keys[:, [names.index(r.key) for r in population]]
    return weights


def _drawn(count: int, rng: Generator) -> NDArray[np.int64]:
    """Draw `count` with replacement, often; return how often each came up (draws, count)."""
    return rng.multinomial(count, [1 / count] * count, size=RESAMPLES)


def halves(models: Iterable[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Part models by their digests, the first half the larger by one of an odd number."""
    ordered = sorted(set(models), key=lambda model: (digest("half", model), model))
    middle = (len(ordered) + 1) // 2
    return frozenset(ordered[:middle]), frozenset(ordered[middle:])


def detection_at(
    marked: Iterable[tuple[str, float]], innocent: Iterable[tuple[str, float]], rate: float
) -> AtRate:
    """Detect at a stated false-positive rate; pairs are a model's digest and its score.

    The threshold lies where a rank among the calibrating half reaches `rate`, so a new innocent
    passes it with that chance at most. A model with several scores counts once, against the
    detector.
    """
    suspects, others = _each(marked, min), _each(innocent, max)
    setting, checking = halves(others)
    null = sorted((others[model] for model in setting), reverse=True)
    # A suspect above the k-th highest innocent ranks k-th at worst among n + 1.
    allowed = sum(rank / (len(null) + 1) <= rate for rank in range(1, len(null) + 1))
    threshold = null[allowed - 1] if allowed else None
    detected = _above(suspects.values(), threshold) if suspects else None
    called = _above((others[model] for model in checking), threshold)
    return AtRate(
        rate=rate,
        threshold=threshold,
        true_positive_rate=None if detected is None else detected / len(suspects),
        interval=None if detected is None else exact(detected, len(suspects), 0.05),
        false_positives=called,
        upper=None if called is None else upper_bound(called, len(checking)),
        marked=len(suspects),
        calibrating=len(setting),
        held_out=len(checking),
        needed=2 * innocents_needed(rate) - 1,
    )


def _each(
    scores: Iterable[tuple[str, float]], choose: Callable[[float, float], float]
) -> dict[str, float]:
    """Return one score per model: of several the one that `choose` picks."""
    chosen: dict[str, float] = {}
    for model, score in scores:
        chosen[model] = choose(score, chosen.get(model, score))
    return chosen


def _above(scores: Iterable[float], threshold: float | None) -> int | None:
    return None if threshold is None else sum(score > threshold for score in scores)


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


def paired(
    first: Iterable[tuple[Cell, bool]], second: Iterable[tuple[Cell, bool]], alpha: float
) -> Paired:
    """Compare two methods on the recipes both answered; pairs say in which cells each detected.

    McNemar's test counts discordant pairs as independent, but copies that share an owner and a key
    share its luck. So the unit of exchange is that cluster: were the methods alike, each cluster
    could as well have come out with the two swapped. All 2 ** clusters swaps are counted, exactly.
    """
    ours, theirs = ({_recipe(c): (_cluster(c), hit) for c, hit in side} for side in (first, second))
    both = sorted(ours.keys() & theirs.keys())
    differences: Counter[str] = Counter({ours[recipe][0]: 0 for recipe in both})
    for recipe in both:
        differences[ours[recipe][0]] += ours[recipe][1] - theirs[recipe][1]
    clusters = len(differences)
    attainable = min(1.0, 2.0 ** (1 - clusters))
    p_value = _sign_flips(list(differences.values())) if both else None
    rejected = p_value is not None and p_value <= alpha
    return Paired(
        outcome=_difference(sum(differences.values()), rejected, attainable <= alpha),
        only_first=sum(ours[r][1] and not theirs[r][1] for r in both),
        only_second=sum(theirs[r][1] and not ours[r][1] for r in both),
        pairs=len(both),
        unmatched=len(ours.keys() ^ theirs.keys()),
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


def _cluster(cell: Cell) -> str:
    return canonical([cell.owner.json(), cell.method_seed])


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
