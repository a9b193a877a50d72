"""Carry out `bench check`: say line by line what a suite needs, and fetch what may be fetched."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.parser import OK, USERS_MISTAKE, Command, a_suite
from bench.records.nouns import Sizes, UserError, canonical, how_many, shown
from bench.records.table import wide_console

if TYPE_CHECKING:
    from rich.console import Console

    from bench.data.manifest import Manifest
    from bench.data.settings import DataSettings
    from bench.models.vision import VisionModel
    from bench.suite.graph import Plan, Question
    from bench.suite.grid import Suite
    from bench.suite.owners import OwnerSettings

LISTED = 12
"""Classes that are named one by one, with how many images each has."""

LAID_OUT = 5_000
"""Cells that are laid out to look at, in some seconds; a larger suite is counted and planned."""

LOOKED_AT = 64
"""Files of a data set that are decoded, and the side in pixels at which."""


def _check_arguments(command: argparse.ArgumentParser) -> None:
    a_suite(command)
    command.add_argument(
        "--download",
        action="store_true",
        help="fetch what its publisher lets anybody fetch: weights from the hub, Oxford-IIIT Pet",
    )


def check_suite(arguments: argparse.Namespace) -> int:
    """Say for every owner and data set whether it is there; exit 2 if anything is missing."""
    from bench.data import manifest
    from bench.data.settings import LOADERS
    from bench.runs import owners
    from bench.suite import reader

    loaded = reader.load(arguments.suite)
    console = wide_console()
    missing, said = 0, set[str]()

    def line(what: str, found: str | UserError, mark: str = "") -> None:
        nonlocal missing
        missing += isinstance(found, UserError)
        mark = mark or ("missing" if isinstance(found, UserError) else "ok")
        told = shown(f"{mark:8} {what}: {found}")
        console.print(told, markup=False, highlight=False, soft_wrap=True)

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
        for told in _understood(model, arguments.data):
            line(f"{role} {who}", told, "" if isinstance(told, UserError) else "note")
    for name, settings in loaded.data.items():
        download = LOADERS.get(settings.loader).download
        if arguments.download and download is not None:
            download(name, settings, arguments.data or Path())
        try:
            made = manifest.read(name, settings, arguments.data)
            manifest.split(made)
            line(f"data {name}", f"{_size(made)}{_looked_at(made)}")
        except UserError as error:
            line(f"data {name}", error)
            _print_source(console, settings)
            continue
        for told in (*made.notes, *_unlike_published(made)):
            line(f"data {name}", told, "note")
            said.add(f"data {name}: {told}")
    if missing:
        return USERS_MISTAKE
    lines, notes = _laid_out(loaded, arguments.data)
    for each in lines:
        line(*each)
    for warning in (*_repeated(arguments.suite), *_twice(loaded, arguments.data), *notes):
        if warning not in said:
            console.print(f"note     {warning}", markup=False, highlight=False, soft_wrap=True)
    return USERS_MISTAKE if missing else OK


def _laid_out(
    loaded: Suite, data_dir: Path | None
) -> tuple[list[tuple[str, str | UserError, str]], tuple[str, ...]]:
    """Count a suite's cells, and look at what they ask for; return lines, and notes."""
    from bench.runs.foresight import reach
    from bench.suite import graph, plan

    who = f"suite {loaded.name}"
    try:
        made = plan.make(loaded, data_dir, most=LAID_OUT)
    except graph.TooMany as error:
        if error.cells > graph.MOST:
            raise
        told = f"more than {LAID_OUT:,} cells: `bench plan` looks at each of so many"
        return [(who, told, "")], loaded.warnings
    wrong = [(what, UserError(why), "wrong") for what, why in _unfit(made)]
    found = (*_unread(made), *_other_classes(made), *made.warnings, *reach.said_of(made))
    return [(who, how_many(len(made.questions), "cell"), ""), *wrong], found


