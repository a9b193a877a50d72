"""Hold a plan against a store: what is left to do, and at what cost, and which models are one."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from statistics import median
from typing import Any

from bench.records.nouns import ALIGN, UNTOUCHED, Json, Passes, digest
from bench.records.store import Artefact, Store
from bench.suite.graph import Plan, Question, Stage
from bench.verdicts.copies import NEAR, one_model

COPIES = ("attack", "align")
"""Kinds of stages that make suspects or say how they are rewritten: made again at will."""


def missing(plan: Plan, store: Store, questions: Iterable[Question]) -> tuple[str, ...]:
    """List the stages that must run to answer `questions`, parents first.

    An artefact that is there is used; one that a missing stage would have to load is checked byte
    by byte first, and made again if it is damaged.
    """
    wanted: dict[str, bool] = {}

    def want(key: str, loaded: bool) -> bool:
        if key not in wanted or (loaded and not wanted[key]):
            there = store.verify(key) if loaded else store.find(key) is not None
            wanted[key] = not there
            if not there or (loaded and _stands_on_its_parent(store, key)):
                for parent in plan.stages[key].parents:
                    want(parent, True)
        return wanted[key]

    for question in questions:
        for key in question.stages:
            want(key, False)
    return tuple(key for key in plan.stages if wanted.get(key))


def spare_copies(plan: Plan, left: Container[str]) -> Iterator[str]:
    """Yield the attacked copies, and their alignments, that no stage `left` makes or loads.

    Owners, marks and keys are never spare: they are few, and any later suite starts from them.
    """
    needed = set[str]()
    for key, stage in plan.stages.items():
        if key in left:
            needed.add(key)
            for parent in stage.parents:
                needed.add(parent)
                while _is_loaded_from_its_parent(plan.stages[parent]):
                    parent = plan.stages[parent].parents[0]
                    needed.add(parent)
    yield from (k for k, s in plan.stages.items() if s.kind in COPIES and k not in needed)


def at_once(plan: Plan, sizes: Mapping[str, float | None]) -> float | None:
    """Return the most that lies on disk when stages are made in turn and spare copies dropped."""
    left, there, most = dict(sizes), dict[str, float](), 0.0
    for key, size in sizes.items():
        if size is None:
            return None
        there[key] = size
        del left[key]
        most = max(most, sum(there.values()))
        for spare in spare_copies(plan, left):
            there.pop(spare, None)
    return most


def _is_loaded_from_its_parent(stage: Stage) -> bool:
    """Say whether a stage makes a model left untouched, or says how one is to be rewritten."""
    untouched = stage.kind == "attack" and stage.recipe["step"]["name"] == UNTOUCHED
    return untouched or stage.kind == "align"


def _stands_on_its_parent(store: Store, key: str) -> bool:
    """Say whether an artefact is a model that is kept as its parent, or as changes to that."""
    found = store.find(key)
    if found is None:
        return False
    return found.kind == "align" or (found.kind == "attack" and not found.tensors)


def guesses(plan: Plan, store: Store) -> dict[str, tuple[float, int]]:
    """Guess seconds and bytes of every stage of whose like the store holds any, by key."""
    return {key: _middle(found) for key, found in alike(plan, store).items()}


def alike(plan: Plan, store: Store) -> dict[str, list[Artefact]]:
    """List by key what the store holds of every stage's like, where it holds any.

    Alike are stages of one kind, plug-in and settings on a model of one name and size, any seed.
    """
    made = {artefact.key: artefact for artefact in store}
    past: dict[str, list[Artefact]] = {}
    for artefact in made.values():
        past.setdefault(_likeness(artefact, made), []).append(artefact)
    found = {key: past.get(_likeness(stage, plan.stages)) for key, stage in plan.stages.items()}
    return {key: artefacts for key, artefacts in found.items() if artefacts}


def start(stage: Stage | Artefact, known: Mapping[str, Stage] | Mapping[str, Artefact]) -> Any:
    """Return the stage, or the artefact, that a line of descent began with; None if it is gone.

    That of an extraction is its suspect's.
    """
    found: Stage | Artefact | None = stage
    while found is not None and found.parents:
        found = known.get(found.parents[found.kind == "extract"])
    return found


def _likeness(stage: Stage | Artefact, known: Mapping[str, Stage] | Mapping[str, Artefact]) -> str:
    recipe, origin = stage.recipe, start(stage, known)
    model = None
    if origin is not None and origin.kind == "cohort":
        model = [origin.recipe.get("shape", "mini"), None]
    elif origin is not None and "owner" in origin.recipe:
        owner = origin.recipe["owner"]
        model = [owner["name"], owner["args"].get("image_size")]
    plugin = recipe.get("accuser") and [recipe["accuser"], recipe["method"]]
    plugin = (
        plugin
        or recipe.get("method")
        or recipe.get("step")
        or recipe.get(ALIGN)
        or recipe.get("shape")
    )
    return digest(stage.kind, plugin, model)


def _middle(alike: list[Artefact]) -> tuple[float, int]:
    seconds = sorted(float(a.payload["cost"]["seconds"]) for a in alike)
    sizes = sorted(a.bytes for a in alike)
    return seconds[len(seconds) // 2], sizes[len(sizes) // 2]


def pace(store: Store) -> dict[tuple[str, int | None], float]:
    """Return the seconds of a forward pass of every model that was trained or attacked here."""
    found: dict[tuple[str, int | None], list[float]] = {}
    for artefact in store:
        if made := _timed(artefact):
            found.setdefault(made[0], []).append(made[1])
    return {model: median(paces) for model, paces in found.items()}


def _timed(artefact: Artefact) -> tuple[tuple[str, int | None], float] | None:
    described, cost = artefact.payload.get("architecture"), artefact.payload["cost"]
    work = Passes(cost["forward_passes"], cost["backward_passes"]).work
    if described is None or not work:
        return None
    return (described["name"], described["image_size"]), cost["seconds"] / work


def near_models(plan: Plan, store: Store) -> tuple[tuple[str, ...], ...]:
    """Put the stages together whose models are equal or nearly so, in order of the plan.

    Models that were loaded before there were sketches are left out.
    """
    loaded = {key: made for key in plan.owners if (made := store.find(key)) and _sketched(made)}
    keys = list(loaded)
    first = one_model([made.payload["sketch"] for made in loaded.values()], NEAR)
    return tuple(
        tuple(key for key, name in zip(keys, first, strict=True) if name == model)
        for model in dict.fromkeys(first)
    )


def near_notes(plan: Plan, store: Store, question: Question) -> dict[str, Json]:
    """Return which weights an innocent model counts as, where those of others are near its own."""
    if question.cell.other_model is None:
        return {}
    own = plan.stages[question.suspect].parents[0]
    group = next((keys for keys in near_models(plan, store) if own in keys), ())
    first = store.find(group[0]) if len(group) > 1 else None
    return {} if first is None else {"copies": {"one_model": first.payload["digest"]}}


def _sketched(made: Artefact) -> bool:
    return "sketch" in made.payload
