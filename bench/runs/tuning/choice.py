"""Choose one setting of every method, by one rule for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.records.ledger import Results
from bench.records.nouns import Spec
from bench.runs.tuning.candidates import Origin, Terms
from bench.runs.tuning.trials import Pool, Trial, trials

READ = 0.5
"""A candidate that is read on at most this share of its own queries holds nothing."""

TIED = 0.005
"""Margins this near the best count as equal: a few hundred queries tell no less apart."""

BEFORE: tuple[Origin, ...] = ("suite and default", "default", "suite", "drawn")
"""Who goes first among equals: nobody's default gives way to what is no better."""

RULE = (
    "rule, the same for all: of the candidates that hold, within the price, the largest margin. To "
    f"hold is to be read on more than {READ:g} of its own queries, and for a mark off the released "
    "model more often than off the clean owner: their 95 % intervals do not meet. Margins within "
    f"{TIED:g} of the largest are equal, and then go more queries, the default, the suite's own, "
    "fewer passes. Where none is within the price, the cheapest that holds; where none holds, the "
    "suite's own."
)


@dataclass(frozen=True, slots=True)
class Choice:
    """All trials of one entry of a suite, the setting chosen, and why in words."""

    entry: Spec
    trials: tuple[Trial, ...]
    chosen: Spec
    why: str

    @property
    def trial(self) -> Trial | None:
        """Return what came of the setting that was chosen, if it was tried."""
        return next((t for t in self.trials if t.candidate.spec.text == self.chosen.text), None)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning came to: on which terms, the choice for each entry, and the records of trials."""

    name: str
    terms: Terms
    choices: tuple[Choice, ...]
    results: Results


def chosen(name: str, terms: Terms, asked: Sequence[Pool], results: Results) -> Tuned:
    """Choose a setting for every entry of a suite, from the records of its trials."""
    outline, records = results.outline, results.records
    choices = (
        choose(pool.entry, [*pool.left_out, *trials(pool.candidates, outline, records)], terms)
        for pool in asked
    )
    return Tuned(name, terms, tuple(choices), results)


def choose(entry: Spec, tried: Sequence[Trial], terms: Terms) -> Choice:
    """Choose one of the trials of an entry, by `RULE`."""
    answered = [trial for trial in tried if trial.owners]
    holding = [trial for trial in answered if trial.told and trial.rate > READ]
    fair = [t for t in holding if affordable(t, terms)]
    if fair:
        best = max(trial.margin for trial in fair)
        tied = [trial for trial in fair if trial.margin >= best - TIED]
        taken = min(tied, key=_before)
        equals = f", as have {len(tied) - 1} more" if len(tied) > 1 else ""
        why = f"the largest margin of {len(fair)} that hold within the price{equals}"
    elif holding:
        taken = min(holding, key=lambda t: (t.price.lost, -t.margin, _before(t)))
        why = f"none of {len(holding)} that hold is within the price: this is the cheapest"
    else:
        why = "holds" if answered else "could be tried"
        return Choice(entry, tuple(tried), entry, f"none {why}: left as it was")
    return Choice(entry, tuple(tried), taken.candidate.spec, why)


def affordable(trial: Trial, terms: Terms) -> bool:
    """Say whether a candidate is within the price."""
    return trial.price.lost <= terms.price and trial.cosine >= terms.cosine


def outcome(trial: Trial, terms: Terms) -> str:
    """Say in words what became of a candidate, but for which is chosen."""
    if not trial.owners:
        return trial.reason
    if trial.rate <= READ:
        return "not read"
    if not trial.told:
        return "read off the clean owner, too"
    return "within the price" if affordable(trial, terms) else "over the price"


def _before(trial: Trial) -> tuple[float, ...]:
    return (-trial.queries, BEFORE.index(trial.candidate.origin), trial.work)