def _weights_line(owner: OwnerSettings, data_dir: Path | None) -> tuple[str | UserError, str]:
    """Say whether an owner's weights are there, and mark what a run would fetch."""
    from bench.runs import owners
    from bench.runs.foresight import budget
    from bench.suite.owners import weights_identity

    try:
        identity = weights_identity(owner, data_dir)
        place = owners.place(owner) if owner.from_hub else None
        model = owners.unweighted(owners.architecture_of(owner))  # refuses sizes that cannot be
    except UserError as error:
        return error, "missing"
    reads = f", reads {_seen(model)}"
    if not owner.from_hub:
        return f"weights {identity}{reads}", "ok"
    if place is None:
        return f"weights that {owner.library} fetches on the first run", "fetch"
    pin = f" at {place.revision[:12]}" if place.revision else ""
    if place.cached:
        return f"weights of {place.repository}{pin}, in the hub's cache{reads}", "ok"
    size = budget.shape(owners.architecture_of(owner)).bytes / 1e9
    return f"about {size:.1f} GB from the hub on the first run, or now: {place.command}", "fetch"


def _seen(model: VisionModel) -> str:
    """Say what a model makes of an image, and the tag of the weights it does so for."""
    how, (height, width) = model.preprocess, model.preprocess.size
    mean, std = ("/".join(f"{value:.3g}" for value in part) for part in model.scaling)
    cut = f"{height} x {width} ({how.mode}, crop {how.crop_pct:g}, {how.interpolation})"
    named = model.architecture.tag or model.architecture.name.partition(".")[2]
    return f"{cut}, mean {mean}, std {std}, {f'tag {named}' if named else 'no tag'}"


def _understood(owner: OwnerSettings, data_dir: Path | None) -> list[str | UserError]:
    """Read an owner's file as a run would: say what was understood of it, or what is wrong."""
    from bench.models.weights import weights_digest
    from bench.runs import owners
    from bench.suite.owners import weights_file

    if not owner.from_file:
        return []
    try:
        file = weights_file(owner, data_dir)
    except UserError:
        return []  # that it is missing was said
    try:
        model = owners.load_owner(owner, file)
        owners.refuse_others(owner, weights_digest(model))
    except UserError as error:
        return [error]
    return list(model.notes.get("weights", []))


def _print_source(console: Console, settings: DataSettings) -> None:
    """Say what a data set that is missing is, how large, and how to come by it."""
    known = settings.published
    if known is None:
        return
    size = f"{known.images} images, {known.classes} classes, about {known.gigabytes:g} GB"
    for text in (f"{known.title}: {size}", f"{known.where}", f"{known.how}"):
        console.print(f"         {text}", markup=False, highlight=False, soft_wrap=True)


def _size(made: Manifest) -> str:
    """Count a data set's images, and those of each class where it has few."""
    classes = how_many(len(made.classes), "class", "classes")
    total = f"{how_many(len(made.items), 'image')}, {classes}"
    counts = Counter(item.label for item in made.items if item.label is not None)
    if not counts:
        return total
    of = [f"{name} {counts[label]}" for label, name in enumerate(made.classes)]
    if len(of) <= LISTED:
        return f"{total}: {', '.join(of)}"
    least, most = min(counts.values()), max(counts.values())
    each = f"{least}" if least == most else f"{least} to {most}"
    return f"{total}: {made.classes[0]} .. {made.classes[-1]}, {each} images each"


def _looked_at(made: Manifest) -> str:
    """Decode some files of a data set: what no run could read is said now, and what masks show."""
    from bench.data.images import Preprocess, load
    from bench.data.item import IGNORE

    if made.root is None:
        return ""
    some = range(0, len(made.items), math.ceil(len(made.items) / LOOKED_AT))
    masks = load(made, some, Preprocess((LOOKED_AT, LOOKED_AT))).masks
    if masks is None:
        return ""
    ignored = float((masks == IGNORE).double().mean())
    shown = len(set(masks[masks != IGNORE].tolist()))
    return f"; masks of {len(some)} looked at show {shown} of them, {ignored:.0%} of pixels ignored"


