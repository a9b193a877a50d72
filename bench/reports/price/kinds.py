"""Lay out by what attacks change what the worst of each kind leaves of every claim.

Kinds are never averaged: of each it is the worst row that is shown. Columns come in the order of
what a method must see, the weights first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import get_args

from bench.records.nouns import POPULATIONS, Change, Lineage, Outline, Record
from bench.records.table import NOTHING, Table
from bench.reports.blocks import (
    LOST,
    NO_THEFT,
    WORTHLESS,
    Block,
    Row,
    any_unread,
    grouped,
    judged,
    per_model,
)
from bench.reports.notes import counts_text, distinct
from bench.reports.price.prices import NO_THIEFS, Bills

UNTOUCHED_ROW = "untouched"

INNOCENTS = "innocents"
"""The row of what a method reads off models that owe its owner nothing."""

CHANGES: tuple[str, ...] = get_args(Change)

SEEN = ("weights", "features", "logits", "labels")
"""What a method may have to see, the most first."""

NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class _Column:
    """One method of an owner: its rows by kind of change."""

    block: Block
    kinds: Mapping[str, Sequence[Row]]


def tables(outline: Outline, records: Mapping[str, Record]) -> tuple[Table, ...]:
    """Return one table, or none where no outline tells what attacks change."""
    if not outline.steps:
        return ()
    blocks, legend = grouped(outline, records)
    bills = Bills.of(outline, records.values())
    columns = sorted(
        (_Column(block, by_kind(block, bills)) for block in blocks),
        key=lambda column: seen(column.block),
    )
    methods = distinct(column.block.method for column in columns)
    rows = [
        (owner, *cells)
        for owner in distinct(block.owner for block in blocks)
        for cells in _rows(
            {c.block.method: c for c in columns if c.block.owner == owner},
            methods,
            bills,
            outline.alpha,
        )
    ]
    adaptive = any(cells[3] != NOTHING for cells in rows)
    shown = [c for c in range(4 + len(methods)) if c != 3 or adaptive]
    names = ("owner", "change", "attacks", "the thief knows", *methods)
    found = Table(
        name="Table 2 by kind",
        caption=f"the worst attack of every kind ({outline.heading})",
        columns=tuple(names[c] for c in shown),
        rows=tuple(tuple(cells[c] for c in shown) for cells in rows),
        notes=(*_notes(blocks, rows), *legend, *outline.reductions),
        heads=1,
    )
    return (found,)


def by_kind(block: Block, bills: Bills) -> dict[str, list[Row]]:
    """Sort the rows of attacks on the released model by what they change."""
    found: dict[str, list[Row]] = {}
    for row in block.rows:
        if row.suspects["released"]:
            kind = bills.change(row.chain) if row.chain else UNTOUCHED_ROW
            found.setdefault(kind, []).append(row)
    return found


def seen(block: Block) -> int:
    """Rank a method by the most it must see; last where no record tells."""
    words = block.access.partition(" (")[0].split(", ")
    return min((SEEN.index(word) for word in words if word in SEEN), default=len(SEEN))


def _rows(
    columns: Mapping[str, _Column], methods: Sequence[str], bills: Bills, alpha: float
) -> Iterator[tuple[str, ...]]:
    """Yield a row of what methods need, one per kind, and one of what is read off innocents."""
    there = [columns.get(method) for method in methods]
    access = ((column.block.access or NOTHING) if column else NOTHING for column in there)
    yield ("needs", NOTHING, NOTHING, *access)
    kinds = distinct(kind for column in columns.values() for kind in column.kinds)
    for kind in sorted(kinds, key=kind_order):
        rows = [row for c in columns.values() for row in c.kinds.get(kind, [])]
        attacks = len({row.label for row in rows})
        knows = distinct(filter(None, (bills.adaptive(row.chain) for row in rows)))
        yield (
            kind,
            NOTHING if kind == UNTOUCHED_ROW else str(attacks),
            "; ".join(knows) or NOTHING,
            *(NOTHING if c is None else _worst(c, kind, alpha) for c in there),
        )
    read = (NOTHING if column is None else highest_innocent(column.block) for column in there)
    yield (INNOCENTS, NOTHING, NOTHING, *read)


def kind_order(kind: str) -> tuple[int, ...]:
    """Put the untouched model first, then kinds as `Change` lists them, chains after their head."""
    return tuple(CHANGES.index(part) if part in CHANGES else -1 for part in kind.split(" > "))


def _worst(column: _Column, kind: str, alpha: float) -> str:
    """Write the worst row of one kind: its rate, its verdicts, and which attack it is."""
    if "serving" in kind and seen(column.block) == SEEN.index("weights"):
        return NOT_APPLICABLE  # who sees the weights does not ask the server
    rows = column.kinds.get(kind, [])
    found = [row for row in rows if row.records("released") or row.unread]
    if not found:
        skipped = any(
            r.record and r.record.status == "skipped"
            for row in rows
            for r in row.suspects["released"]
        )
        return NOT_APPLICABLE if skipped else NOTHING
    sign = -1 if kind.split(" > ")[-1] in NO_THIEFS else 1  # what a forger is after is owned
    row = min(found, key=lambda row: tuple(sign * v for v in _standing(row, column.block, alpha)))
    _, rate = _standing(row, column.block, alpha)
    verdicts = counts_text(judged(row, column.block.nulls, alpha), row.unread)
    worth = "" if row.usable(column.block.least) else f", {NO_THEFT}"
    named = "" if kind == UNTOUCHED_ROW else f": {row.label}"
    return f"{rate:.3f} {verdicts}{named}{worth}"


def _standing(row: Row, block: Block, alpha: float) -> tuple[float, float]:
    """Return the share of copies owned and the mean rate; what cannot be read has neither."""
    owned = [v.outcome == "owned" for v in judged(row, block.nulls, alpha)] + [False] * row.unread
    rates = per_model((r, r.evidence.rate) for r in row.records("released") if r.evidence)
    return fmean(owned), fmean([*rates, *[0.0] * row.unread])


def highest_innocent(block: Block) -> str:
    """Write the highest rate of the method's own rule on any innocent, and on which."""
    populations: tuple[Lineage, ...] = ("owner", "stranger")
    found = [
        (record.evidence.rate, f"{POPULATIONS[origin]}, {row.label}")
        for row in block.rows
        for origin in populations
        for record in row.records(origin)
        if record.evidence
    ]
    if not found:
        return NOTHING
    rate, who = max(found, key=lambda one: one[0])
    return f"{rate:.3f} ({who})"


def _notes(blocks: Sequence[Block], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield (
        "change: what attacks of a kind change, of a chain step by step; attacks: how many of the "
        "kind were tried. Of each kind the worst row stands here, by verdicts and then by the mean "
        "rate over copies, never a mean over rows. untouched: the released model as it is. "
        f"{INNOCENTS}: the highest rate of the method's own rule on any model that is innocent; "
        f"rates differ in unit from method to method. {NOT_APPLICABLE}: a method that sees what "
        "the kind leaves alone, or cannot see what it needs. Methods come by what they must see: "
        f"{', '.join(SEEN)}. {NOTHING}: not asked."
    )
    if any_unread(blocks):
        yield LOST
    if any(NO_THEFT in cell for row in rows for cell in row):
        yield WORTHLESS
