"""The commands that run a suite, plan it, and look after the store."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.parser import OK, SOME_FAILED, Command, a_device, a_suite, data_root, positive
from bench.records.nouns import UserError
from bench.records.table import print_table, wide_console, write_tables

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from bench.records.store import Artefact, Store
    from bench.runs.session import Engine
    from bench.suite.graph import Plan, Question


def _workers(threads: int) -> int:
    """Return how many stages run side by side unless told: by cores, and 1.5 GB of memory each."""
    from bench.runs.machine import available_memory_mb, usable_cores

    return max(1, min(usable_cores() // threads, int(available_memory_mb() // 1500), 8))


def _run_arguments(command: argparse.ArgumentParser) -> None:
    a_suite(command)
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
        "--compile",
        action="store_true",
        help="run transformer blocks through torch.compile: the last digits of evidence may "
        "differ, and records say so (meant for GPUs; on a CPU it made DeiT-Tiny slower)",
    )
    command.add_argument(
        "--drop-copies",
        action="store_true",
        help="delete the weights of an attacked copy as soon as no cell of this suite needs them: "
        "less disk, and records are as ever; a later suite makes again what it needs; two runs at "
        "once on one store drop nothing",
    )


def run_suite(arguments: argparse.Namespace) -> int:
    """Answer the cells that have no record yet, then print and write the tables."""
    from bench.cli import progress
    from bench.records.store import Store

    plan = _plan(arguments)
    home = arguments.results / plan.suite.name
    todo = _unanswered(plan, home)
    console = wide_console()
    for warning in plan.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False)
    store = Store(arguments.results / ".store")
    if not todo:
        _write_outline(plan, home)
        if arguments.drop_copies:
            _drop_copies(plan, store, console)
    else:
        from bench.models.vision import refuse_no_compiler
        from bench.runs.laboratory import Laboratory, load_owners
        from bench.runs.machine import pin_threads
        from bench.runs.session import run

        pin_threads(arguments.threads)
        with _engine(arguments) as (engine, device, where):
            if arguments.compile and arguments.engine != "ray":  # whose nodes say so themselves
                refuse_no_compiler(device)
            laboratory = Laboratory(
                plan,
                store,
                arguments.data,
                device,
                compile=arguments.compile,
                drop_copies=arguments.drop_copies,
            )
            load_owners(laboratory)
            _write_outline(plan, home)  # only now: a run that cannot start changes no report
            console.print(
                f"{plan.suite.name}: {len(todo)} of {len(plan.questions)} cells to answer "
                f"on {where}",
                highlight=False,
            )
            records = run(laboratory, todo, engine, _records_file(home))
            for _ in progress.show(records, len(todo), console):
                pass
    return _finish(home, console, {q.key for q in plan.questions})


def _drop_copies(plan: Plan, store: Store, console: Console) -> None:
    """Drop what an earlier run kept, unless another run is here that may count on it."""
    from bench.records.leases import KEPT, Leases, drop_spare
    from bench.suite.todo import spare_copies

    with Leases(store.leases) as leases:
        if not drop_spare(store, leases, spare_copies(plan, ())):
            console.print(f"note: {KEPT}", markup=False, highlight=False)


@contextlib.contextmanager
def _engine(arguments: argparse.Namespace) -> Iterator[tuple[Engine, torch.device, str]]:
    """Yield what carries out the stages, the device of this process, and in words where they go."""
    from bench.runs import engines
    from bench.runs.machine import device_name, find_device

    threads, workers = arguments.threads, arguments.workers
    if arguments.engine == "ray":
        from bench.runs import cluster

        with cluster.connected(arguments.address):
            there = cluster.choose_device(arguments.device, threads)
            where = cluster.size(there, threads)
            on_ray = functools.partial(
                cluster.on_ray, device=there, threads=threads, workers=workers
            )
            yield on_ray, find_device("cpu"), where
        return
    if arguments.address is not None:
        raise UserError("--address: expected none without --engine ray")
    device = find_device(arguments.device)
    workers = workers or (1 if device.type == "cuda" else _workers(threads))
    engine: Engine = engines.serial
    if workers > 1:
        engine = functools.partial(engines.processes, workers=workers, threads=threads)
    yield engine, device, device_name(device)


def _unanswered(plan: Plan, home: Path) -> list[Question]:
    """Return the questions a run would ask: those without a record, and those that failed."""
    from bench.records import ledger

    answered = ledger.latest(ledger.read(home))
    settled = {key for key, record in answered.items() if record.status != "failed"}
    return [q for q in plan.questions if q.key not in settled]


def _finish(home: Path, console: Console, keys: set[str]) -> int:
    """Print and write the tables; the status says whether any cell failed."""
    from bench.records import ledger
    from bench.reports import tables

    records = ledger.latest(ledger.read(home))
    made = tables.tables(ledger.read_outline(home / "suite.json"), records)
    for table in made:
        print_table(table, console)
    write_tables(home, made)
    failed = [r for k, r in records.items() if k in keys and r.status == "failed"]
    if not failed:
        return OK
    print(
        f"bench: {len(failed)} of {len(keys)} cells failed, first: {failed[0].reason}; "
        "run again to retry them",
        file=sys.stderr,
    )
    return SOME_FAILED


def _records_file(home: Path) -> Path:
    """Name a new file of records: time-stamped for people, unique for concurrent runs."""
    import time
    import uuid

    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return home / "records" / f"{stamp}-{uuid.uuid4().hex[:8]}.jsonl"


def _write_outline(plan: Plan, home: Path) -> None:
    from bench.records import ledger
    from bench.records.nouns import Outline
    from bench.suite.plan import departures

    suite = plan.suite
    cells = tuple((q.key, q.cell) for q in plan.questions)
    reductions = (
        *(f"Reduced: {text}" for text in suite.reductions),
        *(f"Not the default: {text}" for text in departures(suite)),
    )
    outline = Outline(suite.name, suite.title, suite.alpha, cells, reductions, plan.warnings)
    ledger.write_outline(home / "suite.json", outline)


def _plan(arguments: argparse.Namespace, assume: bool = False) -> Plan:
    from bench.suite import reader
    from bench.suite.plan import make

    return make(reader.load(arguments.suite), arguments.data, assume)


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

    from bench.records.store import Store
    from bench.runs import budget
    from bench.suite.todo import missing as missing_

    made = _plan(arguments, assume=True)
    store = Store(arguments.results / ".store")
    todo = _unanswered(made, arguments.results / made.suite.name)
    missing = missing_(made, store, todo)
    found = budget.budget(made, store, missing, arguments.device)
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
    console.print(f"{made.suite.name}: {cells} cells, {cells - len(todo)} answered")
    console.print(table)
    for line in (budget.basis(arguments.device), *found.notes):
        console.print(line, markup=False, highlight=False)
    for warning in made.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False)
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
    from bench.suite import reader
    from bench.suite.plan import make

    store = Store(arguments.results / ".store")
    console = wide_console()
    if arguments.collect:
        kept = {
            key
            for path in arguments.collect
            for key in make(reader.load(path), arguments.data).stages
        }
        gone = _collect(store, kept)
        freed = sum(a.on_disk for a in gone) / 1e6
        console.print(f"removed {len(gone)} artefacts, {freed:.1f} MB", highlight=False)
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


def _collect(store: Store, kept: Container[str]) -> list[Artefact]:
    """Remove all but what is kept; return the artefacts that are gone."""
    from bench.records.leases import Leases

    with Leases(store.leases) as leases, leases.behind_the_door() as alone:
        if not alone:
            raise UserError(
                "--collect: expected no run on this store, one is at it; wait for its end (where "
                f"it was killed on another machine, empty {store.leases})"
            )
        gone = [artefact for artefact in store if artefact.key not in kept]
        for artefact in gone:
            store.remove(artefact.key)
        for path in [*store.leftovers(), *store.decoded()]:
            path.unlink(missing_ok=True)
    return gone


RUN = Command("run", "answer every cell of a suite and print its tables", _run_arguments, run_suite)
PLAN = Command(
    "plan", "say what a run would do, what is there, what it costs", _plan_arguments, show_plan
)
STORE = Command(
    "store",
    "list what the store holds; --collect frees what no suite uses",
    _store_arguments,
    show_store,
)
