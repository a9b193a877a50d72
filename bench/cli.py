"""The command `bench`: run a suite, plan it, report on it, and look at what there is."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.arguments import Command, parser
from bench.types import Incompatible, UserError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from bench.manifest import DataSettings, Manifest
    from bench.plan import Plan, Question
    from bench.runner import Engine
    from bench.suite import OwnerSettings
    from bench.tables import Table
    from bench.types import Json

OK, SOME_FAILED, USERS_MISTAKE = 0, 1, 2
"""Exit statuses: all cells ok, skipped or incompatible; some cell failed; the user's mistake."""

VERDICTS = {"owned": 0, "undecided": 3, "not owned": 1, "incompatible": 4}
"""Exit statuses of `verify`; with several keys the first of these that one of them came to."""

KEY, RELEASED = "key.safetensors", "model.safetensors"
"""The files that `protect` writes: what is kept secret and what goes out."""

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
    console = _console()
    for warning in plan.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False)
    if not todo:
        _write_outline(plan, home)
    else:
        from bench import runner

        runner.pin_threads(arguments.threads)
        with _engine(arguments) as (engine, device, where):
            store = Store(arguments.results / ".store")
            laboratory = runner.Laboratory(plan, store, arguments.data, device)
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
            yield on_ray, _find_device("cpu"), where
        return
    if arguments.address is not None:
        raise UserError("--address: expected none without --engine ray")
    device = _find_device(arguments.device)
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
    from bench import ledger, report, tables

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
    from rich.table import Table

    from bench import budget, plan
    from bench.store import Store

    made = _plan(arguments, assume=True)
    store = Store(arguments.results / ".store")
    todo = _unanswered(made, arguments.results / made.suite.name)
    missing = plan.missing(made, store, todo)
    found = budget.budget(made, store, missing, arguments.device)
    hours = "GPU time" if arguments.device else "time"
    table = Table("stage", "to run", "there, or not needed", "forward", "backward", hours, "GB")
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
    console = _console()
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
    from bench import frontier, ledger, level, lineup, page, paper, report, tables
    from bench.files import write_atomically

    home = arguments.suite
    if home.suffix in (".yaml", ".yml"):
        import yaml

        try:
            name = yaml.safe_load(home.read_text())["name"]
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            raise UserError(f"expected a suite file with a name, got {home}") from None
        home = arguments.results / str(name)
    records = ledger.answers(home)
    outline = ledger.read_outline(home / "suite.json")
    made = (frontier if arguments.frontier else report).tables(outline, records)
    if arguments.reference:
        made = (*made, *paper.tables(outline, records))
    if arguments.calibration:
        blocks, _ = lineup.grouped(outline, records)
        judged = level.level_table(outline, [(b.owner, b.method, b.records) for b in blocks])
        made = (*made, judged)
        tables.write(home, [judged])
    write = {"markdown": tables.markdown, "latex": tables.latex, "csv": tables.csv}
    if arguments.format == "html":
        print(page.html(outline, records, made), end="")
    elif arguments.format == "terminal":
        console = _console()
        for table in made:
            tables.print_table(table, console)
    else:
        print(*map(write[arguments.format], made), sep="\n")
    if arguments.frontier:
        tables.write(home, made)
        write_atomically(home / "frontier.svg", frontier.svg(outline, records))
    return OK


def compare_results(arguments: argparse.Namespace) -> int:
    """Print what moved between two results; 3 if for the worse, 4 if nothing can tell."""
    from bench import compare, tables

    base, head = compare.read(arguments.base), compare.read(arguments.head)
    given = {name: getattr(arguments, name) for name in ("rate", "score", "utility")}
    tolerance = compare.Tolerance(**{k: v for k, v in given.items() if v is not None})
    found = compare.compare(base, head, tolerance)
    tables.print_table(compare.table(found, head, tolerance), _console())
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


def list_known(arguments: argparse.Namespace) -> int:
    """Print every known name of one kind, with what it does and its source."""
    from rich.table import Table as Grid
    from rich.text import Text

    from bench import tables

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
    _console().print(grid)
    return OK


