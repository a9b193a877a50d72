"""Hold a plan against a store: what is left to do, and at what cost, and which models are one."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from statistics import median
from typing import Any

from bench.records.nouns import ALIGN, UNTOUCHED, Cell, Json, Passes, Spec, digest
from bench.records.store import Artefact, Store
from bench.suite.graph import Plan, Question, Stage
from bench.verdicts.copies import NEAR, one_model

COPIES = ("attack", "align")
"""Kinds of stages that make suspects or say how they are rewritten: made again at will."""


def missing(plan: Plan, store: Store, questions: Collection[Question]) -> tuple[str, ...]:
    """List the stages that must run to answer `questions`, parents first.

    An artefact that is there is used; one that a missing stage would have to load is checked byte
    by byte first, and made again if it is damaged.
    """
    wanted: dict[str, bool] = {}
    listed = store.keys()  # to look for millions one by one takes minutes
    if not listed and len(questions) == len(plan.questions):
        return tuple(plan.stages)

    def want(key: str, loaded: bool) -> bool:
        if key not in wanted or (loaded and not wanted[key]):
            look = store.verify if loaded else store.find
            there = key in listed and bool(look(key))
            wanted[key] = not there
            if not there or (loaded and _stands_on_its_parent(store, key)):
                for parent in plan.stages[key].parents:
                    want(parent, True)
        return wanted[key]

    for question in questions:
        for key in question.stages:
            want(key, False)
    return tuple(key for key in plan.stages if wanted.get(key))


Claim = tuple[str, str, int, str]
"""Whose model, by which method, under the key of which seed, and who accuses, in words."""


def claim_of(cell: Cell) -> Claim:
    """Return the claim that a cell tries."""
    accuser = "" if cell.accuser is None else cell.accuser.text
    return cell.owner.text, cell.method.text, cell.method_seed, accuser


def row_of(cell: Cell) -> tuple[Spec, ...] | None:
    """Return the attack whose first verdict needs a cell: () if all do, None if none does.

    A mark's verdicts need an innocent of every recipe, and each stranger as it is; a fingerprint's
    those that went through the attack alike. More seeds of a twin and other keys sharpen them, and
    a claim that is made up is another question.
    """
    if cell.accuser is not None or cell.base == "other key":
        return None
    if cell.base == "released":
        return cell.attack
    if cell.lineage == "owner":
        return () if cell.attack_seed in (0, cell.method_seed) else None
    return cell.attack[1:]  # the first step makes the stranger, or leaves another model as it is


def firsts(cells: Iterable[Cell]) -> frozenset[Claim]:
    """Return the claims that are answered first: every method's on a model, with its first seed."""
    found: dict[tuple[str, str], Claim] = {}
    for cell in cells:
        if cell.accuser is None:
            found.setdefault((cell.owner.text, cell.method.text), claim_of(cell))
    return frozenset(found.values())


def in_turn(
    plan: Plan, questions: Collection[Question], left: Container[str], work: Callable[[str], float]
) -> tuple[str, ...]:
    """List the stages that are `left` in the order in which they are best made, parents first.

    A user wants some verdicts soon and all of them no later for it. So first comes, method by
    method, what its first verdicts need, the cheapest attacks first (`row_of`); then all the rest,
    claim by claim, the dearest first: what takes long must not be begun last. What is one to a
    verdict is made the dearest first likewise. `work` says what a stage costs, in any unit.
    """
    ahead = _Ahead(plan, left, work)
    first = firsts(question.cell for question in questions)
    claims: dict[Claim, int] = {}
    dearest: dict[Claim, float] = {}
    for question in questions:
        claim = claim_of(question.cell)
        claims.setdefault(claim, len(claims))
        dearest[claim] = max(dearest.get(claim, 0.0), ahead.longest(question))

    def place(question: Question) -> tuple[float, ...]:
        cell = question.cell
        claim, row = claim_of(cell), row_of(cell)
        cost = ahead.longest(question)
        if row is None or claim not in first:
            return 1, -dearest[claim], claims[claim], -cost
        return 0, claims[claim], ahead.chain(question.suspect) if row else 0.0, -cost

    found: dict[str, None] = {}
    for question in sorted((q for q in questions if not q.skip), key=place):
        made, read = _apart(question)
        for key in made:
            found.update(dict.fromkeys(ahead.lineage(key)))
        found.update((key, None) for key in read if key in left)
    return tuple(found)


def _apart(question: Question) -> tuple[list[str], list[str]]:
    """Return the stages that make what is read, and those that read it and follow from them."""
    made = question.owner, question.protect, question.suspect, question.align
    read = question.extract, question.utility, question.fidelity, question.hardness
    return list(filter(None, made)), list(filter(None, read))


class _Ahead:
    """What is left to be made before a stage has been, and what that costs."""

    def __init__(self, plan: Plan, left: Container[str], work: Callable[[str], float]) -> None:
        self._plan, self._left, self._work = plan, left, work
        # Of what is made there is little, beside the millions of readings of a large plan.
        self.lineage, self._cost = functools.cache(self._lineage), functools.cache(self._whole)
        self.chain = functools.cache(self._chain)

    def _lineage(self, key: str) -> tuple[str, ...]:
        """List a stage and all that it follows from, as far as they are left, parents first."""
        above = (one for parent in self._plan.stages[key].parents for one in self.lineage(parent))
        return *dict.fromkeys(above), *([key] if key in self._left else [])

    def longest(self, question: Question) -> float:
        """Return what the dearer costs of the two that a reading waits for: secret and suspect."""
        if question.skip:
            return 0.0
        return max(self._cost(question.protect), self._cost(question.suspect))

    def _whole(self, key: str) -> float:
        return sum(map(self._work, self.lineage(key)))

    def _chain(self, suspect: str) -> float:
        """Return what it costs to attack a model, once that is there."""
        made = (key for key in self.lineage(suspect) if self._plan.stages[key].kind == "attack")
        return sum(map(self._work, made))


def spare_copies(plan: Plan, left: Container[str]) -> Iterator[str]:
    """Yield the attacked copies, and their alignments, that no stage `left` makes or loads.

    Owners, marks and keys are never spare: they are few, and any later suite starts from them.
    """
    needed = {one for key in plan.stages if key in left for one in _keeps(plan, key)}
    yield from (k for k, s in plan.stages.items() if s.kind in COPIES and k not in needed)


def at_once(plan: Plan, sizes: Mapping[str, float | None]) -> float | None:
    """Return the most that lies on disk when stages are made in turn and spare copies dropped."""
    if None in sizes.values():
        return None
    needed = Counter[str](one for key in sizes for one in _keeps(plan, key))
    there, most = 0.0, 0.0
    for key, size in sizes.items():
        there += size or 0.0
        most = max(most, there)
        for one in _keeps(plan, key):
            needed[one] -= 1
            if not needed[one] and plan.stages[one].kind in COPIES:
                there -= sizes.get(one) or 0.0
    return most


def _keeps(plan: Plan, key: str) -> Iterator[str]:
    """Yield what must stay until a stage is made: itself, and all that it loads."""
    yield key
    for parent in plan.stages[key].parents:
        yield parent
        while _is_loaded_from_its_parent(plan.stages[parent]):
            parent = plan.stages[parent].parents[0]
            yield parent


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
    if not made:
        return {}
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


def began(stage: Stage, known: Mapping[str, Stage]) -> str:
    """Return the key of the stage that a line of descent began with, of a whole plan."""
    key = None
    while stage.parents:
        key = stage.parents[stage.kind == "extract"]
        stage = known[key]
    return stage.key if key is None else key


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
