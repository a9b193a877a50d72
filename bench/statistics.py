"""From evidence to decisions. Plain numbers in, plain numbers out.

A verdict ranks a suspect among innocent models. Two nulls are kept apart: strangers, trained
independently, and (for a mark) descendants of the clean owner. Innocents are counted as models, and
only those read with the suspect's own secret count.

Ranks take an innocent suspect for one more draw of the innocents. The clean owner, the public
model it came from and its copies marked with other keys are no draws: they are known models, of
which chance decides nothing, and among many descendants that strong attacks have moved away, their
rank could pass for rare. So a mark must also score above each of them, whatever the ranks say (a
rule of our own, from no paper).
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from bench.types import Cell, Evidence, Lineage, Record, UserError

Interval = tuple[float, float]
"""A 95 % confidence interval, low and high end, unless a function says otherwise."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence decides about one suspect, and how much it could have decided."""

    outcome: Literal["owned", "not owned", "undecided"]
    p_value: float | None  # the larger of the two; None if a needed null has no innocents
    p_stranger: float | None
    p_descendant: float | None  # None for a fingerprint too
    attainable: float  # the smallest p these innocents allow
    n_strangers: int
    n_descendants: int | None  # None for a fingerprint: its descendants are guilty
    needed: int  # innocents per null without which nothing is ever owned


@dataclass(frozen=True, slots=True)
class Innocents:
    """One score per innocent model; `descendants` is None for a fingerprint.

    `clean` is the highest score of the clean owner itself and `public` that of the public model it
    was finetuned from, both among the descendants; None if not read, or for a fingerprint.
    `other_keys` are the copies of the clean owner marked with another key, which are not.
    """

    strangers: tuple[float, ...]
    descendants: tuple[float, ...] | None
    clean: float | None = None
    other_keys: tuple[float, ...] = ()
    public: float | None = None

    @property
    def bar(self) -> float | None:
        """Return the score that a mark must exceed: the highest of the known innocents."""
        known = (self.clean, self.public, *self.other_keys)
        return max((score for score in known if score is not None), default=None)


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean rate with its two kinds of spread, never mixed."""

    mean: float
    within: Interval  # Wilson, over the queries of one suspect
    between: Interval | None  # lowest and highest model; None with a single model
    models: int
    queries: int


Kind = Literal["strangers", "descendants", "other keys"]
"""Who an innocent is: what chance makes of strangers says nothing about another key's copy."""


@dataclass(frozen=True, slots=True)
class FalsePositives:
    """Innocents of one kind called owned when each is judged by the others."""

    called: int
    decided: int  # innocents whose verdict was not `undecided`
    innocents: int
    upper: float  # one-sided 95 % Clopper-Pearson bound on the rate; 1 if none was decided


def rank_p_value(score: float, innocent: Sequence[float]) -> float:
    """Return (1 + #{innocent >= score}) / (1 + n), valid whatever the distribution of scores."""
    ranked = sorted(innocent)  # at once where they come in order, as `innocents` leaves them
    return (1 + len(ranked) - bisect_left(ranked, score)) / (1 + len(ranked))


def innocents_needed(alpha: float) -> int:
    """Return the fewest innocents with which `rank_p_value` can reach `alpha` at all."""
    if not 0 < alpha < 1:
        raise UserError(f"expected alpha between 0 and 1, got {alpha}; 0.05 needs 19 innocents")
    needed = max(0, math.ceil(1 / alpha) - 2)  # 1 / alpha may round to either side of an integer
    while 1 / (needed + 1) > alpha:
        needed += 1
    return needed


def decide(
    score: float,
    strangers: Sequence[float],
    descendants: Sequence[float] | None,
    alpha: float,
    *,
    bar: float | None = None,
) -> Verdict:
    """Call a suspect owned when its score is rare among the innocents of every null that counts.

    A mark must beat both nulls, so its p is the larger one; for a fingerprint `descendants` is
    None. A null too small to reach `alpha` leaves the suspect undecided. Ties count against
    ownership. `bar` is the highest score of the known innocents, read with the same secret: having
    no chance about them, the p-value against them is 1 for a suspect that does not score above all
    of them, else 0, and `p_descendant` is the larger of this and the rank.
    """
    nulls = [strangers] if descendants is None else [strangers, descendants]
    p_values = [rank_p_value(score, null) if null else None for null in nulls]
    if descendants and bar is not None and score <= bar:
        p_values[1] = 1.0
    known = [p for p in p_values if p is not None]
    smallest, needed = min(map(len, nulls)), innocents_needed(alpha)
    p_value = max(known) if len(known) == len(nulls) else None
    outcome: Literal["owned", "not owned", "undecided"] = "undecided"
    if p_value is not None and smallest >= needed:
        outcome = "owned" if p_value <= alpha else "not owned"
    return Verdict(
        outcome=outcome,
        p_value=p_value,
        p_stranger=p_values[0],
        p_descendant=None if descendants is None else p_values[1],
        attainable=1 / (smallest + 1),
        n_strangers=len(strangers),
        n_descendants=None if descendants is None else len(descendants),
        needed=needed,
    )


def claim(cell: Cell) -> str:
    """Name the secret a cell is read with: owner, method and method seed."""
    return f"[{cell.owner.text},{cell.method.text},{cell.method_seed}]"


def lineage(record: Record) -> Lineage:
    """Say what the suspect descends from: weights digest first, then how it was made.

    Equal weights are one model: whatever made a copy of the clean owner, it is the clean owner,
    which is innocent of a mark and is itself the released model of a fingerprint.
    """
    if is_clean_owner(record):
        return "owner" if record.marks else "released"
    return record.cell.lineage


