"""The commands that run a suite, plan it, and look after the store."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bench
from bench.cli import progress
from bench.cli.parser import (
    INTERRUPTED,
    OK,
    SOME_FAILED,
    Command,
    a_device,
    a_suite,
    data_root,
    positive,
    taken,
)
from bench.records.nouns import how_many
from bench.records.table import print_table, wide_console, write_tables

if TYPE_CHECKING:
    from rich.console import Console

    from bench.records.ledger import Results
    from bench.records.nouns import Cell, Outline, Record
    from bench.runs.session import Start
    from bench.suite.graph import Plan


def _run_arguments(command: argparse.ArgumentParser) -> None:
    a_suite(command)
    _how_arguments(command)
    command.add_argument(
        "--drop-copies",
        action="store_true",
        help="delete the weights of an attacked copy as soon as no cell of this suite needs them: "
        "less disk, and records are as ever; a later suite makes again what it needs; two runs at "
        "once on one store drop nothing",
    )
    command.add_argument(
        "--stale",
        choices=("warn", "remake"),
        default="warn",
        help="what becomes of artefacts and answers that other code made than is here now: told of "
        "(default), or made again with all that follows from them",
    )

    command.add_argument(
        "--verbose", action="store_true", help="print every cell, and all tables before the answer"
    )


def _how_arguments(command: argparse.ArgumentParser) -> None:
    """Take where stages are carried out, and by how many."""
    a_device(command)
    command.add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help="processes (default): workers on this machine; ray: all GPUs of it, or a cluster",
    )
    command.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of a Ray cluster, auto for the one on this machine (default: Ray on this machine)",
    )
    command.add_argument(
        "--workers",
        type=positive,
        help="stages carried out side by side (default: 1 on a GPU, else one per --threads cores; "
        "with ray, as many as the cluster has room for)",
    )
    command.add_argument(
        "--threads",
        type=positive,
        default=1,
        help="CPU threads of one stage; evidence is repeatable for equal numbers (default 1)",
    )
    command.add_argument(
        "--log-json",
        action="store_true",
        help="say what happens in lines of JSON, for machines: start, each cell, end",
    )
    command.add_argument(
        "--compile",
        action="store_true",
        help="run transformer blocks through torch.compile: the last digits of evidence may "
        "differ, and records say so (meant for GPUs; on a CPU it made DeiT-Tiny slower)",
    )


def run_suite(arguments: argparse.Namespace) -> int:
    """Answer the cells that have no record yet, print the answer and write the tables."""
    console = wide_console()
    with console.status("reading the suite and its data"):
        plan = bench.plan(arguments.suite, arguments.data)
    home = arguments.results / plan.suite.name
    if not arguments.log_json:
        _print_warnings(plan, console)
    try:
        results = bench.run(
            plan,
            arguments.results,
            arguments.data,
            **_how(arguments, console, home),
            drop_copies=arguments.drop_copies,
            stale=arguments.stale,
        )
    except KeyboardInterrupt:
        print(f"bench: interrupted; {_kept(plan, home)}", file=sys.stderr)
        return INTERRUPTED
    made, priced = bench.report(results), bench.report(results, price=True)
    write_tables(home, (*made, *priced))
    if arguments.log_json:
        print(json.dumps({"event": "end", "results": str(home), "failed": len(results.failed)}))
    else:
        # The price of removal is for the files, `--price` and the page.
        for table in made if arguments.verbose else ():
            print_table(table, console)
        _print_answer(results, home, console)
    if not results.failed:
        return OK
    count, cells = len(results.failed), len(results.outline.cells)
    why = f"first: {results.failed[0].reason}; run again to retry them"
    print(f"bench: {count} of {cells} cells failed, {why}", file=sys.stderr)
    return SOME_FAILED


def _kept(plan: Plan, home: Path) -> str:
    """Say what there is of a run that was interrupted, and how to go on."""
    from bench.runs import session

    left = len(session.unanswered(plan, home))
    done = f"{len(plan.questions) - left} of {how_many(len(plan.questions), 'cell')}"
    return f"{done} answered and kept in {home}, finished stages too; the same command goes on"


def _print_answer(results: Results, home: Path, console: Console) -> None:
    """Print the answer on one screen, and where the rest is."""
    from bench.reports.page import glance

    found = results.outline, results.records
    page = f"bench report {home} --format html > page.html"
    more = f"all tables: bench report {home}; as a page: {page}"
    for line in (*glance.lines(*found, console.width), "", more):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _how(
    arguments: argparse.Namespace, console: Console, home: Path | None = None
) -> dict[str, Any]:
    """Return how a run is carried out, and shown as it goes; with a `home`, its answers too."""
    seen = progress.Seen()
    write = functools.partial(print, flush=True)  # who reads a pipe gets each line at once

    def watch(start: Start, records: Iterator[Record]) -> Iterator[Record]:
        seen.stages = start.stages
        if arguments.log_json:
            begun = {"suite": start.suite, "todo": start.todo, "cells": start.cells}
            write(json.dumps({"event": "start", **begun, "where": start.where}))
            return progress.logged(records, start.todo, write)
        cells = f"{start.suite}: {start.todo} of {start.cells} cells to answer"
        console.print(f"{cells} on {start.where}", highlight=False)
        names, verbose = progress.names(start.asked), getattr(arguments, "verbose", False)
        shown = progress.show(records, start.todo, names, console, seen, verbose)
        return shown if home is None else answered(shown, home, console)

    named = ("device", "engine", "address", "workers", "threads", "compile")
    note = {"note": lambda text: print(text, file=sys.stderr)} if arguments.log_json else {}
    shown = {"watch": watch, "look": seen.look, **note}
    return taken(arguments, *named) | shown


def answered(records: Iterable[Record], home: Path, console: Console) -> Iterator[Record]:
    """Pass records on; say what became of a method's claims once its last cell is answered.

    Of a method that has more to answer it is said before, as soon as most of its attacks have a
    first verdict.
    """
    from bench.records.ledger import read_results
    from bench.reports.blocks import labelled
    from bench.reports.page import glance

    start, found = time.monotonic(), read_results(home)
    known = dict(found.records)
    cells = [cell for _, cell in found.outline.cells]
    owners, methods = map(labelled, ([c.owner for c in cells], [c.method for c in cells]))
    settled = {key for key, record in known.items() if record.status != "failed"}
    waiting = _waiting(found.outline, settled)
    for record in records:
        yield record
        known[record.key] = record
        about = waiting[_asking(record.cell)]
        told = about.told(record.key)
        if not told:
            continue
        own = dataclasses.replace(found.outline, cells=told)
        if said := glance.sentence(own, {key: known[key] for key, _ in told}):
            who = f"{owners(record.cell.owner)}, {methods(record.cell.method)}"
            far = f", so far ({len(told)} of {len(about.cells)} cells)" if about.left else ""
            line = f"{progress.clock(time.monotonic() - start)} {who}{far}: {said}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclasses.dataclass
class _About:
    """What is asked of one method on one model, and what of it has no answer yet.

    `rows` are the cells that an attack's first verdict needs, all attacks' under (); those of a
    finished row stay in `cells`.
    """

    cells: dict[str, Cell] = dataclasses.field(default_factory=dict)
    left: set[str] = dataclasses.field(default_factory=set)
    rows: dict[tuple[str, ...], list[str]] = dataclasses.field(default_factory=dict)
    said: bool = False  # the first verdicts

    def told(self, key: str) -> tuple[tuple[str, Cell], ...]:
        """Return what can be told now that a cell is answered; nothing where it tells no more."""
        self.left.discard(key)
        if not self.left:
            return tuple(self.cells.items())
        if self.said or not self._most:
            return ()
        self.said = True
        first = [*self.rows.get((), ()), *(key for row in self._judged for key in row)]
        return tuple((key, self.cells[key]) for key in first)

    @property
    def _judged(self) -> list[list[str]]:
        """Return the rows of attacks all of whose cells are answered."""
        rows = (keys for row, keys in self.rows.items() if row)
        return [keys for keys in rows if self.left.isdisjoint(keys)]

    @property
    def _most(self) -> bool:
        attacks = len(self.rows) - (() in self.rows)
        shared = self.left.isdisjoint(self.rows.get((), ()))
        return shared and 2 * len(self._judged) > attacks


def _waiting(outline: Outline, settled: Collection[str]) -> dict[tuple[str, str], _About]:
    """Return what is asked of every method on every model, by their words."""
    from bench.suite.todo import claim_of, firsts, row_of

    first = firsts(cell for _, cell in outline.cells)
    found = defaultdict[tuple[str, str], _About](_About)
    for key, cell in outline.cells:
        about, row = found[_asking(cell)], row_of(cell)
        about.cells[key] = cell
        if key not in settled:
            about.left.add(key)
        if row is not None and claim_of(cell) in first:
            about.rows.setdefault(tuple(step.text for step in row), []).append(key)
    for about in found.values():
        about.said = about._most  # by an earlier run
    return found


def _asking(cell: Cell) -> tuple[str, str]:
    """Return in words whose model a cell is about, and by which method it is asked."""
    return cell.owner.text, cell.method.text


def _tune_arguments(command: argparse.ArgumentParser) -> None:
    a_suite(command)
    _how_arguments(command)
    command.add_argument(
        "--budget",
        type=positive,
        default=8,
        metavar="N",
        help="settings each method is tried at, its default and the suite's own among them "
        "(default 8); fewer where a method has fewer",
    )
    command.add_argument(
        "--price",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="the most a mark may cost, as a share of the owner's own task (default 0.02)",
    )
    command.add_argument(
        "--cosine",
        type=float,
        default=0.0,
        help="the least feature cosine of the owner and the released model (default 0: any)",
    )
    command.add_argument(
        "--passes",
        type=float,
        help="the most that protecting once may take, in forward passes' worth (default: no end)",
    )
    command.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    command.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write a copy of the suite with what was chosen; default: print its methods",
    )


def tune_suite(arguments: argparse.Namespace) -> int:
    """Try every method at as many settings, on the owner's data alone; print what is chosen."""
    from bench.runs.tuning.tables import tuning_table
    from bench.runs.tuning.writing import fragment

    console = wide_console()
    named = ("budget", "price", "cosine", "passes", "seed", "write")
    tuned = bench.tune(
        arguments.suite,
        arguments.results,
        arguments.data,
        **{name: getattr(arguments, name) for name in named},
        **_how(arguments, console),
    )
    made = tuning_table(tuned)
    print_table(made, console)
    write_tables(arguments.results / tuned.results.outline.name, [made])
    if arguments.write is None:
        text = fragment(arguments.suite, tuned.terms, tuned.choices)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(f"written: {arguments.write}", markup=False, highlight=False)
    return OK