def _known_plugins(kind: str) -> Table:
    from bench.registry import ATTACKS, METHODS
    from bench.tables import Table

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
    from bench.tables import Table

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
    from bench.tables import Table

    rows = (
        ("embedded: mini", "shipped with the bench; `python -m bench.pretrain` rebuilds it"),
        ("timm: NAME", "any timm model; see timm.list_models()"),
        ("open_clip: NAME", "any open_clip image tower; see open_clip.list_models()"),
    )
    return Table("Models", "owners, by library", ("model", "where it comes from"), rows)


def check_suite(arguments: argparse.Namespace) -> int:
    """Say for every owner and data set whether it is there; exit 2 if anything is missing."""
    from bench import manifest, owners, suite
    from bench import plan as planning

    loaded = suite.load(arguments.suite)
    console = _console()
    missing = 0

    def line(what: str, found: str | UserError, mark: str = "ok") -> None:
        nonlocal missing
        missing += isinstance(found, UserError)
        mark = "missing" if isinstance(found, UserError) else mark
        console.print(f"{mark:8} {what}: {found}", markup=False, highlight=False, soft_wrap=True)

    models = [("owner", owner) for owner in loaded.owners]
    models += [("innocent", model) for model in loaded.innocents.models]
    seen = set()
    for role, model in models:
        who = f"{model.name} {model.image_size or ''}".strip()
        if model.from_hub:
            if (place := owners.place(model)) in seen:
                continue  # an owner that is also another's innocent is fetched once
            seen.add(place)
            if arguments.download and place and not place.cached:
                owners.fetch(place)
        line(f"{role} {who}", *_weights_line(model, arguments.data))
    for name, settings in loaded.data.items():
        if arguments.download and settings.loader == "oxford-pets":
            _download_pets(name, settings, arguments.data)
        try:
            made = manifest.read(name, settings, arguments.data)
            manifest.split(made)
            line(f"data {name}", f"{len(made.items)} images, {len(made.classes)} classes")
        except UserError as error:
            line(f"data {name}", error)
            _print_source(console, settings)
            continue
        if told := _unlike_published(made):
            line(f"data {name}", told, "note")
    if not missing:
        made_plan = planning.make(loaded, arguments.data)
        line(f"suite {loaded.name}", f"{len(made_plan.questions)} cells")
        for warning in made_plan.warnings:
            console.print(f"note     {warning}", markup=False, highlight=False)
    return USERS_MISTAKE if missing else OK


def _weights_line(owner: OwnerSettings, data_dir: Path | None) -> tuple[str | UserError, str]:
    """Say whether an owner's weights are there, and mark what a run would fetch."""
    from bench import budget, owners, plan

    try:
        identity = plan.weights_identity(owner, data_dir)
        place = owners.place(owner) if owner.from_hub else None
    except UserError as error:
        return error, "missing"
    if not owner.from_hub:
        return f"weights {identity}", "ok"
    if place is None:
        return f"weights that {owner.library} fetches on the first run", "fetch"
    pin = f" at {place.revision[:12]}" if place.revision else ""
    if place.cached:
        return f"weights of {place.repository}{pin}, in the hub's cache", "ok"
    size = budget.shape(owners.architecture_of(owner)).bytes / 1e9
    return f"about {size:.1f} GB from the hub on the first run, or now: {place.command}", "fetch"


def _print_source(console: Console, settings: DataSettings) -> None:
    """Say what a data set that is missing is, how large, and how to come by it."""
    from bench.published import DATA_SETS

    if settings.published is None:
        return
    known = DATA_SETS[settings.published]
    size = f"{known.images} images, {known.classes} classes, about {known.gigabytes:g} GB"
    for text in (f"{known.title}: {size}", f"{known.where}", f"{known.how}"):
        console.print(f"         {text}", markup=False, highlight=False, soft_wrap=True)


def _unlike_published(made: Manifest) -> str:
    """Say where a data set is not as large as it was published; empty if it is."""
    from bench.published import DATA_SETS

    if made.settings.published is None:
        return ""
    known = DATA_SETS[made.settings.published]
    classes = known.classes if made.settings.targets != "trimaps" else len(made.classes)
    if (len(made.items), len(made.classes)) == (known.images, classes):
        return ""
    return f"published with {known.images} images and {classes} classes: this is another edition"


