"""Show a run as it goes: a live table on a terminal, plain lines otherwise.

For machines every event is a line of JSON: the start, each cell, the end.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleRenderable, Group, RichCast
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.records.nouns import POPULATIONS, Cell, Json, Record
from bench.reports.blocks import labelled

if TYPE_CHECKING:
    from bench.models.meter import Meter
    from bench.suite.graph import Kind, Stage

SHOWN = 12
"""Rows of the live table: the latest cells."""

PIPED = 100
"""Lines of cells that a pipe gets, about, and the failed ones."""

STYLE = {"ok": "green", "skipped": "dim", "incompatible": "yellow", "failed": "bold red"}


Describe = Callable[[Cell], str]
"""Names a cell in a few words."""


DOING: Mapping[Kind, str] = {
    "owner": "loading an owner",
    "classifier": "training a classifier for the owner",
    "cohort": "training strangers",
    "protect": "protecting",
    "attack": "attacking",
    "align": "aligning",
    "extract": "reading",
    "utility": "measuring utility",
    "fidelity": "measuring what the mark cost",
    "hardness": "measuring hardness",
}
"""What is done in a stage, in words."""


class Seen:
    """What a run is at: its stages that are being carried out, and how long the others may take.

    The time left is that of stages alike, as long as those took that have ended in this run.
    """

    def __init__(self) -> None:
        self.stages: Mapping[str, Stage] = {}
        self._began: dict[str, float] = {}
        self._took = defaultdict[str, list[float]](list)  # by kind
        self._left = Counter[str]()

    def look(self, busy: Collection[str], left: Collection[str]) -> None:
        """Note what is being carried out now, and what has ended since."""
        now = time.monotonic()
        for key in [key for key in self._began if key not in busy]:
            self._took[self.stages[key].kind].append(now - self._began.pop(key))
        self._began.update((key, now) for key in busy if key not in self._began)
        self._left = Counter(self.stages[key].kind for key in left if key not in busy)

    @property
    def now(self) -> str:
        """Say what is being carried out, and for how long already."""
        now = time.monotonic()
        said = [f"{doing(self.stages[k])} ({clock(now - t)})" for k, t in [*self._began.items()]]
        return f"now: {', '.join(said)}" if said else "now: looking at what there is already"

    @property
    def remaining(self) -> str:
        """Say how long it may still take; nothing before a stage has ended."""
        took = {kind: fmean(seconds) for kind, seconds in [*self._took.items()]}
        if not took:
            return ""
        usual = fmean(took.values())
        now, side = time.monotonic(), max(1, len(self._began))
        total = sum(count * took.get(kind, usual) for kind, count in [*self._left.items()])
        for key, began in [*self._began.items()]:
            total += max(0.0, took.get(self.stages[key].kind, usual) - (now - began))
        return f"; about {clock(total / side)} left"


def doing(stage: Stage) -> str:
    """Say in words what is done in a stage."""
    spec = stage.recipe.get("method") or stage.recipe.get("step")
    return f"{DOING[stage.kind]} {spec['name'] if isinstance(spec, Mapping) else ''}".strip()


def clock(seconds: float) -> str:
    """Write seconds as minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show(
    records: Iterable[Record],
    total: int,
    describe: Describe,
    console: Console,
    seen: Seen | None = None,
    verbose: bool = False,
) -> Iterator[Record]:
    """Yield the records unchanged while showing each as it comes, and what is `seen` meanwhile.

    A pipe gets a line a cell where there are few, or if it is to be `verbose`.
    """
    if console.is_terminal:
        yield from _live(records, total, describe, console, seen or Seen())
    else:
        every = 1 if verbose else math.ceil(total / PIPED)
        yield from _lines(records, total, describe, console, every)


def logged(records: Iterable[Record], total: int, write: Callable[[str], None]) -> Iterator[Record]:
    """Yield the records unchanged, and write each as a line of JSON."""
    start = time.monotonic()
    for number, record in enumerate(records, start=1):
        cell, evidence, utility = record.cell, record.evidence, record.utility
        found: dict[str, Json] = {
            "event": "cell",
            "number": number,
            "of": total,
            "seconds": round(time.monotonic() - start, 3),
            "key": record.key,
            "status": record.status,
            "reason": record.reason,
            "owner": cell.owner.json(),
            "method": cell.method.json(),
            "attack": [step.json() for step in cell.attack],
            "lineage": cell.lineage,
            "seeds": [cell.method_seed, cell.attack_seed],
            "rate": evidence and evidence.rate,
            "score": evidence and evidence.score,
            "utility": utility and utility.value,
        }
        write(json.dumps(found))
        yield record


class _Work:
    """What a terminal shows of work of which no plan is known: what it has sent through models."""

    def __init__(self, what: str, meter: Meter) -> None:
        self._what, self._meter, self._start = what, meter, time.monotonic()

    def __rich__(self) -> Text:
        ways = {"forward": self._meter.forward_passes, "back": self._meter.backward_passes}
        sent = ", ".join(f"{count:,.0f} images {way}" for way, count in ways.items() if count >= 1)
        clocked = f"{self._what} ({clock(time.monotonic() - self._start)})"
        return Text(f"{clocked}: {sent}" if sent else clocked)


def _screen(shown: ConsoleRenderable | RichCast, console: Console) -> Live:
    return Live(shown, console=console, refresh_per_second=4, transient=True)


@contextlib.contextmanager
def working(what: str, console: Console) -> Iterator[None]:
    """Show on a terminal, while the block lasts, for how long and what it sent through models."""
    if not console.is_terminal:
        yield
        return
    import torch

    from bench.models.meter import measuring

    with measuring(torch.device("cpu")) as meter, _screen(_Work(what, meter), console):
        yield


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
    records: Iterable[Record], total: int, describe: Describe, console: Console, every: int
) -> Iterator[Record]:
    start = time.monotonic()
    for number, record in enumerate(records, start=1):
        if number % every and number != total and record.status != "failed":
            yield record
            continue
        elapsed = time.monotonic() - start
        line = f"[{number}/{total}] {elapsed:6.1f}s {record.status:12} {describe(record.cell)}"
        console.print(f"{line}: {_result(record)}", markup=False, highlight=False, soft_wrap=True)
        yield record


class _Screen:
    """What a terminal shows of a run, drawn anew four times a second: its clocks go on."""

    def __init__(self, total: int, describe: Describe, seen: Seen) -> None:
        self._total, self._describe, self._seen = total, describe, seen
        self._latest: deque[Record] = deque(maxlen=SHOWN)
        self._counts: Counter[str] = Counter()
        self._start = time.monotonic()

    def add(self, record: Record) -> None:
        self._latest.append(record)
        self._counts[record.status] += 1

    def __rich__(self) -> Group:
        counts = self._counts.copy()
        summary = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
        elapsed = clock(time.monotonic() - self._start)
        told = f": {summary}" if summary else ""
        head = f"{counts.total()} of {self._total} cells in {elapsed}{told}{self._seen.remaining}"
        table = [_table([*self._latest], self._describe)] if self._latest else []
        return Group(*table, Text(head), Text(self._seen.now))


def _live(
    records: Iterable[Record], total: int, describe: Describe, console: Console, seen: Seen
) -> Iterator[Record]:
    screen = _Screen(total, describe, seen)
    with _screen(screen, console) as live:
        for record in records:
            screen.add(record)
            live.refresh()
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