def _unlike_published(made: Manifest) -> Iterator[str]:
    """Say where a data set is not as large as it was published."""
    known = made.settings.published
    if known is None:
        return
    classes = len(known.classes_of(made.settings.targets))
    if (len(made.items), len(made.classes)) != (known.images, classes):
        yield f"published with {known.images} images and {classes} classes: this is another edition"


def _unfit(made: Plan) -> Iterator[tuple[str, str]]:
    """Yield which method cannot protect an owner with the images there are, and why."""
    from bench.data.manifest import split
    from bench.registry import METHODS
    from bench.runs import owners
    from bench.runs.foresight import budget
    from bench.types import SaysUnfit

    for stage in made.stages.values():
        if stage.kind != "protect":
            continue
        name = str(stage.recipe["method"]["name"])
        method = METHODS.build(name, stage.settings)
        if not isinstance(method, SaysUnfit):
            continue
        pools = split(made.manifest(stage.recipe["data"]))
        model = owners.architecture_at(made, stage.parents[0])
        of = budget.shape(model)
        counts = len(pools.owner_images), len(pools.owner_held_out)
        if why := method.unfit(Sizes(*counts, of.blocks, of.tokens, of.width)):
            yield f"method {name} for {model.name}", why


def _unread(made: Plan) -> Iterator[str]:
    """Say which method can read nothing at all of what a suite asks of an owner, and why."""
    asked: dict[tuple[str, str], list[Question]] = {}
    for question in made.questions:
        if question.cell.accuser is None:
            names = question.cell.owner.text, question.cell.method.text
            asked.setdefault(names, []).append(question)
    for questions in asked.values():
        first = questions[0]
        if all(question.skip for question in questions):
            who = f"{first.cell.owner.name}: {first.cell.method.name}"
            yield f"{who}: nothing can be read, every cell will be skipped: {first.skip}"


def _repeated(file: Path) -> Iterator[str]:
    """Say what a file lists twice: it is asked once. What it includes may list it, too."""
    from bench.suite import reader

    written = reader.plain(reader.own(file))
    for name in ("owners", "methods", "attacks", "seeds"):
        listed = written.get(name)
        counts = Counter(canonical(item) for item in listed) if isinstance(listed, list) else {}
        for item, count in counts.items():
            if count > 1:
                yield f"{name}: {item} stands there {count} times, and is asked once"


def _twice(suite: Suite, data_dir: Path | None) -> Iterator[str]:
    """Say which owners have equal weights: what is found of one is found of the other."""
    from bench.suite.owners import weights_identity

    found: dict[object, list[str]] = {}
    for owner in suite.owners:
        who = owner.library, owner.name, owner.pretrained, owner.image_size, owner.classifier
        identity = weights_identity(owner, data_dir)
        found.setdefault((*who, owner.revision, identity), []).append(owner.weights)
    for files in found.values():
        if len(files) > 1:
            same = ", ".join(files)
            yield f"owners with weights {same}: equal weights, one model asked twice; drop one"


def _other_classes(made: Plan) -> Iterator[str]:
    """Say where an owner's own classifier and the labels of its images do not go together."""
    from bench.runs import owners
    from bench.runs.foresight import budget

    for part in made.suite.parts or (made.suite,):
        listed = made.manifests[part.owner_images]
        for owner in part.owners:
            if owner.classifier is not None or listed.masked or not listed.classes:
                continue
            told = budget.shape(owners.architecture_of(owner)).classes
            if told not in (0, len(listed.classes)):
                yield (
                    f"owner {owner.name} tells {told} classes apart and data {listed.name} has "
                    f"{len(listed.classes)}: its label i need not be the model's class i"
                )


CHECK = Command(
    "check", "say line by line what a suite needs, and how to get it", _check_arguments, check_suite
)