def _download_pets(name: str, settings: DataSettings, data_dir: Path | None) -> None:
    """Have torchvision fetch Oxford-IIIT Pet, which puts it in a folder of its own name."""
    folder = (data_dir or Path()) / Path(settings.path).expanduser()
    if (folder / "annotations").is_dir():
        return
    if folder.name != "oxford-iiit-pet":
        raise UserError(
            f"data '{name}': --download: expected a path that ends in oxford-iiit-pet, as "
            f"torchvision calls the folder, got '{settings.path}'"
        )
    from torchvision.datasets import OxfordIIITPet

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        OxfordIIITPet(folder.parent, download=True)
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"data '{name}': --download: torchvision could not ({reason})") from None


def profile_model(arguments: argparse.Namespace) -> int:
    """Print the activation profile of section 3.2.4 and the block both rules choose."""
    import torch

    from bench import data, manifest, profile, runner, tables
    from bench.owners import load_owner
    from bench.plan import weights_file

    if arguments.count < 1:
        raise UserError(f"--count: expected at least 1, got {arguments.count}")
    runner.pin_threads(runner.usable_cores())
    device = _find_device(arguments.device)
    owner = _owner_of(arguments.model, arguments.weights, arguments.pretrained)
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
    tables.print_table(figure, _console())
    if arguments.output is not None:
        tables.write(arguments.output, [figure])
    return OK


def _owner_of(
    text: str, weights: str, pretrained: str | None, image_size: int | None = None
) -> OwnerSettings:
    from bench.registry import settings
    from bench.suite import OwnerSettings

    library, _, name = text.rpartition(":")
    value = {"library": library or "embedded", "name": name, "weights": weights}
    given = {"pretrained": pretrained, "image_size": image_size}
    return settings(OwnerSettings, value | {k: v for k, v in given.items() if v is not None})


def protect_model(arguments: argparse.Namespace) -> int:
    """Protect a copy for every user, write each with its key, and say what to publish."""
    from bench import bundle, claim, manifest
    from bench.owners import load_owner
    from bench.plan import weights_file
    from bench.registry import METHODS

    spec = METHODS.spec(arguments.method, _settings(arguments.set))
    device = _find_device(arguments.device)
    base = arguments.data or Path()
    settings = _owner_of(
        arguments.model, arguments.weights, arguments.pretrained, arguments.image_size
    )
    homes = {user: arguments.output / user for user in arguments.users}
    for home in homes.values():
        for name in (KEY, RELEASED):
            bundle.refuse_to_replace(home / name)  # before the work, not after it
    owner = load_owner(settings, weights_file(settings, base) if settings.from_file else None)
    listed = manifest.read("images", _described(arguments.images, arguments.labels), base)
    pools = claim.owners_images(listed, owner.preprocess)
    keys, copies = {}, {}
    for user, home in homes.items():
        rng = claim.generator(arguments.seed, user)
        made = claim.protect(owner, spec, pools, rng, device, user)
        keys[user] = made.key
        if METHODS.get(spec.name).marks:
            copies[user] = home / RELEASED
            claim.release(made.model, home / RELEASED)
        _print_lines(claim.advice(made, home / RELEASED))
    for user, key in keys.items():
        others = [copy for whose, copy in copies.items() if whose != user]
        key = claim.read_others(key, others, device)
        bundle.write(homes[user] / KEY, key)
        _print_lines(
            [
                ("key", f"{homes[user] / KEY}: keep it, and keep it secret"),
                ("commitment", key.commitment),
            ]
        )
    print(
        "Publish the commitment where somebody else vouches for the date, before the model goes "
        "out: a key made later can be fitted to anybody's model, and proves nothing."
    )
    return OK


def _described(images: str, labels: Literal["none", "sorted"]) -> DataSettings:
    from bench.manifest import DataSettings

    embedded = {"photos": DataSettings("photos"), "digits": DataSettings("digits")}
    return embedded.get(images) or DataSettings("folder", path=images, labels=labels)


