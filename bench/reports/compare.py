"""Say whether new results are the old ones, better or worse, cell by cell.

Equal evidence settles a cell. Where it differs, a marked copy must not be recognised less, an
innocent not more, and no suspect may do worse at its task, each by more than a stated tolerance.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bench.records.ledger import Results
from bench.records.nouns import Cell, Json, Record, canonical, unpacked
from bench.records.table import NOTHING, Table
from bench.reports.blocks import labelled
from bench.verdicts.innocents import lineage

Outcome = Literal["same", "within tolerance", "improved", "regressed", "not measured"]

_Number = tuple[str, float | str, float | str, Outcome]
"""What differs, before, after, and what that means."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a number may move before it counts: a few queries or test images of hundreds."""

    rate: float = 0.02
    score: float = 0.01
    utility: float = 0.02


@dataclass(frozen=True, slots=True)
class Difference:
    """One number of one cell, or in words why it cannot be compared."""

    key: str
    cell: Cell  # as HEAD asks it
    what: str
    base: float | str
    head: float | str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cells that both sides ask, and how many either asks alone."""

    differences: tuple[Difference, ...]
    equal: int  # cells whose numbers are all the same
    compared: int  # cells answered on both sides
    unanswered: int  # cells that BASE does not answer
    by_content: int  # cells matched by content, their keys being different
    only_base: int
    only_head: int

    @property
    def outcome(self) -> Literal["same", "regressed", "not measured"]:
        """Return the verdict on HEAD; where nothing was compared it is never "same"."""
        outcomes = {difference.outcome for difference in self.differences}
        if "regressed" in outcomes:
            return "regressed"
        return "not measured" if "not measured" in outcomes or not self.compared else "same"


def compare(base: Results, head: Results, tolerance: Tolerance) -> Comparison:
    """Compare HEAD with BASE over the cells both ask, matched by key, else by content."""
    known = {key: key for key, _ in base.outline.cells}
    alike = {_content(cell): key for key, cell in base.outline.cells}
    differences: list[Difference] = []
    matched: dict[str, str] = {}
    tally: Counter[str] = Counter()
    for key, cell in head.outline.cells:
        twin = known.get(key) or alike.get(_content(cell))
        if twin is None:
            continue
        matched[key] = twin
        before, after = base.records.get(twin), head.records.get(key)
        if before is None or before.evidence is None:
            tally["unanswered"] += 1
        elif after is None or after.evidence is None:
            word = "no record" if after is None else after.status
            differences.append(Difference(key, cell, "evidence", "ok", word, "not measured"))
        else:
            found = [Difference(key, cell, *one) for one in _numbers(before, after, tolerance)]
            differences += found
            tally["compared"] += 1
            tally["equal"] += not found
    return Comparison(
        differences=tuple(differences),
        equal=tally["equal"],
        compared=tally["compared"],
        unanswered=tally["unanswered"],
        by_content=sum(key != twin for key, twin in matched.items()),
        only_base=len(known.keys() - set(matched.values())),
        only_head=len(head.outline.cells) - len(matched),
    )


def _content(cell: Cell) -> str:
    """Write a cell without versions: they rise when results may change, which is to be seen."""
    return canonical(_unversioned(dataclasses.asdict(cell)))


def _unversioned(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {k: _unversioned(v) for k, v in value.items() if k != "version" and v is not None}
    return [_unversioned(item) for item in value] if isinstance(value, list | tuple) else value


def _numbers(base: Record, head: Record, tolerance: Tolerance) -> Iterator[_Number]:
    """Yield every number that differs, the evidence's only where the evidence does."""
    assert base.evidence is not None
    assert head.evidence is not None
    before, after = base.evidence, head.evidence
    good = 1 if lineage(base) == "released" else -1  # an innocent must not be recognised more
    if before != after:
        if before.rule == after.rule:
            yield from _number("rate", before.rate, after.rate, tolerance.rate, good)
        else:
            yield "rule", before.rule.text, after.rule.text, "not measured"
        yield from _number("score", before.score, after.score, tolerance.score, good)
        if before.rate == after.rate and before.score == after.score:
            yield "evidence", before.rate, after.rate, "within tolerance"  # of other queries
    yield from _utility(base, head, tolerance.utility)
    if (was := base.fidelity) and (now := head.fidelity):
        cosines = fmean(was.feature_cosine), fmean(now.feature_cosine)
        yield from _number("feature cosine", *cosines, tolerance.score)
        probes = was.released_probe_accuracy, now.released_probe_accuracy
        yield from _number("probe accuracy", *probes, tolerance.utility)
        if was.own_images and now.own_images:
            own = [fmean(unpacked(f.released_right, f.own_images)) for f in (was, now)]
            yield from _number(
                "accuracy on the owner's own task", own[0], own[1], tolerance.utility
            )


