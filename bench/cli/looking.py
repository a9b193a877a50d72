"""The commands that look at what there is: list, profile, perf."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.cli import reporting
from bench.cli.parser import OK, Command, a_device, a_model, data_root, threads
from bench.records.nouns import Access, Passes, Sizes, UserError, how_many
from bench.records.settings import SettingError, nearest
from bench.records.table import NOTHING, Table, markdown, print_table, wide_console, write_tables
from bench.types import (
    CountsExtracting,
    CountsImages,
    CountsPasses,
    CountsProtecting,
    CountsQueries,
    Facts,
    IsAdaptive,
    Method,
    NeedsLabels,
    RedrawsBits,
    SaysChange,
    UsesBase,
    UsesCopies,
    UsesHead,
)

if TYPE_CHECKING:
    from rich.console import Console

    from bench.registry import Registry


def _perf_arguments(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "Exit status with --check: 0 all holds, 2 something to put right in the command, 3 "
        "something is worse, 4 something could not be measured."
    )
    given = command.add_mutually_exclusive_group()
    given.add_argument("--check", action="store_true", help="hold counts and times to the baseline")
    given.add_argument("--update", action="store_true", help="make what is measured the baseline")
    command.add_argument(
        "--base", metavar="REV", help="with --check: time this revision in turns with the tree, too"
    )
    command.add_argument(
        "--workloads",
        type=Path,
        nargs="+",
        default=[Path("tests/perf/workloads.py")],
        metavar="FILE",
        help="Python files that list WORKLOADS (default: tests/perf/workloads.py)",
    )
    command.add_argument(
        "--baseline",
        type=Path,
        default=Path("results/perf/baseline.json"),
        metavar="FILE",
        help="default: results/perf/baseline.json",
    )
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")


def watch_speed(arguments: argparse.Namespace) -> int:
    """Print what watched work takes; with --check 3 if that is worse, 4 if nothing can tell."""
    from bench.runs.machine import find_device
    from bench.speed import watch

    found = watch.watch(
        arguments.workloads,
        find_device(arguments.device),
        arguments.baseline,
        check=arguments.check,
        update=arguments.update,
        base=arguments.base,
    )
    print_table(found.table, wide_console())
    return {"holds": OK, "worse": reporting.WORSE, "not measured": reporting.UNMEASURED}[
        found.outcome
    ]


def _list_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", choices=("methods", "attacks", "accusers", "models", "data"))
    command.add_argument("--format", choices=("terminal", "markdown"), default="terminal")


def list_known(arguments: argparse.Namespace) -> int:
    """Print every known name of one kind, with what it does and its source."""
    if arguments.what in ("methods", "attacks", "accusers"):
        return _list_plugins(arguments.what, arguments.format)
    from rich.table import Table as Grid
    from rich.text import Text

    made = {"data": _known_data, "models": _known_models}[arguments.what]()
    if arguments.format == "markdown":
        print(markdown(made), end="")
        return OK
    grid = Grid(box=None, pad_edge=False, show_header=True)
    for column in made.columns:
        grid.add_column(column, overflow="fold")
    for row in made.rows:
        grid.add_row(*map(Text, row))  # a docstring's [CLS] is no markup
    wide_console().print(grid)
    return OK


def _list_plugins(kind: str, style: str) -> int:
    from bench.registry import ACCUSERS, ATTACKS, METHODS

    kinds: Mapping[str, Registry[Any]] = {
        "methods": METHODS,
        "attacks": ATTACKS,
        "accusers": ACCUSERS,
    }
    registry = kinds[kind]
    known = [_known(registry, name) for name in registry.names()]
    tables = {"methods": _facts, "attacks": _thieves}.get(kind, list)()
    if style == "markdown":
        title = f"# {kind.capitalize()}"
        glance = [f"## {table.caption}\n\n{_body(table)}" for table in tables]
        parts = (title, *_openings(registry), *glance, "## By name", *map(_written, known))
        print("\n\n".join(parts))
        return OK
    for table in tables:
        print_table(table, wide_console())
    for one in known:
        _print_known(one, wide_console())
    return OK


class _Known(NamedTuple):
    """A plug-in as it is listed: one line each of what it does, its settings and its source."""

    name: str
    summary: str
    settings: tuple[str, ...]
    reading: str
    paper: str
    departures: tuple[str, ...]
    origin: str


def _known(registry: Registry[Any], name: str) -> _Known:
    from bench.records.explained import explained

    cls, source, origin = registry.get(name), registry.source(name), registry.origin(name)
    settings = tuple(each.text for each in explained(cls))
    place = ", ".join(filter(None, (f"`{origin.value}`", origin.distribution)))
    read = ", ".join(f"`{setting}`" for setting in registry.reading(name))
    reading = f"Only reading depends on {read}: the secret is the same for all." if read else ""
    stated = _stated(cls)
    departures = stated.departures if stated else ()
    return _Known(name, source.summary, settings, reading, source.paper, departures, place)


NOT_STATED = "not stated"

ASSUMED = Sizes(images=256, held_out=64, blocks=6, tokens=65, width=48)
"""What passes are counted for: `mini`, and so many images of its owner's."""