def _print_warnings(plan: Plan, console: Console) -> None:
    for warning in plan.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False)


def _plan_arguments(command: argparse.ArgumentParser) -> None:
    a_suite(command)
    command.add_argument(
        "--device",
        metavar="NAME",
        help="estimate for a device that is not here, by what is declared of it (a100-80gb ...); "
        "default: by what was measured here",
    )


def show_plan(arguments: argparse.Namespace) -> int:
    """Print cells, stages and what the store has, and price the rest, here or elsewhere."""
    from rich.table import Table as Grid

    from bench.records import ledger
    from bench.records.store import Store
    from bench.runs import session
    from bench.runs.engines import in_line
    from bench.runs.foresight import budget, reach
    from bench.runs.foresight.pace import pace_here
    from bench.runs.machine import find_device
    from bench.suite import sources

    made = bench.plan(arguments.suite, arguments.data, assume=True)
    store = Store(arguments.results / ".store")
    todo = session.unanswered(made, arguments.results / made.suite.name)
    here = find_device("auto")
    at_once = session.side_by_side(here, 1)
    pace = functools.partial(pace_here, device=here, at_once=at_once)
    found = budget.budget(made, store, in_line(made, store, todo), arguments.device, pace)
    hours = "GPU time" if arguments.device else "time"
    table = Grid("stage", "to run", "there, or not needed", "forward", "backward", hours, "GB")
    for row in (*found.rows, found.total):
        forward, backward = _count(row.forward), _count(row.backward)
        table.add_row(
            row.kind or "all",
            str(row.stages),
            str(row.there),
            f"{row.bound if row.forward else ''}{forward}",
            f"{row.bound if row.backward else ''}{backward}",
            _duration(row.seconds),
            _gigabytes(row.bytes),
        )
    console = wide_console()
    cells = len(made.questions)
    console.print(f"{made.suite.name}: {how_many(cells, 'cell')}, {cells - len(todo)} answered")
    console.print(table)
    for line in (budget.basis(arguments.device), *found.notes):
        console.print(line, markup=False, highlight=False)
    if arguments.device is None and found.total.seconds and at_once > 1:
        wall = _duration(found.total.seconds / at_once)
        console.print(f"`bench run`, {at_once} stages at a time: about {wall}", highlight=False)
    _print_warnings(made, console)
    for line in reach.said_of(made):
        console.print(f"note: {line}", markup=False, highlight=False)
    answers = ledger.answers(arguments.results / made.suite.name)
    for line in sources.told(sources.other_code(made, store, answers)):
        console.print(f"note: {line}", markup=False, highlight=False)
    return OK