def _settings(texts: Sequence[str]) -> dict[str, Json]:
    """Read NAME=VALUE: a value is JSON where it can be, else the text itself."""
    import json

    found: dict[str, Json] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set: expected NAME=VALUE, got '{text}'")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _print_lines(lines: Sequence[tuple[str, str]]) -> None:
    for label, text in lines:
        print(f"{label:10} {text}")


def verify_suspect(arguments: argparse.Namespace) -> int:
    """Read a suspect and the innocents given with every key; the status is the verdict."""
    import dataclasses

    from bench import bundle, claim
    from bench.owners import architecture_of
    from bench.statistics import innocents_needed

    innocents_needed(arguments.alpha)  # refuses an alpha that is none
    keys = bundle.read_all(arguments.key, arguments.commitment)
    device = _find_device(arguments.device)
    architecture = keys[0].owner
    if arguments.model is not None:
        architecture = architecture_of(_owner_of(arguments.model, str(arguments.suspect), None))
    if arguments.image_size is not None:
        architecture = dataclasses.replace(architecture, image_size=arguments.image_size)
    strangers = claim.weight_files(arguments.strangers)
    descendants = claim.weight_files(arguments.descendants)
    loaded = claim.load_suspect(arguments.suspect, architecture)
    suspect = claim.read(arguments.suspect.name, loaded, keys, device)
    findings = claim.judge(
        keys,
        suspect,
        [claim.read_file(file, keys, device) for file in strangers],
        [claim.read_file(file, keys, device) for file in descendants],
        arguments.alpha,
    )
    _print_lines([("suspect", claim.description(arguments.suspect.name, loaded))])
    if arguments.commitment is None:
        late = "without --commitment nothing shows that a key is older than the suspect"
        _print_lines([("note", late)])
    for found in findings:
        _print_lines(claim.sentences(found, arguments.alpha))
    if len(keys) > 1:
        best = claim.named(findings)
        who = "nobody" if best is None else best.key.user or best.key.commitment
        _print_lines([("named", who)])
    outcomes = {found.outcome for found in findings}
    return next(status for outcome, status in VERDICTS.items() if outcome in outcomes)


def show_store(arguments: argparse.Namespace) -> int:
    """List the store by kind of artefact; with --collect, free what no given suite uses."""
    from rich.table import Table

    from bench import plan, suite
    from bench.store import Store

    store = Store(arguments.results / ".store")
    console = _console()
    if arguments.collect:
        kept = {
            key
            for path in arguments.collect
            for key in plan.make(suite.load(path), arguments.data).stages
        }
        gone = [a for a in store if a.key not in kept]
        for artefact in gone:
            store.remove(artefact.key)
        for path in [*store.leftovers(), *store.decoded()]:
            path.unlink(missing_ok=True)
        freed = sum(a.bytes for a in gone) / 1e6
        console.print(f"removed {len(gone)} artefacts, {freed:.1f} MB", highlight=False)
    table = Table("kind", "artefacts", "MB")
    artefacts = list(store)
    for kind in sorted({a.kind for a in artefacts}):
        sizes = [a.bytes for a in artefacts if a.kind == kind]
        table.add_row(kind, str(len(sizes)), f"{sum(sizes) / 1e6:.1f}")
    pixels = [path.stat().st_size for path in store.decoded()]
    table.add_row("decoded images", str(len(pixels)), f"{sum(pixels) / 1e6:.1f}")
    console.print(table)
    return OK


def _find_device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        usable = device.type in ("cpu", "cuda")
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise UserError(f"--device: expected auto, cpu or a usable GPU, got '{name}'")
    return device


def _console() -> Console:
    from rich.console import Console

    wide = Console()
    # A pipe has no width of its own; tables are laid out for this one.
    return wide if wide.is_terminal else Console(width=120)


COMMANDS: Mapping[str, Command] = {
    "run": run_suite,
    "plan": show_plan,
    "report": show_report,
    "compare": compare_results,
    "verify-results": verify_results,
    "list": list_known,
    "check": check_suite,
    "profile": profile_model,
    "protect": protect_model,
    "verify": verify_suspect,
    "store": show_store,
}
"""What carries out each command."""