def is_clean_owner(record: Record) -> bool:
    """Say whether the suspect has the clean owner's weights."""
    return bool(record.suspect_digest) and record.suspect_digest == record.owner_digest


def innocents(records: Iterable[Record]) -> dict[str, Innocents]:
    """Collect, for every claim, one score per distinct innocent model read with its secret.

    Descendants are told apart by their weights. Strangers are told apart by the weights they were
    trained to, and each enters with the highest score over its attacked versions. That would be
    conservative were every stranger attacked as the suspect was; most are left untouched, so p
    against strangers is that of a model left untouched, and an attack that lifts anybody's score
    passes for ownership of a fingerprint. For a mark the twins, attacked alike, answer for the
    attack. A suspect with the owner's own weights is never a stranger (see `lineage`).
    """
    read = list(records)
    trained = trained_strangers(read)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    clean: dict[str, float] = {}
    public: dict[str, float] = {}
    marks: dict[str, bool] = {}
    for record in read:
        name, origin = claim(record.cell), lineage(record)
        group = "other key" if is_other_key(record) else origin
        marks[name] = record.marks
        nulls = scores.setdefault(
            name, {"stranger": {}, "owner": {}, "released": {}, "other key": {}}
        )
        if record.evidence is None:
            continue
        who, score = innocent_name(record, trained), record.evidence.score
        nulls[group][who] = max(score, nulls[group].get(who, score))
        if origin == "owner" and is_clean_owner(record):
            clean[name] = max(score, clean.get(name, score))
        elif origin == "owner" and record.cell.base == "other model":
            public[name] = max(score, public.get(name, score))
    return {
        name: Innocents(
            strangers=tuple(sorted(nulls["stranger"].values())),
            descendants=tuple(sorted(nulls["owner"].values())) if marks[name] else None,
            clean=clean.get(name),
            public=public.get(name),
            other_keys=tuple(sorted(nulls["other key"].values())) if marks[name] else (),
        )
        for name, nulls in scores.items()
    }


def is_other_key(record: Record) -> bool:
    """Say whether the suspect is the owner's model marked with another key than the claim's."""
    return record.cell.base == "other key" and not is_clean_owner(record)


def trained_strangers(records: Iterable[Record]) -> dict[str, str]:
    """Map what makes a stranger to the weights it was trained to, where these are written down."""
    return {_stranger(r.cell): r.suspect_digest for r in records if _is_whole_stranger(r)}


def innocent_name(record: Record, trained: Mapping[str, str]) -> str:
    """Name a stranger by the weights it was trained to, whatever was done to it; others as made.

    `trained` is what `trained_strangers` says of all records there are: one model under two names
    is one stranger.
    """
    if lineage(record) != "stranger":
        return model_name(record)
    return trained.get(_stranger(record.cell)) or _stranger(record.cell)


def _stranger(cell: Cell) -> str:
    """Name a stranger, whatever was done to it: by the control that makes it, or as a model."""
    return (cell.other_model or cell.attack[0]).text


def _is_whole_stranger(record: Record) -> bool:
    """Say whether the suspect is a stranger as it was trained, with its weights written down."""
    untouched = len(record.cell.attack) == 1  # the control that makes it, or leaves it as it is
    return bool(record.suspect_digest) and untouched and lineage(record) == "stranger"


def model_name(record: Record) -> str:
    """Name the suspect by its weights, or by its cell where no weights were written down."""
    return record.suspect_digest or record.key


def false_positives(null: Innocents, alpha: float) -> dict[Kind, FalsePositives]:
    """Judge every innocent by the others and count, kind by kind, those called owned.

    Pooled, the kind that errs most would hide among the others. A fingerprint has strangers alone:
    ranks among one null hold `alpha` by construction, so its count checks nothing. Leaving one out
    costs one innocent: exactly `innocents_needed` are too few.
    """
    strangers, descendants, keys = null.strangers, null.descendants, null.other_keys
    left_out = [replace(null, other_keys=_without(keys, i)) for i in range(len(keys))]
    verdicts: dict[Kind, list[Verdict]] = {
        "strangers": [
            decide(score, _without(strangers, i), descendants, alpha, bar=null.bar)
            for i, score in enumerate(strangers)
        ]
    }
    if descendants is not None:
        verdicts["descendants"] = [
            decide(score, strangers, _without(descendants, i), alpha, bar=null.bar)
            for i, score in enumerate(descendants)
        ]
        verdicts["other keys"] = [
            decide(score, strangers, descendants, alpha, bar=others.bar)
            for score, others in zip(keys, left_out, strict=True)
        ]
    return {kind: _counted(found) for kind, found in verdicts.items()}


def _counted(verdicts: Sequence[Verdict]) -> FalsePositives:
    from statsmodels.stats.proportion import proportion_confint

    called = sum(v.outcome == "owned" for v in verdicts)
    decided = sum(v.outcome != "undecided" for v in verdicts)
    # The upper end of a two-sided 90 % interval is the one-sided 95 % bound.
    upper = proportion_confint(called, decided, alpha=0.10, method="beta")[1] if decided else 1.0
    return FalsePositives(called, decided, len(verdicts), float(upper))


def detection_curve(evidence: Evidence, taus: Iterable[float] = range(8)) -> tuple[float, ...]:
    """Return the share of queries with a statistic of at most tau, for every tau."""
    if evidence.rule.comparison != "<=":
        raise UserError(f"expected a rule of the form '<= tau', got '{evidence.rule.text}'")
    ranked = sorted(evidence.statistic)
    return tuple(bisect_right(ranked, tau) / len(ranked) for tau in taus)


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


def _without(scores: Sequence[float], position: int) -> tuple[float, ...]:
    return (*scores[:position], *scores[position + 1 :])
