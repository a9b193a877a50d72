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

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.records.nouns import Evidence, UserError
from bench.verdicts.innocents import Innocents


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


def decide(score: float, innocents: Innocents, alpha: float) -> Verdict:
    """Call a suspect owned when its score is rare among the innocents of every null that counts.

    A mark must beat both nulls, so its p is the larger one; for a fingerprint `descendants` is
    None. A null too small to reach `alpha` leaves the suspect undecided. Ties count against
    ownership. Of the known innocents, read with the same secret, chance decides nothing: the
    p-value against them is 1 for a suspect that does not score above all of them, else 0, and
    `p_descendant` is the larger of this and the rank.
    """
    strangers, descendants, bar = innocents.strangers, innocents.descendants, innocents.bar
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


def false_positives(null: Innocents, alpha: float) -> dict[Kind, FalsePositives]:
    """Judge every innocent by the others and count, kind by kind, those called owned.

    Pooled, the kind that errs most would hide among the others. A fingerprint has strangers alone:
    ranks among one null hold `alpha` by construction, so its count checks nothing. Leaving one out
    costs one innocent: exactly `innocents_needed` are too few.
    """
    strangers, descendants, keys = null.strangers, null.descendants, null.other_keys
    verdicts: dict[Kind, list[Verdict]] = {
        "strangers": [
            decide(score, replace(null, strangers=_without(strangers, i)), alpha)
            for i, score in enumerate(strangers)
        ]
    }
    if descendants is not None:
        verdicts["descendants"] = [
            decide(score, replace(null, descendants=_without(descendants, i)), alpha)
            for i, score in enumerate(descendants)
        ]
        verdicts["other keys"] = [
            decide(score, replace(null, other_keys=_without(keys, i)), alpha)
            for i, score in enumerate(keys)
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


def _without(scores: Sequence[float], position: int) -> tuple[float, ...]:
    return (*scores[:position], *scores[position + 1 :])
