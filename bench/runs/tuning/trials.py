"""Try candidates on the owner's data alone: as an ordinary plan, so that nothing is made twice.

Two models are read, and no other: the released one, and for a mark the clean owner's.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records.nouns import (
    UNTOUCHED,
    Outline,
    Passes,
    Record,
    Spec,
    UserError,
    evidence_of,
)
from bench.registry import ATTACKS
from bench.runs.tuning.candidates import Candidate, Terms, candidates
from bench.suite import plan
from bench.suite.graph import Plan
from bench.suite.grid import Suite
from bench.suite.innocents import InnocentSettings
from bench.verdicts.intervals import wilson
from bench.verdicts.pairs import Price, price_of

NOBODY = InnocentSettings(strangers=0, twin_seeds=1)
"""No stranger, no other key, no other model: a mark's one twin is the clean owner itself."""


WIDER = 8
"""Under a cap on passes, how many budgets of draws are looked at before fewer will do."""


@dataclass(frozen=True, slots=True)
class Own:
    """What one owner's data say of a candidate.

    Rates and scores are those of the method read off the owner's own models; the clean owner's are
    None for a fingerprint, which releases it. `floor` is what a score is counted from: the clean
    owner's, or for a fingerprint the agreement by chance, 0 where nobody knows it. `work` counts
    the passes of `protect`, in forward passes' worth.
    """

    rate: float
    clean_rate: float | None
    score: float
    floor: float
    queries: int
    price: Price
    cosine: float | None
    work: float

    @property
    def margin(self) -> float:
        """Return how far the owner's own model scores above what owes the secret nothing."""
        return self.score - self.floor

    @property
    def told(self) -> bool:
        """Say whether a mark is read more often off what carries it than off the clean owner.

        A decoder may learn to read its message off any model: then nothing was written into this
        one. Told apart are rates whose 95 % intervals do not meet.
        """
        if self.clean_rate is None:
            return True
        return wilson(self.rate, self.queries)[0] > wilson(self.clean_rate, self.queries)[1]


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate, and what came of it with every owner; `reason` says why nothing did.

    With several owners the worst counts: the least margin, the highest price.
    """

    candidate: Candidate
    owners: tuple[Own, ...] = ()
    reason: str = ""

    @property
    def margin(self) -> float:
        """Return the least margin of any owner."""
        return min(own.margin for own in self.owners)

    @property
    def rate(self) -> float:
        """Return the least share of its own queries that hold."""
        return min(own.rate for own in self.owners)

    @property
    def told(self) -> bool:
        """Say whether the mark is told from every clean owner."""
        return all(own.told for own in self.owners)

    @property
    def queries(self) -> int:
        """Return the fewest queries that there were."""
        return min(own.queries for own in self.owners)

    @property
    def price(self) -> Price:
        """Return the highest price of any owner."""
        return max((own.price for own in self.owners), key=lambda price: price.lost)

    @property
    def cosine(self) -> float:
        """Return the least feature cosine; 1 for a fingerprint, which changes nothing."""
        return min(1.0 if own.cosine is None else own.cosine for own in self.owners)

    @property
    def work(self) -> float:
        """Return the passes of all protections together, in forward passes' worth."""
        return sum(own.work for own in self.owners)


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates of one entry of a suite, and those that were left out beforehand."""

    entry: Spec
    candidates: tuple[Candidate, ...]
    left_out: tuple[Trial, ...] = ()


Count = Callable[[Plan], Mapping[str, Passes | None]]
"""Counts the passes of every protection of a plan, by the key of its stage."""


def pools(suite: Suite, terms: Terms, data: Path | None, count: Count) -> list[Pool]:
    """Draw the candidates of every entry: as many for each, and none that takes too long.

    Under a cap on passes draws go on until the budget is full, or `WIDER` times it was looked at.
    """
    many = terms.budget * (1 if terms.passes is None else WIDER)
    drawn = {e.text: (*itertools.islice(candidates(e, terms.seed), many),) for e in suite.methods}
    if terms.passes is None:
        return [Pool(entry, drawn[entry.text]) for entry in suite.methods]
    made = plan_of(suite, itertools.chain(*drawn.values()), data)
    counted = count(made)
    found = list[Pool]()
    for entry in suite.methods:
        fit, over = within(drawn[entry.text], made, counted, terms.passes)
        told = tuple(trial for trial in over if trial.candidate.origin != "drawn")
        found.append(Pool(entry, tuple(fit[: terms.budget]), told))
    return found


def plan_of(suite: Suite, tried: Iterable[Candidate], data: Path | None) -> Plan:
    """Lay out the trials: every candidate with every owner, one key, and nobody but the owner.

    The key is the suite's first, so that what is chosen is there when the suite runs.

    Raises:
        UserError: the suite is one of parts, or asks for what there is not.

    """
    if suite.parts:
        names = ", ".join(part.name for part in suite.parts)
        raise UserError(f"bench tune: expected a suite of one grid, got parts; tune one of {names}")
    alone = dataclasses.replace(
        suite,
        name=f"{suite.name}-tuning",
        title=f"tuning {suite.title or suite.name}",
        methods=tuple({c.spec.text: c.spec for c in tried}.values()),
        attacks=((ATTACKS.spec(UNTOUCHED, {}),),),
        seeds=suite.seeds[:1],
        innocents=NOBODY,
    )
    made = plan.make(alone, data)
    # That nobody else was asked makes verdicts undecided, and there are none.
    said = tuple(warning for warning in made.warnings if warning not in alone.warnings)
    return dataclasses.replace(made, warnings=said)


def within(
    pool: Sequence[Candidate], made: Plan, counted: Mapping[str, Passes | None], most: float
) -> tuple[list[Candidate], list[Trial]]:
    """Part candidates whose protection takes at most so much from those over it, or untold.

    `counted` has the passes of every protection by the key of its stage.
    """
    works: dict[str, list[Passes | None]] = {}
    for question in made.questions:
        if not question.skip:
            works.setdefault(question.cell.method.text, []).append(counted[question.protect])
    fit, over = list[Candidate](), list[Trial]()
    for candidate in pool:
        found = works.get(candidate.spec.text, [])
        known = [passes.work for passes in found if passes is not None]
        if len(known) < len(found):
            over.append(Trial(candidate, reason="its passes are not known beforehand"))
        elif max(known, default=0.0) > most:
            over.append(Trial(candidate, reason=f"{max(known):,.0f} passes, over {most:,.0f}"))
        else:
            fit.append(candidate)
    return fit, over


def trials(
    tried: Iterable[Candidate], outline: Outline, records: Mapping[str, Record]
) -> list[Trial]:
    """Return what came of every candidate, from the records of its trials."""
    by_method: dict[str, list[tuple[str, Record | None]]] = {}
    for key, cell in outline.cells:
        by_method.setdefault(cell.method.text, []).append((cell.owner.text, records.get(key)))
    return [_trial(candidate, by_method.get(candidate.spec.text, [])) for candidate in tried]


def _trial(candidate: Candidate, answers: Sequence[tuple[str, Record | None]]) -> Trial:
    # Whom a method cannot ask at all is told of by the suite itself, and is alike for all settings.
    answers = [a for a in answers if a[1] is None or a[1].status != "skipped"] or answers
    missing = [record for _, record in answers if record is None or record.evidence is None]
    if missing or not answers:
        first = missing[0] if missing else None
        reason = "no answer" if first is None else f"{first.status}: {first.reason}"
        return Trial(candidate, reason=" ".join(reason.split()))
    owners: dict[str, list[Record]] = {}
    for owner, record in answers:
        if record is not None:
            owners.setdefault(owner, []).append(record)
    return Trial(candidate, tuple(map(_own, owners.values())))


def _own(records: Sequence[Record]) -> Own:
    released = next(record for record in records if record.cell.base == "released")
    clean = next((record for record in records if record.cell.base == "owner"), None)
    read, price = evidence_of(released), price_of(records)
    assert price is not None, "a plan prices every untouched mark"
    paid, cost = released.fidelity, released.costs.get("protect")
    return Own(
        rate=read.rate,
        clean_rate=None if clean is None else evidence_of(clean).rate,
        score=read.score,
        floor=(read.chance or 0.0) if clean is None else evidence_of(clean).score,
        queries=len(read.agreement),
        price=price,
        cosine=sum(paid.feature_cosine) / len(paid.feature_cosine) if paid else None,
        work=Passes(cost.forward_passes, cost.backward_passes).work if cost else 0.0,
    )