def _facts() -> list[Table]:
    """Tabulate what methods see, answer and need, and what they take and come from."""
    from bench.registry import METHODS

    names = METHODS.names()
    asked = tuple((name, *_question(METHODS.get(name))) for name in names)
    taken = tuple((name, *_effort(name)) for name in names)
    return [
        Table(
            "Methods",
            "What each answers",
            ("method", "answers", "sees", "kind", "one query", "null", "owner needs"),
            asked,
            (
                "Null: what a score is held against.",
                "Innocents: it is ranked among models that owe the owner nothing.",
                "Own coins: p follows from fair bits in the secret.",
                "Owner needs: a head where suspects are asked for classes, and labelled images.",
            ),
        ),
        Table(
            "Methods",
            "What each takes",
            ("method", "to protect", "to read", "year", "paper", "found by", "departures"),
            taken,
            (
                "Passes are those of default settings, for mini: its owner has "
                f"{ASSUMED.images} images, and {ASSUMED.held_out} held out.",
                "f: an image forward through the whole depth. b: one back.",
                "Departures: what is done otherwise than in the paper, as far as stated.",
            ),
        ),
    ]


POOL = 1000
"""Images of a thief, for which lists say how many an attack looks at and what it takes."""


def _thieves() -> list[Table]:
    """Tabulate what a thief needs for an attack, and what it takes."""
    from bench.registry import ATTACKS

    head = ("attack", "changes", "victim gives", "images", "labels", "beside", "knows", "passes")
    unsaid = (NOT_STATED,) * (len(head) - 1)
    rows = tuple((name, *(_theft(name) or unsaid)) for name in ATTACKS.names())
    notes = (
        f"Of {POOL:,} images that the thief has, at default settings, for a model like mini.",
        "Victim gives: its weights, or answers to so many queries; a head where one is needed.",
        "Beside: the public base, or the owner's copies under other keys.",
        "Knows: what of the defence the attack is made for.",
        "f: an image forward through the whole depth. b: one back.",
    )
    return [Table("Attacks", "What a thief needs", head, rows, notes)]


def _theft(name: str) -> tuple[str, ...]:
    """Return what an attack changes and needs; nothing if a setting of it has no default."""
    from bench.registry import ATTACKS

    try:
        attack: Any = ATTACKS.build(name, {})
    except SettingError:
        return ()
    asked = attack.victim_queries(POOL) if isinstance(attack, CountsQueries) else None
    head = ["head"] if isinstance(attack, UsesHead) and attack.uses_head else []
    sizes = dataclasses.replace(ASSUMED, images=POOL)
    passes = attack.passes(sizes) if isinstance(attack, CountsPasses) else None
    looks = attack.looks_at(POOL) if isinstance(attack, CountsImages) else POOL
    images = NOT_STATED if passes is None else f"{looks:,}" if passes.forward > 1 else NOTHING
    base = ["base"] if isinstance(attack, UsesBase) and attack.uses_base else []
    copies = (
        [how_many(attack.copies - 1, "more copy", "more copies")]
        if isinstance(attack, UsesCopies)
        else []
    )
    return (
        attack.change if isinstance(attack, SaysChange) else "other",
        ", ".join(["weights" if asked is None else f"{asked:,} answers", *head]),
        images,
        "yes" if isinstance(attack, NeedsLabels) and attack.labelled else NOTHING,
        ", ".join([*base, *copies]) or NOTHING,
        attack.adaptive if isinstance(attack, IsAdaptive) else NOTHING,
        NOT_STATED if passes is None else _written_passes(passes),
    )


