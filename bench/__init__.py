"""Who owns this vision foundation model? Methods crossed with attacks, answered with records.

What the command `bench` does, from Python: run a suite and read its records as typed values, turn
them into tables and these into pandas frames, protect a model and verify a suspect. Importing this
costs nothing: each function loads what it works with, and torch where it makes or reads models.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame

    from bench.records.ledger import Results as Results
    from bench.records.nouns import Align, Json
    from bench.records.nouns import Incompatible as Incompatible
    from bench.records.nouns import Record as Record
    from bench.records.nouns import UserError as UserError
    from bench.records.table import Format as Format
    from bench.records.table import Table as Table
    from bench.runs.claims.claim import Finding as Finding
    from bench.runs.claims.claim import Verification as Verification
    from bench.runs.claims.key import Key as Key
    from bench.runs.claims.making import Claim as Claim
    from bench.runs.claims.making import Material
    from bench.runs.claims.replaying import Origin as Origin
    from bench.runs.claims.replaying import Replay as Replay
    from bench.runs.claims.tracing import Trace as Trace
    from bench.runs.engines import Look
    from bench.runs.session import Watch
    from bench.runs.tuning.choice import Tuned as Tuned
    from bench.suite.graph import Plan as Plan

NOUNS = {
    "Claim": "bench.runs.claims.making",
    "Finding": "bench.runs.claims.claim",
    "Format": "bench.records.table",
    "Incompatible": "bench.records.nouns",
    "Key": "bench.runs.claims.key",
    "Origin": "bench.runs.claims.replaying",
    "Plan": "bench.suite.graph",
    "Record": "bench.records.nouns",
    "Replay": "bench.runs.claims.replaying",
    "Results": "bench.records.ledger",
    "Table": "bench.records.table",
    "Trace": "bench.runs.claims.tracing",
    "Tuned": "bench.runs.tuning.choice",
    "UserError": "bench.records.nouns",
    "Verification": "bench.runs.claims.claim",
}
"""What the functions here take, return and raise, and how tables are written; loaded when asked."""

__all__ = [
    *("copies", "descendants", "frame", "plan", "protect", "read", "report", "run", "trace"),
    *("tune", "verify", *NOUNS),
]


def __getattr__(name: str) -> Any:
    if name in NOUNS:
        return getattr(importlib.import_module(NOUNS[name]), name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")


def plan(suite: str | Path, data: str | Path | None = None, *, assume: bool = False) -> Plan:
    """Lay out a suite file: its cells, and the stages that answer them.

    Relative paths of data and weights start at `data`, by default at BENCH_DATA. With `assume` a
    data set that is not there counts with its published size; such a plan is to look at, not to
    run.

    Raises:
        UserError: the suite asks for what there is not.

    """
    from bench.suite import plan, reader

    return plan.make(reader.load(Path(suite)), _root(data), assume)


def run(
    suite: str | Path | Plan,
    results: str | Path = "results",
    data: str | Path | None = None,
    *,
    device: str = "auto",
    engine: Literal["processes", "ray"] = "processes",
    address: str | None = None,
    workers: int | None = 1,
    threads: int = 1,
    compile: bool = False,
    drop_copies: bool = False,
    stale: Literal["warn", "remake"] = "warn",
    note: Callable[[str], None] = print,
    watch: Watch | None = None,
    look: Look | None = None,
) -> Results:
    """Answer every cell of a suite that has no record yet, and return all there are.

    Outline and records are written to the folder of the suite's name in `results`. A cell that
    fails is a record too, see `Results.failed`. With several `workers`, or None for as many as
    there is room for, each is a process that runs your script first: call this under
    `if __name__ == "__main__":`. The other arguments are those of the command `bench run`; `note`
    is told what a user should know on the way, and `watch` is handed the records as they come;
    `look` is told the keys of the stages that are being carried out, and of all that are left.

    Raises:
        UserError: the suite asks for what there is not, or weights cannot be loaded.

    """
    from bench.runs import session
    from bench.suite.graph import Plan

    return session.run(
        session.Session(
            suite if isinstance(suite, Plan) else plan(suite, data),
            Path(results),
            _root(data),
            device=device,
            engine=engine,
            address=address,
            workers=workers,
            threads=threads,
            compile=compile,
            drop_copies=drop_copies,
            stale=stale,
            note=note,
            watch=watch or session.unwatched,
            look=look or session.unseen,
        )
    )


def read(folder: str | Path) -> Results:
    """Read a suite's folder of results, without torch and without the models.

    Raises:
        UserError: there are none, or a file is not as the bench writes it.

    """
    from bench.records.ledger import read_results

    return read_results(Path(folder))


def report(
    results: Results,
    *,
    reference: bool = False,
    price: bool = False,
    frontier: bool = False,
    calibration: bool = False,
    equal_price: bool = False,
) -> tuple[Table, ...]:
    """Make tables of results, as `bench report` prints them; `Table.frame` is one for pandas.

    They are the paper's, the worst of every kind of attack, and what accusers forge. With `price`
    they are the worst case and the price of removal instead, as a grid of budgets, beside what is
    evaded and forged, with `frontier` strength by strength. `reference` adds the figures that the
    paper printed, `calibration` what verdicts are worth, `equal_price` what is read at which price.
    """
    from bench.reports import frontier as removal
    from bench.reports import printed, tables
    from bench.reports.blocks import by_method
    from bench.reports.price import accusers, both, grid, kinds, suspects
    from bench.runs.tuning import equal

    found = results.outline, results.records
    whole = not (price or frontier)
    return (
        *(
            (
                *(*tables.tables(*found), *kinds.tables(*found), *suspects.tables(*found)),
                *accusers.tables(*found),
            )
            if whole
            else ()
        ),
        *((*grid.tables(*found), *both.tables(*found)) if price else ()),
        *(removal.tables(*found) if frontier else ()),
        *(printed.tables(*found) if reference else ()),
        *(tables.calibration(results.outline, by_method(*found)) if calibration else ()),
        *((equal.equal_price(*found),) if equal_price else ()),
    )


def frame(results: Results) -> DataFrame:
    """Return results as a pandas frame: a row a cell, typed columns, in the order of tables."""
    from bench.reports import tidy

    return tidy.frame(tidy.rows(results.outline, results.records))


def tune(
    suite: str | Path,
    results: str | Path = "results",
    data: str | Path | None = None,
    *,
    budget: int = 8,
    price: float = 0.02,
    cosine: float = 0.0,
    passes: float | None = None,
    seed: int = 0,
    write: str | Path | None = None,
    **how: Any,
) -> Tuned:
    """Choose every method's settings for a suite, by one budget, on the owner's data alone.

    Each method is tried at `budget` settings, its default and the suite's own among them, and none
    may cost the owner more than `price`. What else bounds them is in `Terms`. No suspect is read.
    Records go to the folder NAME-tuning in `results`, and a second call makes nothing anew. `write`
    names a file for a copy of the suite with what was chosen. `how` is what `run` takes.

    Raises:
        UserError: the suite asks for what there is not, or is one of parts.

    """
    from bench.records.settings import settings
    from bench.records.store import Store
    from bench.runs.foresight.budget import counted
    from bench.runs.tuning import choice, trials, writing
    from bench.runs.tuning.candidates import Terms
    from bench.suite import reader

    asked = {"budget": budget, "price": price, "cosine": cosine, "passes": passes, "seed": seed}
    terms, file, root = settings(Terms, asked), Path(suite), _root(data)
    read, store = reader.load(file), Store(Path(results) / ".store")
    pools = trials.pools(read, terms, root, lambda made: counted(made, store, "protect"))
    made = trials.plan_of(read, [c for pool in pools for c in pool.candidates], root)
    tuned = choice.chosen(read.name, terms, pools, run(made, results, data, **how))
    if write is not None:
        writing.write(Path(write), file, terms, tuned.choices)
    return tuned


def protect(
    model: str,
    method: str,
    images: str,
    output: str | Path,
    *,
    settings: Mapping[str, Json] | None = None,
    users: str | Sequence[str] = "",
    labels: Literal["none", "sorted"] = "none",
    weights: str = "hub",
    pretrained: str | None = None,
    entry: str | None = None,
    image_size: int | None = None,
    data: str | Path | None = None,
    seed: int | None = None,
    registry: str | Path | None = None,
    holder: str = "",
    alpha: float = 0.05,
    device: str = "auto",
    note: Callable[[str], object] = print,
    watch: Callable[[Claim], object] = lambda made: None,
) -> tuple[Claim, ...]:
    """Mark or fingerprint a model of yours; write a key, and for a mark a copy, for every user.

    `model` is mini or LIBRARY:NAME, `weights` hub, random or a file; of several sets of weights in
    it `entry` names one. `images` is a folder of yours, or the embedded photos or digits. Files go
    to `output`, or to a folder there for each user that has a name. `note` is told what was
    understood of a file of weights and of a folder of images, `watch` of every copy as it is made.

    With a `registry`, a file that only grows, every key is drawn from a nonce in it, and bound to
    the name of its `holder` and to the level `alpha`; no `seed` is then anybody's to choose.

    Raises:
        UserError: there is no such model, method or image, or a key lies there already.
        Incompatible: the method cannot work with this model.

    """
    from bench.registry import METHODS
    from bench.runs.claims import commitment, key, making
    from bench.runs.machine import find_device
    from bench.suite.owners import owner_of

    if registry is not None:
        commitment.refuse_seed(seed)
    spec, there = key.with_rule(METHODS.spec(method, settings or {})), find_device(device)
    named = owner_of(model, weights, pretrained, image_size, entry)
    homes = key.homes(Path(output), [users] if isinstance(users, str) else users)
    given = making.material(named, images, labels, _root(data), note)
    registrar = None
    if registry is not None:
        registrar = making.Registrar(Path(registry), holder, alpha, given.images)
    return making.protect_copies(
        given.owner, spec, given.pools, homes, seed, there, watch, registrar
    )


def copies(
    model: str,
    key: Key | str | Path,
    images: str,
    output: str | Path,
    *,
    users: str | Sequence[str],
    labels: Literal["none", "sorted"] = "none",
    weights: str = "hub",
    pretrained: str | None = None,
    entry: str | None = None,
    image_size: int | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    note: Callable[[str], object] = print,
    watch: Callable[[Claim], object] = lambda made: None,
) -> tuple[Claim, ...]:
    """Give each user a copy of one claim, which tells whose it is; `trace` finds the user.

    `key` is that of a first copy, whose method and settings hold; users are numbers. The other
    arguments are those of `protect`.

    Raises:
        UserError: the key's method gives no copies, the model is another than the key's, or a key
            lies there already.

    """
    from bench.runs.claims import key as keys
    from bench.runs.claims import making, tracing
    from bench.runs.machine import find_device
    from bench.suite.owners import owner_of

    first = keys.read_all([key if isinstance(key, keys.Key) else Path(key)], None)[0]
    named = owner_of(model, weights, pretrained, image_size, entry)
    homes = keys.homes(Path(output), [users] if isinstance(users, str) else users)
    given = making.material(named, images, labels, _root(data), note)
    there = find_device(device)
    return tracing.copy_for_users(given.owner, first, given.pools, homes, there, watch)


def descendants(
    model: str,
    output: str | Path,
    *,
    images: str = "digits",
    labels: Literal["none", "sorted"] = "none",
    max_images: int = 256,
    seed: int = 0,
    weights: str = "hub",
    pretrained: str | None = None,
    entry: str | None = None,
    image_size: int | None = None,
    data: str | Path | None = None,
    device: str = "auto",
    watch: Callable[[Path], object] = lambda path: None,
) -> tuple[Path, ...]:
    """Write what honest users make of a clean model: innocents for `verify`; see `protect`.

    Raises:
        UserError: there is no such model, or the images have no labels.

    """
    from bench.runs.claims import making
    from bench.runs.claims.descending import descend
    from bench.runs.machine import find_device
    from bench.suite.owners import owner_of

    named = owner_of(model, weights, pretrained, image_size, entry)
    owner, pools, _ = making.material(named, images, labels, _root(data), print, max_images)
    return descend(owner, pools, Path(output), seed, find_device(device), watch)


def verify(
    suspect: str | Path,
    keys: Key | str | Path | Sequence[Key | str | Path],
    *,
    commitments: Sequence[str] | None = None,
    strangers: str | Path | None = None,
    descendants: str | Path | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    entry: str | None = None,
    image_size: int | None = None,
    alpha: float = 0.05,
    align: Align | None = None,
    seen: str | None = None,
    reference: str | Path | Sequence[str | Path] = (),
    replay: Origin | None = None,
    device: str = "auto",
) -> Verification:
    """Say whether a file of weights is the model that a key was made for.

    Without innocents the verdict stays undecided: `strangers` is a folder of models that never met
    the owner's, `descendants`, for a mark, one of finetuned copies of the clean owner. `model` is
    the suspect's architecture, by default the owner's, `pretrained` the tag its weights started
    from, `entry` the set of weights meant where its file has several; `commitments` what was
    published of the keys, or registries that they are in, from before the suspect was `seen`. All
    keys that their holders meant to make then share the level.

    Suspect and innocents are written in the basis of the released model before they are read, where
    that lies beside the key or is the `reference`; `align` says how, by default as the key does.

    `replay` has secrets made again: a key whose secret does not follow speaks for nothing.

    Raises:
        UserError: a file is missing, damaged or not what it should be.

    """
    import dataclasses

    from bench.runs.claims import claim, commitment, reading, replaying
    from bench.runs.claims.key import Key
    from bench.runs.machine import find_device
    from bench.verdicts.verdict import innocents_needed

    innocents_needed(alpha)  # refuses an alpha that is none
    given = [keys] if isinstance(keys, Key | str | Path) else keys
    placed = [k if isinstance(k, Key) else Path(k) for k in given]
    known, standings = commitment.shown(placed, commitments, alpha, seen)
    there = find_device(device)
    made_of = replay and _made_of(replay, known, there)
    kind = reading.architecture(known[0].owner, str(suspect), model, pretrained, image_size)
    innocents = claim.weight_files(strangers), claim.weight_files(descendants)
    files = [reference] if isinstance(reference, str | Path) else reference
    released = {} if align == "none" else reading.references(placed, known, [*map(Path, files)])
    bases = reading.Bases(released, align)
    level = commitment.level(alpha, standings, len(known))
    found = claim.verify(Path(suspect), kind, known, innocents, level, there, entry, bases)
    notes = (*found.notes, *commitment.said(standings, alpha, level))
    read = (found.evidence, (Path(suspect), kind, entry))
    again = replaying.each(*read, made_of, there, align) if made_of else ()
    return dataclasses.replace(found, notes=notes, replays=again)


def trace(
    suspect: str | Path,
    key: Key | str | Path,
    *,
    users: int,
    alpha: float = 0.01,
    model: str | None = None,
    pretrained: str | None = None,
    entry: str | None = None,
    image_size: int | None = None,
    device: str = "auto",
) -> Trace:
    """Say whose copies a file of weights was made from, of the users 0 .. `users` - 1.

    `key` is any copy's, see `copies`. That a user is named whose copy had no part in
    it happens with chance `alpha` at most, whatever the number of users. The others are `verify`'s.

    Raises:
        UserError: a file is missing, damaged or not what it should be, or the key's method does not
            tell users apart.
        Incompatible: the suspect cannot be read.

    """
    from bench.models.weights import load_weights
    from bench.runs.claims import key as keys
    from bench.runs.claims import reading, tracing
    from bench.runs.machine import find_device

    known = keys.read_all([key if isinstance(key, keys.Key) else Path(key)], None)[0]
    kind = reading.architecture(known.owner, str(suspect), model, pretrained, image_size)
    loaded = load_weights(Path(suspect), kind, entry, any_size=True)
    there = find_device(device)
    return tracing.trace(Path(suspect).name, loaded, known, users, alpha, there)


def _made_of(origin: Origin, keys: Sequence[Key], device: torch.device) -> Material:
    """Load what keys are said to have been made of, refuse other, and say what a replay takes."""
    from bench.runs.claims import making, replaying
    from bench.suite.owners import owner_of

    owner = keys[0].owner
    name, size = f"{owner.library}:{owner.name}", owner.image_size
    named = owner_of(name, str(origin.clean), owner.tag, size, origin.entry)
    made_of = making.material(named, origin.images, origin.labels, _root(origin.data), origin.note)
    replaying.refuse_others(keys, made_of)
    origin.note(replaying.price(keys, made_of, device))
    return made_of


def _root(data: str | Path | None) -> Path | None:
    """Return where relative paths of data and weights start."""
    found = data or os.environ.get("BENCH_DATA")
    return Path(found) if found else None