def _count(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    units = (("h", 3600), ("min", 60), ("s", 1))
    name, size = next((u for u in units if seconds >= 2 * u[1]), units[-1])
    return f"{seconds / size:.1f} {name}"


def _gigabytes(value: float | None) -> str:
    return "?" if value is None else f"{value / 1e9:.1f}" if value >= 1e8 else f"{value / 1e9:.3f}"


def _store_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    command.add_argument(
        "--collect",
        nargs="+",
        type=Path,
        metavar="SUITE",
        help="remove every artefact that none of these suites uses",
    )
    data_root(command)


def show_store(arguments: argparse.Namespace) -> int:
    """List the store by kind of artefact; with --collect, free what no given suite uses."""
    from rich.table import Table as Grid

    from bench.records.store import Store
    from bench.runs import session

    store = Store(arguments.results / ".store")
    console = wide_console()
    if arguments.collect:
        kept = {
            key for path in arguments.collect for key in bench.plan(path, arguments.data).stages
        }
        gone = session.collect(store, kept)
        freed = sum(a.on_disk for a in gone) / 1e6
        what = how_many(len(gone), "artefact")
        console.print(f"removed {what}, {freed:.1f} MB", highlight=False)
    table = Grid("kind", "artefacts", "weights dropped", "MB")
    artefacts = list(store)
    for kind in sorted({a.kind for a in artefacts}):
        found = [a for a in artefacts if a.kind == kind]
        dropped, size = sum(a.dropped for a in found), sum(a.on_disk for a in found)
        table.add_row(kind, str(len(found)), str(dropped), f"{size / 1e6:.1f}")
    pixels = [path.stat().st_size for path in store.decoded()]
    table.add_row("decoded images", str(len(pixels)), "0", f"{sum(pixels) / 1e6:.1f}")
    console.print(table)
    return OK


RUN = Command(
    "run", "answer every cell of a suite that has no record yet", _run_arguments, run_suite
)
TUNE = Command(
    "tune",
    "choose every method's settings by one budget, on the owner's data alone",
    _tune_arguments,
    tune_suite,
)
PLAN = Command(
    "plan", "say what a run would do, what is there, what it costs", _plan_arguments, show_plan
)
STORE = Command(
    "store",
    "list what the store holds; --collect frees what no suite uses",
    _store_arguments,
    show_store,
)
