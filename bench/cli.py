"""The command `bench`: run a suite, plan it, report on it, and look at what there is."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import tables
from bench.arguments import OK, SOME_FAILED, USERS_MISTAKE, Command, find_device, owner_of, parser
from bench.cli_check import check_suite
from bench.cli_owner import protect_model, verify_suspect
from bench.tables import Picture, Table
from bench.types import Incompatible, UserError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from bench.ledger import Outline
    from bench.plan import Plan, Question
    from bench.runner import Engine
    from bench.store import Artefact, Store
    from bench.types import Record

WORSE, UNMEASURED = 3, 4
"""Of `compare` and `verify-results`: something is worse or wrong; nothing was there to tell by."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one line on stderr."""
    arguments = parser(COMMANDS).parse_args(argv)
    try:
        status: int = arguments.command(arguments)
    except (UserError, Incompatible) as error:
        print(f"bench: {error}", file=sys.stderr)
        return USERS_MISTAKE
    except BrokenPipeError:  # `bench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:  # a full disk, a folder nobody may write to
        print(f"bench: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return USERS_MISTAKE
    except KeyboardInterrupt:
        print("bench: interrupted; what was finished is kept, run again to go on", file=sys.stderr)
        return 130
    return status


def _workers(threads: int) -> int:
    """Return how many stages run side by side unless told: by cores, and 1.5 GB of memory each."""
    from bench.runner import available_memory_mb, usable_cores

    return max(1, min(usable_cores() // threads, int(available_memory_mb() // 1500), 8))


def run_suite(arguments: argparse.Namespace) -> int:
    """Answer the cells that have no record yet, then print and write the tables."""
    from bench import progress
    from bench.store import Store

    plan = _plan(arguments)
    home = arguments.results / plan.suite.name
    todo = _unanswered(plan, home)
    console = tables.console()
    for warning in plan.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False)
    store = Store(arguments.results / ".store")
    if not todo:
        _write_outline(plan, home)
        if arguments.drop_copies:
            _drop_copies(plan, store, console)
    else:
        from bench import models, runner

        runner.pin_threads(arguments.threads)
        with _engine(arguments) as (engine, device, where):
            if arguments.compile and arguments.engine != "ray":  # whose nodes say so themselves
                models.refuse_no_compiler(device)
            laboratory = runner.Laboratory(
                plan,
                store,
                arguments.data,
                device,
                compile=arguments.compile,
                drop_copies=arguments.drop_copies,
            )
            runner.load_owners(laboratory)
            _write_outline(plan, home)  # only now: a run that cannot start changes no report
            console.print(
                f"{plan.suite.name}: {len(todo)} of {len(plan.questions)} cells to answer "
                f"on {where}",
                highlight=False,
            )
            records = runner.run(laboratory, todo, engine, _records_file(home))
            for _ in progress.show(records, len(todo), console):
                pass
    return _finish(home, console, {q.key for q in plan.questions})


def _drop_copies(plan: Plan, store: Store, console: Console) -> None:
    """Drop what an earlier run kept, unless another run is here that may count on it."""
    from bench.lease import KEPT, Leases, drop_spare
    from bench.plan import spare_copies

    with Leases(store.leases) as leases:
        if not drop_spare(store, leases, spare_copies(plan, ())):
            console.print(f"note: {KEPT}", markup=False, highlight=False)


@contextlib.contextmanager
def _engine(arguments: argparse.Namespace) -> Iterator[tuple[Engine, torch.device, str]]:
    """Yield what carries out the stages, the device of this process, and in words where they go."""
    from bench import engines, runner

    threads, workers = arguments.threads, arguments.workers
    if arguments.engine == "ray":
        from bench import engine_ray

        with engine_ray.connected(arguments.address):
            there = engine_ray.choose_device(arguments.device, threads)
            where = engine_ray.size(there, threads)
            on_ray = functools.partial(
                engine_ray.on_ray, device=there, threads=threads, workers=workers
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
    yield engine, device, runner.device_name(device)


def _unanswered(plan: Plan, home: Path) -> list[Question]:
    """Return the questions a run would ask: those without a record, and those that failed."""
    from bench import ledger

    answered = ledger.latest(ledger.read(home))
    settled = {key for key, record in answered.items() if record.status != "failed"}
    return [q for q in plan.questions if q.key not in settled]


def _finish(home: Path, console: Console, keys: set[str]) -> int:
    """Print and write the tables; the status says whether any cell failed."""
    from bench import ledger, report

    records = ledger.latest(ledger.read(home))
    made = report.tables(ledger.read_outline(home / "suite.json"), records)
    for table in made:
        tables.print_table(table, console)
    tables.write(home, made)
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
    from bench import ledger
    from bench.plan import departures

    suite = plan.suite
    cells = tuple((q.key, q.cell) for q in plan.questions)
    reductions = (
        *(f"Reduced: {text}" for text in suite.reductions),
        *(f"Not the default: {text}" for text in departures(suite)),
    )
    outline = ledger.Outline(suite.name, suite.title, suite.alpha, cells, reductions, plan.warnings)
    ledger.write_outline(home / "suite.json", outline)


def _plan(arguments: argparse.Namespace, assume: bool = False) -> Plan:
    from bench import plan, suite

    return plan.make(suite.load(arguments.suite), arguments.data, assume)


def show_plan(arguments: argparse.Namespace) -> int:
    """Print cells, stages and what the store has, and price the rest, here or elsewhere."""
    from rich.table import Table as Grid

    from bench import budget, plan
    from bench.store import Store

    made = _plan(arguments, assume=True)
    store = Store(arguments.results / ".store")
    todo = _unanswered(made, arguments.results / made.suite.name)
    missing = plan.missing(made, store, todo)
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
    console = tables.console()
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


def show_report(arguments: argparse.Namespace) -> int:
    """Print a suite's tables from its records; needs neither torch nor the models."""
    from bench import frontier, ledger, page, paper, report

    home = _home(arguments)
    records = ledger.answers(home)
    outline = ledger.read_outline(home / "suite.json")
    whole = arguments.format == "html"  # a page holds all that there are numbers for
    made = () if arguments.frontier else report.tables(outline, records)
    pictures: tuple[Picture, ...] = ()
    if arguments.frontier or (whole and frontier.has_sweeps(outline)):
        prices, pictures = frontier.tables(outline, records), (frontier.picture(outline, records),)
        made = (*made, *prices)
        if arguments.frontier:
            tables.write(home, prices, pictures)
    if arguments.reference:
        made = (*made, *paper.tables(outline, records))
    if whole and (profiled := home / "figure2.csv").is_file():
        caption = "activations after each block, as `bench profile` left them beside the records"
        made = (*made, tables.read_csv(profiled, "Figure 2", caption))
    if arguments.calibration or whole:
        judged, drawn = _calibration(outline, records, arguments.calibration)
        made, pictures = (*made, *judged), (*pictures, *drawn)
        if arguments.calibration:
            tables.write(home, judged, drawn)
    write = {"markdown": tables.markdown, "latex": tables.latex, "csv": tables.csv}
    if whole:
        print(page.html(outline, records, made, pictures), end="")
    elif arguments.format == "terminal":
        console = tables.console()
        for table in made:
            tables.print_table(table, console)
    else:
        print(*map(write[arguments.format], made), sep="\n")
    return OK


def _home(arguments: argparse.Namespace) -> Path:
    """Return the folder of a suite's results, which is named or follows from the suite's name."""
    given: Path = arguments.suite
    if given.suffix not in (".yaml", ".yml"):
        return given
    import yaml

    try:
        name = yaml.safe_load(given.read_text())["name"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        raise UserError(f"expected a suite file with a name, got {given}") from None
    return Path(arguments.results) / str(name)


def _calibration(
    outline: Outline, records: Mapping[str, Record], asked: bool
) -> tuple[tuple[Table, ...], tuple[Picture, ...]]:
    """Return what verdicts are worth; nothing if nobody asked and too few innocents can tell."""
    from bench import level, lineup, pairs, roc

    blocks, _ = lineup.grouped(outline, records)
    groups = [(block.owner, block.method, block.records) for block in blocks]
    if not asked and not level.decidable(outline, groups):
        return (), ()
    compared, curve = pairs.pairs_table(outline, groups), roc.picture(groups)
    judged = (level.level_table(outline, groups), *((compared,) if compared.rows else ()))
    return judged, (() if curve is None else (curve,))


def compare_results(arguments: argparse.Namespace) -> int:
    """Print what moved between two results; 3 if for the worse, 4 if nothing can tell."""
    from bench import compare

    base, head = compare.read(arguments.base), compare.read(arguments.head)
    given = {name: getattr(arguments, name) for name in ("rate", "score", "utility")}
    tolerance = compare.Tolerance(**{k: v for k, v in given.items() if v is not None})
    found = compare.compare(base, head, tolerance)
    tables.print_table(compare.table(found, head, tolerance), tables.console())
    return {"same": OK, "regressed": WORSE, "not measured": UNMEASURED}[found.outcome]


def verify_results(arguments: argparse.Namespace) -> int:
    """Print every record that does not hold; 3 if there is one, 4 if nothing could be verified."""
    from bench import verify

    checked = [row for folder in arguments.folders for row in verify.verify(folder)]
    for line in verify.lines(checked):
        print(line)
    outcomes = {row.outcome for row in checked}
    if "does not hold" in outcomes:
        return WORSE
    return OK if "holds" in outcomes else UNMEASURED


def watch_speed(arguments: argparse.Namespace) -> int:
    """Print what watched work takes; with --check 3 if that is worse, 4 if nothing can tell."""
    from bench import perf

    found = perf.watch(
        arguments.workloads,
        find_device(arguments.device),
        arguments.baseline,
        check=arguments.check,
        update=arguments.update,
        base=arguments.base,
    )
    tables.print_table(found.table, tables.console())
    return {"holds": OK, "worse": WORSE, "not measured": UNMEASURED}[found.outcome]


def list_known(arguments: argparse.Namespace) -> int:
    """Print every known name of one kind, with what it does and its source."""
    from rich.table import Table as Grid
    from rich.text import Text

    kinds = {"data": _known_data, "models": _known_models}
    made = kinds[arguments.what]() if arguments.what in kinds else _known_plugins(arguments.what)
    if arguments.format == "markdown":
        print(tables.markdown(made), end="")
        return OK
    grid = Grid(box=None, pad_edge=False, show_header=True)
    for column in made.columns:
        grid.add_column(column, overflow="fold")
    for row in made.rows:
        grid.add_row(*map(Text, row))  # a docstring's [CLS] is no markup
    tables.console().print(grid)
    return OK


def _known_plugins(kind: str) -> Table:
    from bench.registry import ATTACKS, METHODS

    registry = METHODS if kind == "methods" else ATTACKS
    rows = []
    for name in registry.names():
        source, origin = registry.source(name), registry.origin(name)
        settings = ", ".join(f"{k}={_setting(v)}" for k, v in registry.spec(name, {}).args.items())
        found = origin.distribution or origin.value
        rows.append((name, source.summary, settings, source.paper, found))
    columns = ("name", "what it does", "settings and defaults", "source", "from")
    return Table(kind.capitalize(), "by name, with settings and sources", columns, tuple(rows))


def _setting(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _known_data() -> Table:
    from bench import manifest

    def count(settings: manifest.DataSettings) -> str:
        return str(len(manifest.read("", settings).items))

    rows = (
        ("digits", count(manifest.DataSettings("digits")), "handwritten, carried by scikit-learn"),
        ("photos", count(manifest.DataSettings("photos")), "crops of scikit-image's and -learn's"),
        (
            "digit-scenes",
            count(manifest.DataSettings("digit-scenes")),
            "digits pasted on photographs, with masks",
        ),
        ("folder", "-", "your images: path/class/file, or path/{train,test}/class/file"),
        ("masks", "-", "your images and masks: path/images/... and path/masks/..."),
        ("oxford-pets", "7349", "Oxford-IIIT Pet as published: breeds, or trimaps as masks"),
        ("foodseg103", "7118", "FoodSeg103 as published: images and masks of 104 ids"),
    )
    return Table("Data", "loaders, by name", ("loader", "images", "what it is"), rows)


def _known_models() -> Table:

    rows = (
        ("embedded: mini", "shipped with the bench; `python -m bench.pretrain` rebuilds it"),
        ("timm: NAME", "any timm model; see timm.list_models()"),
        ("open_clip: NAME", "any open_clip image tower; see open_clip.list_models()"),
    )
    return Table("Models", "owners, by library", ("model", "where it comes from"), rows)


def profile_model(arguments: argparse.Namespace) -> int:
    """Print the activation profile of section 3.2.4 and the block both rules choose."""
    import torch

    from bench import data, manifest, profile, runner
    from bench.owners import load_owner
    from bench.plan import weights_file

    if arguments.count < 1:
        raise UserError(f"--count: expected at least 1, got {arguments.count}")
    runner.pin_threads(runner.usable_cores())
    device = find_device(arguments.device)
    owner = owner_of(arguments.model, arguments.weights, arguments.pretrained)
    file = weights_file(owner, arguments.data) if owner.from_file else None
    model = load_owner(owner, file)
    if arguments.images == "photos":
        settings = manifest.DataSettings("photos")
    else:
        settings = manifest.DataSettings("folder", path=arguments.images)
    listed = manifest.read("images", settings, arguments.data)
    order = torch.randperm(len(listed.items), generator=torch.Generator().manual_seed(0))
    images = data.load(listed, order[: arguments.count].tolist(), model.preprocess)
    figure = profile.figure_2(
        owner.name, profile.activation_profile(model, images, device), len(images)
    )
    tables.print_table(figure, tables.console())
    if arguments.output is not None:
        tables.write(arguments.output, [figure])
    return OK


def show_store(arguments: argparse.Namespace) -> int:
    """List the store by kind of artefact; with --collect, free what no given suite uses."""
    from rich.table import Table as Grid

    from bench import plan, suite
    from bench.store import Store

    store = Store(arguments.results / ".store")
    console = tables.console()
    if arguments.collect:
        kept = {
            key
            for path in arguments.collect
            for key in plan.make(suite.load(path), arguments.data).stages
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
    from bench.lease import Leases

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


COMMANDS: Mapping[str, Command] = {
    "run": run_suite,
    "plan": show_plan,
    "report": show_report,
    "compare": compare_results,
    "verify-results": verify_results,
    "perf": watch_speed,
    "list": list_known,
    "check": check_suite,
    "profile": profile_model,
    "protect": protect_model,
    "verify": verify_suspect,
    "store": show_store,
}
"""What carries out each command."""
