"""Say how often a method's verdicts are wrong about innocents and right about marked copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from bench.records.nouns import Outline, Record, evidence_of
from bench.records.table import NOTHING, Table
from bench.verdicts import separation
from bench.verdicts.families import ENOUGH_KEYS, holm
from bench.verdicts.innocents import Innocents, innocents, populations, secret_of
from bench.verdicts.intervals import exact
from bench.verdicts.verdict import Kind, Verdict, decide, false_positives, innocents_needed

RATE = 0.05
"""The false-positive rate at which detection is stated."""

KINDS = get_args(Kind)
"""Innocents counted apart: pooled, the kind that is called owned most would hide."""


def level_table(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Table:
    """Return level, power and separation for every (owner, method, records)."""
    told = [(owner, method, list(records)) for owner, method, records in groups]
    keys = min((_keys(records) for *_, records in told), default=ENOUGH_KEYS)
    return Table(
        name="Level and power",
        caption=f"verdicts at alpha = {outline.alpha:g} ({outline.heading})",
        columns=(
            *("owner", "method", "strangers", "descendants"),
            *(f"{kind} called owned" for kind in KINDS),
            *("copies owned", "AUC", f"TPR at FPR {RATE:g}", "Holm"),
        ),
        rows=tuple(
            (owner, method, *_line(records, outline.alpha)) for owner, method, records in told
        ),
        notes=(
            "called owned: innocents, each judged by all the others read with the same secret, "
            "with the exact one-sided 95 % bound on the rate, as if they were independent, of the "
            "secret where it is highest. other keys: copies of the clean owner marked with another "
            "key; they are ranked among nobody, and whoever does not score above all of them is "
            "not owned. by construction: with strangers alone, leaving one out ranks each among "
            "the rest, so a share of alpha at most is called owned whatever the scores, and a "
            "count would check nothing.",
            "copies owned: attacked copies of the released model, exact 95 % interval as if they "
            "were independent. AUC: the chance that a copy outscores a stranger or a descendant, "
            f"{separation.interval_note(keys)}. TPR: its exact 95 % interval is over copies; the "
            "threshold is set on half of the strangers and descendants; the rate in round "
            "brackets, with its one-sided 95 % bound, counts the other half. Holm: copies owned "
            "when all verdicts of a method are passed together. needed: innocents, where those "
            "there can decide nothing.",
            *outline.reductions,
        ),
        heads=1,
    )


def decidable(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> bool:
    """Say whether any secret was read on innocents enough for a verdict."""
    needed = innocents_needed(outline.alpha)
    nulls = [n for *_, records in groups for n in innocents(records).values()]
    return any(
        len(null.strangers) >= needed
        and (null.descendants is None or len(null.descendants) >= needed)
        for null in nulls
    )


def _keys(records: Iterable[Record]) -> int:
    return len({secret_of(record.cell) for record in records if record.evidence})


def _line(records: Sequence[Record], alpha: float) -> tuple[str, ...]:
    nulls = innocents(records)
    verdicts = _verdicts(records, nulls, alpha)
    marked, innocent = separation.readings(records)
    return (
        _range(len(null.strangers) for null in nulls.values()),
        _range(len(null.descendants) for null in nulls.values() if null.descendants is not None),
        *(_called(kind, nulls.values(), alpha) for kind in KINDS),
        _owned(verdicts),
        _separation(marked, innocent),
        _detection(marked, innocent),
        _together(verdicts, alpha),
    )


def _verdicts(
    records: Sequence[Record], nulls: Mapping[str, Innocents], alpha: float
) -> list[Verdict]:
    """Judge every distinct copy of the released model."""
    return [
        decide(evidence_of(record).score, nulls[claim], alpha)
        for claim, population in sorted(populations(records).items())
        for record in population.marked
    ]


def _range(counts: Iterable[int]) -> str:
    values = sorted(set(counts))
    if not values:
        return NOTHING
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _called(kind: Kind, nulls: Iterable[Innocents], alpha: float) -> str:
    """Write how many innocents of a kind are called owned; for ranks in one null, why no count."""
    checks = [false_positives(null, alpha) for null in nulls]
    decided = [check[kind] for check in checks if kind in check and check[kind].decided]
    if not decided:
        return NOTHING
    if not any("descendants" in check for check in checks):
        return "by construction"
    worst = max(decided, key=lambda check: check.upper)
    called, asked = sum(c.called for c in decided), sum(c.decided for c in decided)
    return f"{called} of {asked} (<= {worst.upper:.3f})"


def _owned(verdicts: Sequence[Verdict]) -> str:
    decided = [verdict for verdict in verdicts if verdict.outcome != "undecided"]
    if not decided:
        return f"undecided {len(verdicts)}" if verdicts else NOTHING
    owned = sum(verdict.outcome == "owned" for verdict in decided)
    low, high = exact(owned, len(decided), 0.05)
    return f"{owned} of {len(decided)} [{low:.2f}, {high:.2f}]"


def _separation(
    marked: Sequence[separation.Reading], innocent: Sequence[separation.Reading]
) -> str:
    if not marked or not innocent:
        return NOTHING
    found = separation.separation(marked, innocent)
    low, high = found.interval
    return f"{found.area:.3f} [{low:.3f}, {high:.3f}]"


def _detection(marked: Sequence[separation.Reading], innocent: Sequence[separation.Reading]) -> str:
    """Write the true-positive rate, or how many innocents it would take to state one."""
    found = separation.detection_at(
        [(r.model, r.score) for r in marked], [(r.model, r.score) for r in innocent], RATE
    )
    if found.true_positive_rate is None:
        return f"{found.needed} needed"
    seen = f"{found.false_positives}/{found.held_out}"
    bound = "" if found.upper is None else f" <= {found.upper:.3f}"
    hits = f"{round(found.true_positive_rate * found.marked)}/{found.marked}"
    low, high = found.interval or (0.0, 1.0)
    return f"{found.true_positive_rate:.3f} = {hits} [{low:.2f}, {high:.2f}] (FPR {seen}{bound})"


def _together(verdicts: Sequence[Verdict], alpha: float) -> str:
    if not verdicts:
        return NOTHING
    family = holm(verdicts, alpha)
    owned = family.outcomes.count("owned")
    text = f"{owned} of {len(verdicts)}"
    return text if owned else f"{text}, {family.needed} needed"