def _stated(cls: type) -> Facts | None:
    found: Facts | None = getattr(cls, "facts", None)  # the registry saw to its type
    return found


def _question(cls: type[Method]) -> Iterator[str]:
    stated = _stated(cls)
    yield stated.answers if stated else NOT_STATED
    yield cls.needs.text
    yield "mark" if cls.marks else "fingerprint"
    yield stated.unit if stated else NOT_STATED
    yield "own coins" if issubclass(cls, RedrawsBits) else "innocents"
    labels = "labels" if stated and stated.labelled else ""
    head = "head" if cls.needs & Access.BLACK_BOX else ""
    unsaid = "" if stated else f"labels {NOT_STATED}"
    yield ", ".join(filter(None, (head, labels, unsaid))) or NOTHING


def _effort(name: str) -> Iterator[str]:
    """Yield passes to protect and to read, the paper's year, authors and id, and departures."""
    from bench.registry import METHODS

    try:
        method = METHODS.build(name, {})
    except SettingError:  # a setting has no default: nothing can be counted before it is known
        method = None
    yield _passes(method.protect_passes) if isinstance(method, CountsProtecting) else NOT_STATED
    yield _passes(method.extract_passes) if isinstance(method, CountsExtracting) else NOT_STATED
    stated = _stated(METHODS.get(name))
    paper = stated.paper if stated else None
    yield str(paper.year) if paper else NOTHING
    yield paper.cited if paper else "none" if stated else NOT_STATED
    yield paper.id if paper else NOTHING
    yield str(len(stated.departures)) if stated and paper else NOTHING


def _passes(count: Callable[[Sizes], Passes]) -> str:
    """Write the passes of default settings for mini."""
    try:
        return _written_passes(count(ASSUMED))
    except UserError:  # default settings that do not fit mini
        return "not for mini"


def _written_passes(found: Passes) -> str:
    """Write passes, with the side of the number that they are on."""
    ways = ((found.forward, "f"), (found.backward, "b"))
    text = " + ".join(f"{round(number):,} {way}" for number, way in ways if number) or "0"
    return {"exact": "", "at least": "≥ ", "at most": "≤ ", "about": "≈ "}[found.bound] + text


def _body(table: Table) -> str:
    """Write a table without its heading."""
    return markdown(table).partition("\n\n")[2].strip()


def _openings(registry: Registry[Any]) -> list[str]:
    """Return what the packages that plug-ins live in say of them."""
    modules = {registry.get(name).__module__ for name in registry.names()}
    # Accusers live within the attacks, and have a package of their own there.
    within = registry.kind == "accuser"
    packages = {m.rpartition(".")[0] or m if within else m.partition(".")[0] for m in modules}
    return [text for name in sorted(packages) if (text := inspect.getdoc(sys.modules[name]))]


def _written(known: _Known) -> str:
    settings = "\n".join(f"* {setting}" for setting in known.settings)
    paper = f"Source: {known.paper}" if known.paper else ""
    departures = f"Departures: {' '.join(known.departures)}" if known.departures else ""
    parts = (known.summary, settings, known.reading, paper, departures)
    return "\n\n".join(filter(None, (f"### {known.name}", *parts, f"From {known.origin}.")))


def _explain_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", help="of a method or an attack")


def explain(arguments: argparse.Namespace) -> int:
    """Print all there is to know of one plug-in: settings, choices, defaults, source."""
    from bench.registry import ACCUSERS, ATTACKS, METHODS

    registries: tuple[Registry[Any], ...] = (METHODS, ATTACKS, ACCUSERS)
    for registry in registries:
        if arguments.name in registry.names():
            _print_known(_known(registry, arguments.name), wide_console())
            return OK
    known = [name for registry in registries for name in registry.names()]
    raise UserError(
        f"no method, attack or accuser '{arguments.name}'{nearest(arguments.name, known)}; see "
        "`bench list methods`, `bench list attacks` and `bench list accusers`"
    )


