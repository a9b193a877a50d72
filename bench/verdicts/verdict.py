"""From evidence to decisions. Plain numbers in, plain numbers out.

A verdict ranks a suspect among innocent models, kind by kind. Each kind is a null of its own, and
the level holds against every kind that a verdict does not say to be too few:

* Strangers were trained independently. They are ranked attacked alike, for an attack may lift
  anybody's score. For a mark the descendants answer for the attack, and strangers stay untouched.
* Descendants come of the clean owner: copies that nobody marked. Only a mark has innocent ones.
* Other keys' copies are the owner's model marked with another key, attacked as the suspect was.

Ranks take an innocent suspect for one more draw of the innocents. The clean owner and the public
model it came from are no draws: they are known models, of which chance decides nothing. So a mark
must also score above each of them, whatever the ranks say, and a fingerprint above the public model
(a rule of our own, from no paper).

Evidence with an exact null needs no innocents: its p-value is that of the secret's own coins
(`bench.verdicts.exact`). Innocents are then read to see whether the null holds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.records.nouns import Evidence, UserError
from bench.verdicts.exact.coins import least_log10_p, log10_p, power_of_ten

Kind = Literal["strangers", "descendants", "other keys"]
"""Who an innocent is: what chance makes of strangers says nothing about another key's copy."""

Counted = Literal["untouched", "attacked alike", "within the attack", "clusters", "one by one"]
"""What one innocent is: a model, untouched or after the suspect's own attack; the descendants of
one attack together, by their highest score; or a model of which nobody knows what was done."""

Outcome = Literal["owned", "not owned", "undecided"]


@dataclass(frozen=True, slots=True)
class Null:
    """The innocents of one kind as one suspect meets them: a score for each that counts as one.

    A suspect that does not score above `bar` is outdone, whatever its rank.
    """

    kind: Kind
    scores: Sequence[float]
    counted: Counted
    bar: float | None = None


@dataclass(frozen=True, slots=True)
class Rank:
    """Where a suspect stands among the innocents of one kind."""

    kind: Kind
    p: float | None  # None without innocents
    n: int
    counted: Counted

    @property
    def attainable(self) -> float:
        """Return the smallest p that so many innocents allow."""
        return 1 / (self.n + 1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence decides about one suspect, and how much it could have decided."""

    outcome: Outcome
    p_value: float | None  # the largest of the kinds that decide; None if one has no innocents
    attainable: float  # the smallest p these innocents allow
    needed: int  # innocents of a kind without which nothing is ever owned
    ranks: tuple[Rank, ...] = ()
    log10_p: float | None = None  # of an exact null, where p may lie below what a float holds

    def rank(self, kind: Kind) -> Rank | None:
        """Return the rank among one kind; None where the kind says nothing of the method."""
        return next((rank for rank in self.ranks if rank.kind == kind), None)

    @property
    def reservation(self) -> str:
        """Say against which innocents an owned copy does not reach alpha; empty if none."""
        keys = self.rank("other keys")
        if self.outcome != "owned" or keys is None or keys.n >= self.needed:
            return ""
        return f"other keys only at 1/{keys.n + 1}" if keys.n else "other keys not read"

    @property
    def text(self) -> str:
        """Return the outcome with its reservation."""
        return f"{self.outcome}; {self.reservation}" if self.reservation else self.outcome


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


def decide(score: float, nulls: Iterable[Null], alpha: float) -> Verdict:
    """Call a suspect owned when its score is rare among the innocents of every kind.

    Ties count against ownership. Strangers or descendants too few to reach `alpha` leave the
    suspect undecided. Other keys are dear, each is a mark of its own: too few of them must all be
    outscored, and do not decide beyond that; the verdict then has a reservation.
    """
    needed = innocents_needed(alpha)
    ranks = tuple(_rank(score, null) for null in nulls)
    deciding = [rank for rank in ranks if not _reserved(rank, needed)]
    p_values = [rank.p for rank in deciding if rank.p is not None]
    decisive = len(p_values) == len(deciding) > 0
    fewest = min((rank.n for rank in deciding if _may_decide(rank, needed)), default=0)
    p_value = max(p_values) if decisive else None
    outcome: Outcome = "undecided"
    if p_value is not None and fewest >= needed:
        outcome = "owned" if p_value <= alpha else "not owned"
    return Verdict(outcome, p_value, 1 / (fewest + 1), needed, ranks)


def decide_exactly(evidence: Evidence, alpha: float) -> Verdict:
    """Call a suspect owned when the secret's coins seldom agree so well; no innocent is asked."""
    if not 0 < alpha < 1:
        raise UserError(f"expected alpha between 0 and 1, got {alpha}")
    found = log10_p(evidence)
    return Verdict(
        outcome="owned" if found <= math.log10(alpha) else "not owned",
        p_value=power_of_ten(found),
        attainable=power_of_ten(least_log10_p(evidence)),
        needed=0,
        log10_p=found,
    )


def _rank(score: float, null: Null) -> Rank:
    p = rank_p_value(score, null.scores) if null.scores else None
    if null.bar is not None and score <= null.bar and (p is not None or null.kind == "other keys"):
        p = 1.0
    return Rank(null.kind, p, len(null.scores), null.counted)


def _may_decide(rank: Rank, needed: int) -> bool:
    """Say whether a kind may call a suspect owned: other keys may be too few for that."""
    return rank.kind != "other keys" or rank.n >= needed


def _reserved(rank: Rank, needed: int) -> bool:
    """Say whether a suspect outscored other keys' copies that are too few to decide."""
    outdone = rank.p is not None and (rank.n == 0 or rank.p > rank.attainable)
    return not _may_decide(rank, needed) and not outdone


def detection_curve(evidence: Evidence, taus: Iterable[float] = range(8)) -> tuple[float, ...]:
    """Return the share of queries with a statistic of at most tau, for every tau."""
    if evidence.rule.comparison != "<=":
        raise UserError(f"expected a rule of the form '<= tau', got '{evidence.rule.text}'")
    ranked = sorted(evidence.statistic)
    return tuple(bisect_right(ranked, tau) / len(ranked) for tau in taus)