def _utility(base: Record, head: Record, tolerance: float) -> Iterator[_Number]:
    before, after = base.utility, head.utility
    if before is None or before == after:
        return
    if after is None or after.metric != before.metric:
        yield "utility", before.metric, after.metric if after else "none", "not measured"
    else:
        yield from _number("utility", before.value, after.value, tolerance)


def _number(
    what: str, before: float, after: float, tolerance: float, good: int = 1
) -> Iterator[_Number]:
    gain = good * (after - before)
    if abs(gain) <= tolerance + 1e-9:  # 0.92 - 0.90 is a little more than 0.02
        if gain:
            yield what, before, after, "within tolerance"
    else:
        yield what, before, after, "improved" if gain > 0 else "regressed"


def table(found: Comparison, head: Results, tolerance: Tolerance) -> Table:
    """Return what moved beyond tolerance or was lost, and how much there was to compare."""
    cells = [cell for _, cell in head.outline.cells]
    owners = labelled(cell.owner for cell in cells)
    methods = labelled(cell.method for cell in cells)
    steps = labelled(step for cell in cells for step in cell.attack)
    shown = [d for d in found.differences if d.outcome != "within tolerance"]
    rows = [
        (
            owners(d.cell.owner),
            methods(d.cell.method),
            steps(*d.cell.attack),
            f"{d.cell.lineage} {d.cell.method_seed}/{d.cell.attack_seed}",
            d.what,
            *_change(d.base, d.head),
            d.outcome,
            d.key,
        )
        for d in sorted(shown, key=lambda d: (d.outcome != "regressed", d.outcome == "improved"))
    ]
    legend = (*owners.legend, *methods.legend, *steps.legend)
    used = {name for row in rows for cell in row[:3] for name in cell.split(" > ")}
    return Table(
        name="Comparison",
        caption=f"HEAD against BASE: {found.outcome} ({head.outline.name})",
        columns=(
            *("owner", "method", "attack", "suspect", "what"),
            *("BASE", "HEAD", "change", "outcome", "cell"),
        ),
        rows=tuple(rows),
        notes=(
            *_counts(found),
            f"tolerances: rate {tolerance.rate:g}, score {tolerance.score:g}, utility "
            f"{tolerance.utility:g}. A suspect is named by lineage and seeds, method's / attack's.",
            *(line for line in legend if line.partition(":")[0] in used),
        ),
        heads=2,
    )


def _change(base: float | str, head: float | str) -> tuple[str, str, str]:
    if isinstance(base, str) or isinstance(head, str):
        return str(base), str(head), NOTHING
    return f"{base:.3f}", f"{head:.3f}", f"{head - base:+.3f}"


def _counts(found: Comparison) -> Iterable[str]:
    """Yield in sentences how much was compared and what was not."""
    if not found.compared:
        yield "nothing was compared: no cell has evidence on both sides."
    outcomes = Counter(difference.outcome for difference in found.differences)
    yield (
        f"{found.compared} cells compared, {found.equal} of them alike in every number. Numbers "
        f"that differ: {outcomes['within tolerance']} within tolerance, {outcomes['improved']} "
        f"improved, {outcomes['regressed']} regressed. {outcomes['not measured']} not measured any "
        "more."
    )
    if found.by_content:
        yield f"{found.by_content} cells matched by content: their keys differ."
    if found.unanswered:
        yield f"{found.unanswered} cells have no evidence in BASE."
    if found.only_base or found.only_head:
        yield f"{found.only_base} cells only BASE asks, {found.only_head} only HEAD."
