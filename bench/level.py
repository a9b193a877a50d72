"""Say how often a method's verdicts are wrong about innocents and right about marked copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from bench import inference, statistics
from bench.tables import NOTHING, Table
from bench.types import Record

if TYPE_CHECKING:
    from bench.ledger import Outline

RATE = 0.05
"""The false-positive rate at which detection is stated."""


def level_table(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> Table:
    """Return level, power and separation for every (owner, method, records)."""
    return Table(
        name="Level and power",
        caption=f"verdicts at alpha = {outline.alpha:g} ({outline.title or outline.name})",
        columns=(
            *("owner", "method", "strangers", "descendants", "innocents called owned"),
            *("copies owned", "AUC", f"TPR at FPR {RATE:g}", "Holm"),
        ),
        rows=tuple(
            (owner, method, *_line(records, outline.alpha)) for owner, method, records in groups
        ),
        notes=(
            "innocents called owned: each judged by all the others read with the same secret, with "
            "the one-sided 95 % bound on the rate, of the secret where it is highest. copies "
            "owned: attacked copies of the released model, exact 95 % interval as if they were "
            "independent. AUC: the chance that a copy outscores an innocent, 95 % bootstrap over "
            "models and keys. TPR: the threshold is set on half of the innocents; the rate in "
            "brackets, with its one-sided 95 % bound, counts the other half. Holm: copies owned "
            "when all verdicts of a method are passed together. needed: innocents, where those "
            "there can decide nothing.",
            *outline.reductions,
        ),
        heads=1,
    )


def decidable(outline: Outline, groups: Iterable[tuple[str, str, Sequence[Record]]]) -> bool:
    """Say whether any secret was read on innocents enough for a verdict."""
    needed = statistics.innocents_needed(outline.alpha)
    nulls = [n for *_, records in groups for n in statistics.innocents(records).values()]
    return any(
        len(null.strangers) >= needed
        and (null.descendants is None or len(null.descendants) >= needed)
        for null in nulls
    )


def _line(records: Sequence[Record], alpha: float) -> tuple[str, ...]:
    nulls = statistics.innocents(records)
    verdicts = _verdicts(records, nulls, alpha)
    marked, innocent = inference.readings(records)
    return (
        _range(len(null.strangers) for null in nulls.values()),
        _range(len(null.descendants) for null in nulls.values() if null.descendants is not None),
        _called(nulls.values(), alpha),
        _owned(verdicts),
        _separation(marked, innocent),
        _detection(marked, innocent),
        _together(verdicts, alpha),
    )


def _verdicts(
    records: Sequence[Record], nulls: Mapping[str, statistics.Innocents], alpha: float
) -> list[statistics.Verdict]:
    """Judge every distinct copy of the released model."""
    found = inference.populations(records)
    return [
        statistics.decide(
            record.evidence.score,
            nulls[claim].strangers,
            nulls[claim].descendants,
            alpha,
            clean=nulls[claim].clean,
        )
        for claim, population in sorted(found.items())
        for record in population.marked
        if record.evidence is not None
    ]


def _range(counts: Iterable[int]) -> str:
    values = sorted(set(counts))
    if not values:
        return NOTHING
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _called(nulls: Iterable[statistics.Innocents], alpha: float) -> str:
    checks = [statistics.false_positives(null, alpha) for null in nulls]
    decided = [check for check in checks if check.decided]
    if not decided:
        return NOTHING
    worst = max(decided, key=lambda check: check.upper)
    called, asked = sum(c.called for c in decided), sum(c.decided for c in decided)
    return f"{called} of {asked} (<= {worst.upper:.3f})"


def _owned(verdicts: Sequence[statistics.Verdict]) -> str:
    decided = [verdict for verdict in verdicts if verdict.outcome != "undecided"]
    if not decided:
        return f"undecided {len(verdicts)}" if verdicts else NOTHING
    owned = sum(verdict.outcome == "owned" for verdict in decided)
    low, high = inference.exact(owned, len(decided), 0.05)
    return f"{owned} of {len(decided)} [{low:.2f}, {high:.2f}]"


def _separation(marked: Sequence[inference.Reading], innocent: Sequence[inference.Reading]) -> str:
    if not marked or not innocent:
        return NOTHING
    found = inference.separation(marked, innocent)
    low, high = found.interval
    return f"{found.area:.3f} [{low:.3f}, {high:.3f}]"


def _detection(marked: Sequence[inference.Reading], innocent: Sequence[inference.Reading]) -> str:
    """Write the true-positive rate, or how many innocents it would take to state one."""
    found = inference.detection_at(
        [(r.model, r.score) for r in marked], [(r.model, r.score) for r in innocent], RATE
    )
    if found.true_positive_rate is None:
        return f"{found.needed} needed"
    seen = f"{found.false_positives}/{found.held_out}"
    bound = "" if found.upper is None else f" <= {found.upper:.3f}"
    return f"{found.true_positive_rate:.3f} (FPR {seen}{bound})"


def _together(verdicts: Sequence[statistics.Verdict], alpha: float) -> str:
    if not verdicts:
        return NOTHING
    family = inference.holm(verdicts, alpha)
    owned = family.outcomes.count("owned")
    text = f"{owned} of {len(verdicts)}"
    return text if owned else f"{text}, {family.needed} needed"
