"""Lay out the answer of a report: who is still recognised after what.

The map has a row per attack, by what it changes, and a column per method, by what it must see. A
cell says with a colour what became of the copies, and with numbers what was read off them and off
their twins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.records.nouns import Lineage, Outline, Record, evidence_of
from bench.records.table import NOTHING
from bench.reports.blocks import NO_THEFT, Block, Row, detection, judged, per_model
from bench.reports.notes import counts_text, distinct
from bench.reports.page.cells import STATES, state_of
from bench.reports.price.kinds import (
    SEEN,
    UNTOUCHED_ROW,
    by_kind,
    highest_innocent,
    kind_order,
    seen,
)
from bench.reports.price.prices import NO_THIEFS, Bills

VERDICTS = ("owned", "not owned", "incompatible", "undecided")
"""What can become of a copy that was asked about, in the order in which a cell is filled."""

UNTOLD = "kind not told"
"""The kind of an attack of which an older outline does not say what it changes."""

GRAVEST = ("failed", "hole", "incompatible", "skipped")
"""Of several reasons why nothing was read, the one that is shown."""

MIXED = "mixed"


@dataclass(frozen=True)
class Answer:
    """A cell of the map: what became of the copies of one attack under one method."""

    state: str  # a verdict, "mixed", or why there is none
    shares: Sequence[tuple[str, int]]  # verdicts, and the percent of copies up to each
    rate: str
    twin: str  # empty of a fingerprint, which has none
    said: str  # the whole cell in words
    place: str  # of its block and its row on the page
    numbers: Sequence[int]  # of its records on the page
    forged: bool = False  # what is owned here is an innocent

    @property
    def fill(self) -> str:
        """Return the colours of copies that came to different ends, side by side."""
        if self.state != MIXED:
            return ""
        starts = [0, *(end for _, end in self.shares)]
        parts = [
            f"var(--{_colour(verdict, self.forged)}) {start}% {end}%"
            for (verdict, end), start in zip(self.shares, starts, strict=False)
        ]
        return f"linear-gradient(90deg,{','.join(parts)})"


@dataclass(frozen=True)
class Column:
    """A method of an owner, and what it must see."""

    number: int  # of its block on the page
    method: str
    access: str
    seen: str  # the most of it


@dataclass(frozen=True)
class Kind:
    """The attacks of one kind, each with an answer per column; None where nobody asked."""

    name: str
    rows: Sequence[tuple[str, Sequence[Answer | None]]]


@dataclass(frozen=True)
class Map:
    """Everything asked of one owner's model."""

    owner: str
    columns: Sequence[Column]
    kinds: Sequence[Kind]
    innocents: Sequence[str]  # the highest rate of an innocent, column by column

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Return what methods must see, and how many columns stand under it."""
        return [*Counter(column.seen for column in self.columns).items()]


def _colour(verdict: str, forged: bool) -> str:
    """Name the colour of a verdict: where innocents are accused, to be owned is the bad end."""
    swapped = {"owned": "not owned", "not owned": "owned"} if forged else {}
    return swapped.get(verdict, verdict).replace(" ", "-")


def choices(drawn: Sequence[Map]) -> dict[str, list[str]]:
    """Return what maps can be filtered by, each value once."""
    return {
        "kind": distinct(kind.name for one in drawn for kind in one.kinds),
        "access": distinct(column.seen for one in drawn for column in one.columns),
        "method": distinct(column.method for one in drawn for column in one.columns),
    }


def numbered(blocks: Sequence[Block]) -> dict[str, int]:
    """Return the number of every cell on the page, by its key."""
    results = (result for block in blocks for result in block.results)
    return {result.key: number for number, result in enumerate(results)}


def maps(outline: Outline, records: Mapping[str, Record], blocks: Sequence[Block]) -> list[Map]:
    """Return a map per owner, in order."""
    bills, numbers = Bills.of(outline, records.values()), numbered(blocks)
    found = []
    for owner in distinct(block.owner for block in blocks):
        mine = [(n, block) for n, block in enumerate(blocks) if block.owner == owner]
        mine.sort(key=lambda one: seen(one[1]))
        kinds = [by_kind(block, bills) for _, block in mine]
        told = [
            Kind(
                kind if outline.steps or kind == UNTOUCHED_ROW else UNTOLD,
                [
                    *_rows(
                        mine,
                        [rows.get(kind, []) for rows in kinds],
                        outline.alpha,
                        numbers,
                        kind.split(" > ")[-1] in NO_THIEFS,
                    )
                ],
            )
            for kind in sorted(distinct(k for rows in kinds for k in rows), key=kind_order)
        ]
        columns = [
            Column(n, block.method, block.access or NOTHING, (*SEEN, "not told")[seen(block)])
            for n, block in mine
        ]
        innocents = [highest_innocent(block) for _, block in mine]
        found.append(Map(owner, columns, told, innocents))
    return found


def _rows(
    blocks: Sequence[tuple[int, Block]],
    rows: Sequence[Sequence[Row]],
    alpha: float,
    numbers: Mapping[str, int],
    forged: bool,
) -> Iterator[tuple[str, Sequence[Answer | None]]]:
    """Yield the attacks of one kind, each with its answers."""
    by_label = [{row.label: row for row in each} for each in rows]
    for label in distinct(row.label for each in rows for row in each):
        yield (
            label,
            [
                _answer(n, block, there[label], alpha, numbers, forged) if label in there else None
                for (n, block), there in zip(blocks, by_label, strict=True)
            ],
        )


def _answer(
    number: int, block: Block, row: Row, alpha: float, numbers: Mapping[str, int], forged: bool
) -> Answer:
    verdicts = judged(row, block.nulls, alpha)
    counted = Counter[str](verdict.outcome for verdict in verdicts)
    counted.update({"incompatible": row.unread} if row.unread else {})
    state = _state(row, counted)
    rate, twin = _rate(row, "released"), _rate(row, "owner")
    worth = "" if row.usable(block.least) else f", {NO_THEFT}"
    verdict = counts_text(verdicts, row.unread) if counted else STATES[state]
    beside = f"; twin {twin:.3f}" if twin is not None else ""
    read = f"rate {rate:.3f}, score {_score(row):.3f}" if rate is not None else "nothing read"
    made = [result for group in row.suspects.values() for result in group]
    return Answer(
        state=state,
        shares=_shares(counted),
        rate=f"{rate:.2f}" if rate is not None else "",
        twin=f"{twin:.2f}" if twin is not None else "",
        said=f"{block.method} after {row.label}: {verdict}, {read}{beside}{worth}",
        place=place_of(number, block, row),
        numbers=[numbers[result.key] for result in made],
        forged=forged,
    )


def place_of(number: int, block: Block, row: Row) -> str:
    """Name a row on the page by the number of its block and by its own."""
    return f"{number}.{next(n for n, other in enumerate(block.rows) if other is row)}"


def _rate(row: Row, origin: Lineage) -> float | None:
    found = detection(row, origin)
    return found.mean if found else None


def _score(row: Row) -> float:
    """Return the mean score of copies, which verdicts rank: a rate may be 0 and a copy owned."""
    return fmean(per_model((r, evidence_of(r).score) for r in row.records("released")))


def _state(row: Row, counted: Counter[str]) -> str:
    """Name what became of the copies of a row: one word, for it is one colour."""
    if len(counted) > 1:
        return MIXED
    if counted:
        return next(iter(counted))
    there = {state_of(result) for result in row.suspects["released"]}
    return next((state for state in GRAVEST if state in there), "hole")


def _shares(counted: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the verdicts that were passed, and the percent of copies up to the end of each."""
    total, reached, found = sum(counted.values()), 0, []
    for verdict in VERDICTS:
        if counted.get(verdict):
            reached += counted[verdict]
            found.append((verdict, round(100 * reached / total)))
    return found
