"""Show all candidates that were tried, and which of them are chosen."""

from __future__ import annotations

from bench.records.nouns import Spec, how_many
from bench.records.table import NOTHING, Table
from bench.registry import METHODS
from bench.reports.blocks import labelled
from bench.runs.tuning.candidates import Terms, ranges
from bench.runs.tuning.choice import RULE, Choice, Tuned, outcome
from bench.runs.tuning.trials import Trial
from bench.verdicts.pairs import price_text

LONGEST = 60
"""Letters of a reason; the record keeps the whole of it."""


def tuning_table(tuned: Tuned) -> Table:
    """Return every candidate of every entry: what it reads, costs, takes, and which is chosen."""
    terms, choices = tuned.terms, tuned.choices
    label = labelled(choice.entry for choice in choices)
    cap = "" if terms.passes is None else f", at most {terms.passes:,.0f} passes each"
    return Table(
        name="Tuning",
        caption=(
            f"{how_many(terms.budget, 'candidate')} a method{cap}, on the owner's data alone "
            f"({tuned.name})"
        ),
        columns=(
            *("method", "setting", "from", "own rate", "clean rate", "margin"),
            *("price", "cosine", "passes", "outcome"),
        ),
        rows=tuple(
            (label(choice.entry), setting(trial.candidate.spec), *_line(trial, choice, terms))
            for choice in choices
            for trial in choice.trials
        ),
        notes=(
            "read are the released model and, for a mark, the clean owner: no suspect, no "
            "stranger, no attacked copy. What is not tunable is as in the suite. Of several owners "
            "the worst counts.",
            "own rate, clean rate: share of queries that hold by the method's own rule, off the "
            "released model and off the clean owner. margin: between their mean agreements; a "
            "fingerprint's is counted from chance, or 0. price: what the owner's own task loses "
            "(a probe, where it has none), with the paired 95 % interval. passes: of protecting, "
            "a backward pass as two.",
            f"asked: a price of at most {terms.price:g}, a feature cosine of at least "
            f"{terms.cosine:g}; draws by seed {terms.seed}.",
            RULE,
            "a price just within its bound is the least of several tries: paid anew, with another "
            "key, it may be over it.",
            *(f"{label(c.entry)}: {c.why}." for c in choices),
        ),
        heads=1,
    )


def setting(spec: Spec) -> str:
    """Write what a candidate has of the tunable settings."""
    shown = [name for name in ranges(METHODS.get(spec.name)) if name in spec.args]
    return " ".join(f"{name}={_value(spec.args[name])}" for name in shown) or "nothing to tune"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line(trial: Trial, choice: Choice, terms: Terms) -> tuple[str, ...]:
    said = outcome(trial, terms)
    if len(said) > LONGEST:
        said = said[: LONGEST - 1] + "…"
    if trial.candidate.spec.text == choice.chosen.text:
        said = "chosen" if said == "within the price" else f"kept: {said}"
    if not trial.owners:
        return (trial.candidate.origin, *(NOTHING,) * 6, said)
    clean = [own.clean_rate for own in trial.owners if own.clean_rate is not None]
    return (
        trial.candidate.origin,
        f"{trial.rate:.3f}",
        f"{max(clean):.3f}" if clean else NOTHING,
        f"{trial.margin:+.3f}",
        price_text(trial.price),
        f"{trial.cosine:.3f}" if clean else NOTHING,
        f"{trial.work:,.0f}",
        said,
    )
