"""Say how hard suspects are to tell, beside what became of them: the hard cases by themselves.

A stolen copy is hard that is farther from the owner than a stranger is; an innocent, that is near.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.records.nouns import POPULATIONS, UNTOUCHED, Json, Lineage, Outline, Record
from bench.records.table import NOTHING, Table
from bench.reports.blocks import Block, Row, grouped, judged, per_model, task_of
from bench.reports.notes import counts_text
from bench.verdicts.innocents import model_name, secret_of
from bench.verdicts.separation import UNREAD

NEAR = 0.75
"""CKA with the owner from which an innocent is near. By convention."""


@dataclass(frozen=True, slots=True)
class _Suspect:
    """One model read with one secret: how near it is to the owner, and its score."""

    key: str
    model: str
    score: float
    cka: float
    stranger: bool


def tables(outline: Outline, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Return how hard every row's suspects are and what the hard ones come to; none unmeasured."""
    blocks, legend = grouped(outline, records)
    if not any(how_alike(record) for block in blocks for record in block.records):
        return ()
    return _hardness(outline, blocks, legend), _slices(outline, blocks)


def how_alike(record: Record) -> Mapping[str, Json]:
    """Return what was measured of a suspect and the owner, by name; empty if nothing was."""
    found: Mapping[str, Json] = record.notes.get("hardness", {})
    return found


def _hardness(outline: Outline, blocks: Sequence[Block], legend: Sequence[str]) -> Table:
    return Table(
        name="Hardness",
        caption=f"how alike suspects and the owner are, beside the verdict ({outline.heading})",
        columns=(
            *("owner", "method", "attack", "suspect", "n", "label agreement", "CKA"),
            *("utility gap", "rate", "score", "verdict"),
        ),
        rows=tuple(
            (block.owner, block.method, row.label, POPULATIONS[origin], *cells)
            for block in blocks
            for row in block.rows
            for origin in POPULATIONS
            if (cells := _cells(block, row, origin, outline.alpha))
        ),
        notes=(
            "On the owner's held-out images, means over n models. label agreement: the share on "
            "which a suspect says what the owner says, with its own head where that tells the "
            "owner's classes, else with the owner's. CKA: linear, unbiased, of the features [CLS; "
            "mean patch]; 1 is most alike, independent features are at 0. utility gap: points "
            "below the released model, where both were measured on one task. score: mean "
            f"agreement with the secret, which is what verdicts rank. {NOTHING}: cannot be told.",
            *legend,
            *outline.reductions,
        ),
        heads=2,
    )


def _cells(block: Block, row: Row, origin: Lineage, alpha: float) -> tuple[str, ...]:
    """Write one population of a row; nothing where no suspect was measured."""
    found = [r.record for r in row.suspects[origin] if r.record and how_alike(r.record)]
    if not found:
        return ()
    read = [(record, record.evidence) for record in found if record.evidence]
    gaps = [gap for record in found if (gap := _gap(block, record)) is not None]
    marked = origin == "released"
    return (
        str(len({model_name(record) for record in found})),
        _mean(found, "label_agreement"),
        _mean(found, "cka"),
        f"{fmean(gaps):+.1f}" if gaps else NOTHING,
        f"{fmean(per_model((r, e.rate) for r, e in read)):.3f}" if read else NOTHING,
        f"{fmean(per_model((r, e.score) for r, e in read)):.3f}" if read else NOTHING,
        counts_text(judged(row, block.nulls, alpha), row.unread) if marked else NOTHING,
    )


def _mean(found: Iterable[Record], what: str) -> str:
    known = [(r, how_alike(r)[what]) for r in found if how_alike(r).get(what) is not None]
    return f"{fmean(per_model(known)):.3f}" if known else NOTHING


def _gap(block: Block, record: Record) -> float | None:
    """Return the points that a suspect lies below the released model on one task with it."""
    whole = next((row for row in block.rows if row.label == UNTOUCHED), None)
    if whole is None or record.utility is None:
        return None
    before = whole.by_task("released").get(task_of(record.utility))
    return None if before is None else 100 * (before - record.utility.value)


def _slices(outline: Outline, blocks: Sequence[Block]) -> Table:
    return Table(
        name="Hardness slices",
        caption=f"stolen against innocent, by how near the owner they are ({outline.heading})",
        columns=("owner", "method", "slice", "stolen", "innocent", "AUC"),
        rows=tuple(
            (block.owner, block.method, *cells) for block in blocks for cells in _sliced(block)
        ),
        notes=(
            "AUC: the chance that a stolen copy outscores an innocent read with the same key, a "
            "tie being no win, and a copy that cannot be read outscoring nobody. stolen, innocent: "
            "models, attacked copies and all innocents that were measured. far but stolen: copies "
            "with a lower CKA than the highest of any stranger. near but innocent: innocents with "
            f"a CKA above {NEAR:g}. {NOTHING}: none on one side.",
            *outline.reductions,
        ),
        heads=2,
    )


def _sliced(block: Block) -> Iterator[tuple[str, ...]]:
    stolen, innocent = _suspects(block, "released"), _suspects(block, "owner", "stranger")
    strangest = max((one.cka for one in innocent if one.stranger), default=None)
    far = [one for one in stolen if strangest is not None and one.cka < strangest]
    near = [one for one in innocent if one.cka > NEAR]
    for name, copies, others in (
        ("all", stolen, innocent),
        ("far but stolen", far, innocent),
        ("near but innocent", stolen, near),
        ("both", far, near),
    ):
        counted = (str(len({one.model for one in part})) for part in (copies, others))
        yield (name, *counted, _area(copies, others))


def _suspects(block: Block, *origins: Lineage) -> list[_Suspect]:
    """Return the measured suspects of some populations, each once; an untouched one is no theft."""
    found = [
        _Suspect(
            key=secret_of(record),
            model=model_name(record),
            score=record.evidence.score if record.evidence else UNREAD,
            cka=how_alike(record)["cka"],
            stranger=origin == "stranger",
        )
        for row in block.rows
        for origin in origins
        for record in (result.record for result in row.suspects[origin])
        if record and how_alike(record).get("cka") is not None
        if record.evidence or (record.status == "incompatible" and origin == "released")
        if row.chain or origin != "released"
    ]
    return list({(one.key, one.model): one for one in found}.values())  # they stand in two rows


def _area(copies: Sequence[_Suspect], others: Sequence[_Suspect]) -> str:
    wins = [one.score > other.score for one in copies for other in others if one.key == other.key]
    return f"{fmean(wins):.3f}" if wins else NOTHING
