"""Show a run as it goes: a live table on a terminal, one plain line per cell otherwise."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.records.nouns import Cell, Record

SHOWN = 12
"""Rows of the live table: the latest cells."""

STYLE = {"ok": "green", "skipped": "dim", "incompatible": "yellow", "failed": "bold red"}


def show(records: Iterable[Record], total: int, console: Console) -> Iterator[Record]:
    """Yield the records unchanged while showing each as it comes."""
    if console.is_terminal:
        yield from _live(records, total, console)
    else:
        yield from _lines(records, total, console)


def _lines(records: Iterable[Record], total: int, console: Console) -> Iterator[Record]:
    start = time.monotonic()
    for number, record in enumerate(records, start=1):
        elapsed = time.monotonic() - start
        line = f"[{number}/{total}] {elapsed:6.1f}s {record.status:12} {describe(record.cell)}"
        console.print(f"{line}: {_result(record)}", markup=False, highlight=False, soft_wrap=True)
        yield record


def _live(records: Iterable[Record], total: int, console: Console) -> Iterator[Record]:
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
            live.update(Group(_table(latest), head))
            yield record


def _table(records: Iterable[Record]) -> Table:
    table = Table("cell", "status", "result", box=None, pad_edge=False)
    for record in records:
        status = Text(record.status, style=STYLE[record.status])
        table.add_row(Text(describe(record.cell)), status, Text(_result(record)))
    return table


def describe(cell: Cell) -> str:
    """Name a cell in a few words: owner, method, what the suspect descends from, attack, seeds."""
    kind = {"released": "marked", "owner": "twin", "stranger": "stranger"}[cell.lineage]
    words = [cell.method.args.get(setting) for setting in ("variant", "readout")]
    method = " ".join([cell.method.name, *(str(word) for word in words if word)])
    steps = " > ".join(_step(step.name, step.args) for step in cell.attack)
    return f"{cell.owner.name} · {method} · {kind} · {steps} · seed {cell.attack_seed}"


def _step(name: str, args: object) -> str:
    words = args if isinstance(args, dict) else {}
    telling = [str(words[key]) for key in ("schedule", "amount", "index") if key in words]
    return " ".join([name, *telling])


def _result(record: Record) -> str:
    if record.evidence is None:
        return record.reason
    found = f"rate {record.evidence.rate:.3f}, score {record.evidence.score:.4f}"
    if record.utility is not None:
        found += f", {record.utility.metric} {record.utility.value:.3f}"
    return found
