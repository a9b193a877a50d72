"""Say which suspects a claim is tried on: marked copies, their twins, and strangers of every kind.

This is where the innocents come from: for every attacked copy of a marked model its twin, the same
attack with the same seed on the unmarked owner; strangers, plain and attacked alike; copies marked
with another key; models that never met the owner.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from bench.models.libraries import EMBEDDED
from bench.records.nouns import UNTOUCHED, Cell, Json, Lineage, Shape, Spec
from bench.registry import ATTACKS, METHODS
from bench.suite.graph import STRANGER
from bench.suite.grid import Suite
from bench.types import UsesBase


@dataclass(frozen=True, slots=True)
class Peers:
    """An owner, and the models that can be set beside it.

    `strangers` counts those trained like it, `others` never met it. `public` is what its backbone
    was finetuned from, if it was.
    """

    owner: Spec
    strangers: int
    others: tuple[Spec, ...] = ()
    public: Spec | None = None


def cells(suite: Suite, peers: Peers, method: Spec, seed: int) -> Iterator[Cell]:
    """Yield the cells of one claim: per attack the marked copy, its twins and strangers."""
    marks = METHODS.get(method.name).marks
    innocents = suite.innocents
    for chain in suite.attacks:
        random = any(ATTACKS.get(step.name).random for step in chain)
        own = seed if random else 0
        ask = functools.partial(Cell, peers.owner, method, seed)
        if not derived(chain):
            yield ask("owner", chain, own, "stranger")
            continue
        yield ask("released", chain, own, "released")
        seeds = sorted({*range(innocents.twin_seeds), own}) if random else [0]
        if marks:
            yield from (ask("owner", chain, one, "owner") for one in seeds)
        plain = untouched(chain)
        count = peers.strangers
        if not plain:
            count = min(innocents.attacked_strangers, peers.strangers)
        if any(uses_base(step) for step in chain):
            count = 0  # mixed with the owner's base, a stranger is none
        for i in range(count):
            start = ATTACKS.spec(STRANGER, {"index": i})
            yield ask("owner", (start,) if plain else (start, *chain), own, "stranger")
    yield from _as_they_are(suite, peers, method, seed, marks)


def _as_they_are(
    suite: Suite, peers: Peers, method: Spec, seed: int, marks: bool
) -> Iterator[Cell]:
    """Yield the innocents nothing is done to: other keys' marks, other models, other shapes.

    The public model that an owner finetuned its own from is innocent of the mark as the clean
    owner is; to a fingerprint of the finetuned model it is a stranger.
    """
    innocents, owner = suite.innocents, peers.owner
    ask = functools.partial(Cell, owner, method, seed)
    as_it_is = (ATTACKS.spec(UNTOUCHED, {}),)
    # The suite's other seeds cost nothing: their marks are there.
    known = [other for other in suite.seeds if other != seed]
    seeds = itertools.chain(known, itertools.count(max(suite.seeds) + 1))
    for other in itertools.islice(seeds, innocents.other_keys if marks else 0):
        yield ask("other key", as_it_is, 0, "owner", other_seed=other)
    for model in peers.others:
        yield ask("other model", as_it_is, 0, "stranger", other_model=model)
    if peers.public is not None:
        lineage: Lineage = "owner" if marks else "stranger"
        yield ask("other model", as_it_is, 0, lineage, other_model=peers.public)
    embedded = owner.args["library"] == EMBEDDED
    others = [shape for shape in get_args(Shape) if shape != owner.name] if embedded else []
    for shape, i in itertools.product(others, range(innocents.other_shapes)):
        start = ATTACKS.spec(STRANGER, {"index": i, "shape": shape})
        yield ask("owner", (start,), 0, "stranger")


def strange_to(owner: Spec, models: Sequence[Spec]) -> tuple[Spec, ...]:
    """List the models that never met the owner: its own weights, at whatever size, did."""

    def weights(spec: Spec) -> Json:
        by_name = [spec.name, spec.args["library"], spec.args["pretrained"]]
        return by_name if spec.args["digest"] == "hub" else spec.args["digest"]

    return tuple(model for model in models if weights(model) != weights(owner))


def derived(chain: Iterable[Spec]) -> bool:
    """Say whether what a chain makes descends from the model it starts from."""
    return all(ATTACKS.get(step.name).derived for step in chain)


def untouched(chain: Iterable[Spec]) -> bool:
    """Say whether a chain does nothing."""
    return all(step.name == UNTOUCHED for step in chain)


def uses_base(step: Spec) -> bool:
    """Say whether an attack mixes in the public base."""
    attack = ATTACKS.get(step.name)
    return isinstance(attack, UsesBase) and attack.uses_base