def _print_known(known: _Known, console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text(known.name, "bold"))
    paper = f"Source: {known.paper}" if known.paper else ""
    lines = [(2, known.summary), *((4, setting) for setting in known.settings)]
    lines += [(2, known.reading), (2, paper), *((4, departure) for departure in known.departures)]
    for indent, line in [*lines, (2, f"From {known.origin}.")]:
        if line:  # a docstring's [CLS] is no markup
            console.print(Padding(Text(line.replace("`", "")), (0, 0, 0, indent), expand=False))
    console.print()


def _known_data() -> Table:
    from bench.data.settings import LOADERS

    rows = tuple((name, _count(name), LOADERS.get(name).summary) for name in LOADERS.names())
    return Table("Data", "loaders, by name", ("loader", "images", "what it is"), rows)


def _count(name: str) -> str:
    """Count a loader's images, where that is known without a folder."""
    from bench.data import manifest
    from bench.data.settings import LOADERS, DataSettings

    loader = LOADERS.get(name)
    if not loader.on_disk:
        return str(len(manifest.read("", DataSettings(name)).items))
    return str(loader.published.images) if loader.published else "-"


def _known_models() -> Table:
    from bench.models.libraries import LIBRARIES

    rows = []
    for name in LIBRARIES.names():
        library = LIBRARIES.get(name)
        rows += [(f"{name}: {model}", library.summary) for model in library.names or ("NAME",)]
    return Table("Models", "owners, by library", ("model", "where it comes from"), tuple(rows))


def _profile_arguments(command: argparse.ArgumentParser) -> None:
    a_model(command)
    command.add_argument("--images", default="photos", help="photos (default), digits or a folder")
    command.add_argument(
        "--count", type=int, default=100, help="images (default 100, as the paper)"
    )
    command.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where to write the table, too"
    )
    data_root(command)
    a_device(command)
    threads(command)


def profile_model(arguments: argparse.Namespace) -> int:
    """Print the activation profile of section 3.2.4 and the block both rules choose."""
    import torch

    from bench.data import manifest
    from bench.data.images import load
    from bench.data.settings import described
    from bench.runs.machine import find_device, pin_threads, usable_cores
    from bench.runs.owners import load_owner
    from bench.suite.owners import owner_of, weights_file
    from bench.training import activations

    if arguments.count < 1:
        raise UserError(f"--count: expected at least 1, got {arguments.count}")
    pin_threads(arguments.threads or usable_cores())
    device = find_device(arguments.device)
    given = arguments.model, arguments.weights, arguments.pretrained
    owner = owner_of(*given, arguments.image_size, arguments.entry)
    file = weights_file(owner, arguments.data) if owner.from_file else None
    model = load_owner(owner, file)
    settings = described(arguments.images, data_dir=arguments.data)
    listed = manifest.read("images", settings, arguments.data or Path())
    for told in model.notes.get("weights", []):
        print(f"{owner.name}: {told}")
    for told in listed.notes:
        print(f"images: {told}")
    order = torch.randperm(len(listed.items), generator=torch.Generator().manual_seed(0))
    images = load(listed, order[: arguments.count].tolist(), model.preprocess)
    figure = activations.figure_2(
        owner.name, activations.activation_profile(model, images, device), len(images)
    )
    print_table(figure, wide_console())
    if arguments.output is not None:
        write_tables(arguments.output, [figure])
    return OK


PERF = Command(
    "perf",
    "measure the speed of watched work; --check fails where it is worse",
    _perf_arguments,
    watch_speed,
)
LIST = Command(
    "list", "list methods, attacks, accusers, models or embedded data", _list_arguments, list_known
)
EXPLAIN = Command(
    "explain",
    "say what a method or an attack takes, and what it is from",
    _explain_arguments,
    explain,
)
PROFILE = Command(
    "profile",
    "measure the activations of every block of a model",
    _profile_arguments,
    profile_model,
)
