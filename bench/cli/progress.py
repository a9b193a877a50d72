"""Show a run as it goes: a live table on a terminal, one plain line per cell otherwise."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.records.nouns import POPULATIONS, Cell, Record
from bench.reports.blocks import labelled

SHOWN = 12
"""Rows of the live table: the latest cells."""

STYLE = {"ok": "green", "skipped": "dim", "incompatible": "yellow", "failed": "bold red"}


Describe = Callable[[Cell], str]
"""Names a cell in a few words."""


def show(
    records: Iterable[Record], total: int, describe: Describe, console: Console
) -> Iterator[Record]:
    """Yield the records unchanged while showing each as it comes."""
    shown = _live if console.is_terminal else _lines
    yield from shown(records, total, describe, console)


def names(cells: Sequence[Cell]) -> Describe:
    """Return what names a suite's cells as its tables do: by the settings that tell them apart.

    A name holds owner, method, what the suspect descends from, what was done to it, and the seed.
    """
    owners = labelled(cell.owner for cell in cells)
    methods = labelled(cell.method for cell in cells)
    steps = labelled(step for cell in cells for step in cell.attack)
    accusers = labelled(cell.accuser for cell in cells if cell.accuser is not None)
    kinds = dict(POPULATIONS)

    def describe(cell: Cell) -> str:
        who = f"{owners(cell.owner)} · {methods(cell.method)} · {kinds[cell.lineage]}"
        if cell.accuser is not None:
            who = f"{accusers(cell.accuser)} · {who}"
        return f"{who} · {steps(*cell.attack)} · seed {cell.attack_seed}"

    return describe


def _lines(
    records: Iterable[Record], total: int, describe: Describe, console: Console
) -> Iterator[Record]:
    start = time.monotonic()
    for number, record in enumerate(records, start=1):
        elapsed = time.monotonic() - start
        line = f"[{number}/{total}] {elapsed:6.1f}s {record.status:12} {describe(record.cell)}"
        console.print(f"{line}: {_result(record)}", markup=False, highlight=False, soft_wrap=True)
        yield record


def _live(
    records: Iterable[Record], total: int, describe: Describe, console: Console
) -> Iterator[Record]:
    latest: deque[Record] = deque(maxlen=SHOWN)
    counts: Counter[str] = Counter()
    start = time.monotonic()
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        live.update(Text(f"0 of {total} cells"))
        for record in records:
            latest.append(record)
            counts[record.status] += 1
            summary = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
            elapsed = time.monotonic() - start
            head = Text(f"{counts.total()} of {total} cells in {elapsed:.0f} s: {summary}")
            live.update(Group(_table(latest, describe), head))
            yield record


def _table(records: Iterable[Record], describe: Describe) -> Table:
    table = Table("cell", "status", "result", box=None, pad_edge=False)
    for record in records:
        status = Text(record.status, style=STYLE[record.status])
        table.add_row(Text(describe(record.cell)), status, Text(_result(record)))
    return table


def _result(record: Record) -> str:
    if record.evidence is None:
        return record.reason
    found = f"rate {record.evidence.rate:.3f}, score {record.evidence.score:.4f}"
    if record.utility is not None:
        found += f", {record.utility.metric} {record.utility.value:.3f}"
    return found
