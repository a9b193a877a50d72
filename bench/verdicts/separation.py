"""Compare populations of models: how well scores part them, and what many verdicts amount to.

What is counted is a model, or a cluster of models that share an owner and a secret; never an image.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from bench.records.nouns import Record, digest, evidence_of
from bench.verdicts.families import ENOUGH_KEYS
from bench.verdicts.innocents import (
    PUBLIC,
    attack_of,
    innocent_name,
    is_other_key,
    lineage,
    model_name,
    other_key,
    populations,
    secret_digests,
    secret_of,
    trained_strangers,
    unread_copies,
    without_untouched,
)
from bench.verdicts.intervals import Interval, exact, upper_bound
from bench.verdicts.verdict import Kind, innocents_needed

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator
    from numpy.typing import NDArray


UNREAD = -1.0
"""The score of a copy that the method cannot read: below any agreement, it outscores nobody."""

RESAMPLES = 999
"""Bootstrap draws behind an interval for the area under a curve."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The score of one model, read with one secret; models that are one draw have one name."""

    model: str
    key: str
    score: float


@dataclass(frozen=True, slots=True)
class Point:
    """One threshold, the share of innocents at or above it and that of marked copies above it."""

    threshold: float
    false_positive_rate: float
    true_positive_rate: float


@dataclass(frozen=True, slots=True)
class Separation:
    """The chance that a marked copy outscores an innocent; a tie is no win, as in a verdict."""

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


def readings(
    records: Iterable[Record],
) -> tuple[tuple[Reading, ...], dict[Kind, tuple[Reading, ...]]]:
    """Return the scores of attacked copies and, kind by kind, of innocents, over all claims.

    The released model itself, untouched, is no copy that a thief has. A stranger is one draw
    whatever was done to it, and so are the descendants of one attack and all copies of one other
    key. Kinds without a reading are left out. An attacked copy that the method cannot read scores
    `UNREAD`.
    """
    read = without_untouched(records)
    trained, digests = trained_strangers(read), secret_digests(read)
    marked = tuple(
        Reading(model_name(r), key, evidence_of(r).score)
        for key, population in sorted(populations(read).items())
        for r in population.marked
    )
    marked += tuple(
        Reading(copy, key, UNREAD)
        for key, copies in sorted(unread_copies(read).items())
        for copy in sorted(copies)
    )
    found: dict[Kind, dict[tuple[str, str], Reading]] = {kind: {} for kind in get_args(Kind)}
    for record in read:
        kind = _kind(record)
        if record.evidence is None or kind is None:
            continue
        key, name = secret_of(record), _draw(record, kind, trained, digests)
        score, held = record.evidence.score, found[kind].get((key, model_name(record)))
        if held is not None:  # one model under two names, whichever comes first
            name, score = min(name, held.model), max(score, held.score)
        found[kind][key, model_name(record)] = Reading(name, key, score)
    return marked, {k: tuple(r for _, r in sorted(g.items())) for k, g in found.items() if g}


def _kind(record: Record) -> Kind | None:
    """Say which kind of innocent a suspect is; None if it is guilty, or a fingerprint's own."""
    origin = lineage(record)
    if origin == "stranger":
        return "strangers"
    if not record.marks or origin == "released":
        return None
    return "other keys" if is_other_key(record) else "descendants"


def _draw(
    record: Record, kind: Kind, trained: Mapping[str, str], digests: Mapping[str, str]
) -> str:
    """Name what an innocent shares its luck with: itself, its attack, or its key."""
    cell = record.cell
    if kind == "strangers":
        return innocent_name(record, trained)
    if kind == "descendants":
        return PUBLIC if cell.base == "other model" else attack_of(cell)
    return model_name(record) if cell.other_seed is None else other_key(cell, digests)


def roc(marked: Sequence[float], innocent: Sequence[float]) -> tuple[Point, ...]:
    """Return the curve from the strictest threshold to the mildest, one point per score.

    A tie counts against ownership: between points the curve rises first, and then goes right.
    """
    ours, theirs = sorted(marked), sorted(innocent)
    return tuple(
        Point(
            threshold,
            1 - bisect_left(theirs, threshold) / len(theirs),
            1 - bisect_right(ours, threshold) / len(ours),
        )
        for threshold in (math.inf, *sorted({*marked, *innocent}, reverse=True), -math.inf)
    )


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
    wins = (ours > theirs).astype(np.float64)  # (m, i)
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
    if keys >= ENOUGH_KEYS:
        return said
    return f"{said}, too narrow over fewer than {ENOUGH_KEYS} keys, as here"


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
