"""Say which suspects a claim is tried on: marked copies, their twins, and strangers of every kind.

This is where the innocents come from. For every attacked copy of a marked model its twin, the same
attack with the same seed on the unmarked owner; strangers, and for a fingerprint those attacked
alike; copies marked with another key, attacked alike; models that never met the owner.

A claim that an accuser made up is tried on whom he accuses, and on strangers to rank that among.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bench.data.manifest import Manifest
from bench.models.libraries import EMBEDDED, LIBRARIES
from bench.records.nouns import (
    ALIGNED,
    UNTOUCHED,
    Access,
    Cell,
    Json,
    Lineage,
    Readout,
    Shape,
    Spec,
)
from bench.registry import ACCUSERS, ATTACKS, METHODS
from bench.suite.graph import READ_WITH, STRANGER
from bench.suite.grid import Suite
from bench.suite.innocents import descends, random, untouched
from bench.types import SaysUnsuited, UsesBase, UsesCopies, UsesSurrogates
from bench.verdicts.verdict import innocents_needed


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
    marks, innocents = METHODS.get(method.name).marks, suite.innocents
    ask = functools.partial(Cell, peers.owner, method, seed)
    for chain in suite.attacks:
        own = seed if random(chain) else 0
        if not descends(chain):
            yield ask("owner", chain, own, "stranger")
            continue
        yield ask("released", chain, own, "released")
        seeds = sorted({*range(innocents.twin_seeds), own}) if random(chain) else [0]
        if marks:
            yield from (ask("owner", chain, one, "owner") for one in seeds)
        if untouched(chain):
            for i in range(peers.strangers):
                yield ask("owner", (_stranger(i),), 0, "stranger")
        elif not marks:
            yield from _attacked_strangers(suite, peers, chain, ask)
    if marks:
        yield from (ask("owner", chain, 0, "owner") for chain in innocents.descendants)
        yield from _other_keys(suite, seed, ask)
    yield from _as_they_are(suite, peers, marks, ask)


def _stranger(index: int, **args: Json) -> Spec:
    return ATTACKS.spec(STRANGER, {"index": index, **args})


def _attacked_strangers(
    suite: Suite, peers: Peers, chain: tuple[Spec, ...], ask: Callable[..., Cell]
) -> Iterator[Cell]:
    """Yield the strangers that went through an attack, for a fingerprint to be ranked among.

    Each is its own draw of everything, of the attack's randomness too: of one seed they would share
    its luck. The claim's seed has no part in it, so that one attacked stranger serves every claim.
    """
    if any(uses_base(step) for step in chain):
        return  # mixed with the owner's base, a stranger is none
    drawn, count = random(chain), suite.innocents.attacked_strangers
    for i in range(min(count, peers.strangers)):
        yield ask("owner", (_stranger(i), *chain), i if drawn else 0, "stranger")
    done = (ATTACKS.spec(UNTOUCHED, {}), *chain)
    for i, model in enumerate(peers.others[: max(0, count - peers.strangers)], peers.strangers):
        yield ask("other model", done, i if drawn else 0, "stranger", other_model=model)


def _other_keys(suite: Suite, seed: int, ask: Callable[..., Cell]) -> Iterator[Cell]:
    """Yield other keys' marks, untouched and attacked as their own copies are.

    Those of the suite's other seeds cost readings alone: the copies are there.
    """
    known = [other for other in suite.seeds if other != seed]
    seeds = itertools.chain(known, itertools.count(max(suite.seeds) + 1))
    tried = [chain for chain in suite.attacks if descends(chain) and not untouched(chain)]
    chains = [(ATTACKS.spec(UNTOUCHED, {}),), *tried]
    for other in itertools.islice(seeds, max(len(known), suite.innocents.other_keys)):
        for chain in chains:
            own = other if random(chain) else 0
            yield ask("other key", chain, own, "owner", other_seed=other)


def _as_they_are(
    suite: Suite, peers: Peers, marks: bool, ask: Callable[..., Cell]
) -> Iterator[Cell]:
    """Yield the innocents nothing is done to: other models, strangers of other shapes.

    The public model that an owner finetuned its own from is innocent of the mark as the clean
    owner is; to a fingerprint of the finetuned model it is a stranger.
    """
    owner, as_it_is = peers.owner, (ATTACKS.spec(UNTOUCHED, {}),)
    for model in peers.others:
        yield ask("other model", as_it_is, 0, "stranger", other_model=model)
    if peers.public is not None:
        lineage: Lineage = "owner" if marks else "stranger"
        yield ask("other model", as_it_is, 0, lineage, other_model=peers.public)
    embedded = owner.args["library"] == EMBEDDED
    others = [shape for shape in get_args(Shape) if shape != owner.name] if embedded else []
    for shape, i in itertools.product(others, range(suite.innocents.other_shapes)):
        yield ask("owner", (_stranger(i, shape=shape),), 0, "stranger")


def accusations(suite: Suite, peers: Peers, method: Spec, seed: int) -> Iterator[Cell]:
    """Yield the cells of all claims that accusers make up with one method.

    The owner's clean model is the accuser's own. A judge ranks among all strangers but the accused
    and the accuser's surrogates. Suspects are read as they are: what a claim would be aligned to is
    the accuser's word. With a method that an accuser can do nothing with there is one cell, which
    says so.
    """
    plain = METHODS.spec(method.name, method.unaligned.args)
    people = people_of(peers)
    for spec in suite.accusers:
        accuser = ACCUSERS.get(spec.name)
        judges = people[: max(0, len(people) - surrogates_of(spec))]
        ask = functools.partial(Cell, peers.owner, plain, seed, accuser=spec)
        if unsuited(spec, plain):
            yield ask("owner", (_stranger(0),), 0, "stranger")
            continue
        if accuser.accuses == "owner":
            as_it_is = (ATTACKS.spec(UNTOUCHED, {}),)
            yield ask("released", as_it_is, 0, "released")
            yield ask("accuser", as_it_is, 0, "released")
            yield ask("accuser", as_it_is, 0, "released", other_seed=seed)
        counted = range(min(suite.accused, len(judges))) if accuser.post_hoc else (None,)
        after = counted if accuser.accuses == "stranger" else (None,)
        for accused, (base, chain, other) in itertools.product(after, judges):
            yield ask(base, chain, 0, "stranger", other_model=other, accused=accused)


Person = tuple[Literal["owner", "other model"], tuple[Spec, ...], Spec | None]
"""A model that owes the owner nothing, as a cell names it: base, chain and other model."""


def people_of(peers: Peers) -> list[Person]:
    """List the models of the owner's shape, and others, that owe it nothing, in a fixed order."""
    as_it_is = (ATTACKS.spec(UNTOUCHED, {}),)
    trained: list[Person] = [("owner", (_stranger(i),), None) for i in range(peers.strangers)]
    return trained + [("other model", as_it_is, model) for model in peers.others]


def surrogates_of(spec: Spec) -> int:
    """Count the public models that an accuser has: the last of the people there are."""
    plugin = ACCUSERS.build(spec.name, spec.args)
    return plugin.surrogates if isinstance(plugin, UsesSurrogates) else 0


def unjudged(suite: Suite, owner: str, people: int) -> Iterator[str]:
    """Say of which accusers' claims too few strangers are left to judge by."""
    needed = innocents_needed(suite.alpha)
    for spec in suite.accusers:
        left = people - surrogates_of(spec) - 1
        if left < needed:
            yield (
                f"{owner}: {spec.name}: {max(left, 0)} strangers are left beside the accused and "
                f"surrogates, {needed} are needed at alpha = {suite.alpha:g}: nothing is decided"
            )


def unsuited(spec: Spec, method: Spec) -> str:
    """Say why an accuser can make up nothing with a method; empty if he can."""
    plugin = ACCUSERS.build(spec.name, spec.args)
    if not isinstance(plugin, SaysUnsuited):
        return ""
    return plugin.unsuited(METHODS.build(method.name, method.args))


def strange_to(owner: Spec, models: Sequence[Spec]) -> tuple[Spec, ...]:
    """List the models that never met the owner: its own weights, at whatever size, did."""

    def weights(spec: Spec) -> Json:
        by_name = [spec.name, spec.args["library"], spec.args["pretrained"]]
        return by_name if spec.args["digest"] == "hub" else spec.args["digest"]

    return tuple(model for model in models if weights(model) != weights(owner))


def copies(step: Spec) -> int:
    """Count the copies under other keys that an attack takes beside the victim."""
    wanted = isinstance(ATTACKS.get(step.name), UsesCopies)
    return int(step.args["copies"]) - 1 if wanted else 0


def colluders(suite: Suite, cell: Cell) -> Iterator[int]:
    """Yield the seeds of keys that are neither the claim's nor the suspect's, the suite's first."""
    seeds = itertools.chain(suite.seeds, itertools.count(max(suite.seeds) + 1))
    return (seed for seed in seeds if seed not in (cell.method_seed, cell.other_seed))


def uses_base(step: Spec) -> bool:
    """Say whether an attack mixes in the public base."""
    attack = ATTACKS.get(step.name)
    return isinstance(attack, UsesBase) and attack.uses_base


def asks_only(method: Spec) -> bool:
    """Say whether a method needs no more than answers in the owner's label space."""
    return METHODS.get(method.name).needs in Access.BLACK_BOX


def _readout(method: Spec) -> Readout | None:
    """Return how a method says that its answers are got; None leaves it to the suspect's head."""
    return method.args.get("readout") if asks_only(method) else None


def answered(method: Spec) -> dict[str, Json]:
    """Say whose head answers an accuser: the one that will answer the judge."""
    readout = _readout(method)
    return {} if readout is None else {"readout": readout}


def access(method: Spec) -> str:
    """Say in words what a method needs to see, by whose head it is answered, and in what basis."""
    readout = _readout(method)
    how = [*([READ_WITH[readout]] if readout else []), ALIGNED[method.align]]
    said = ", ".join(filter(None, how))
    return METHODS.get(method.name).needs.text + (f" ({said})" if said else "")


def apart(method: Spec) -> tuple[Json, dict[str, Json]]:
    """Name what makes the secret, and beside it the settings by which suspects are read later.

    Alignment is neither: it is a stage of its own.
    """
    reading, given = METHODS.reading(method.name), method.unaligned.args
    args = {name: value for name, value in given.items() if name not in reading}
    how = {name: value for name, value in given.items() if name in reading}
    return Spec(method.name, args, method.version).json(), how


def unobtainable(cell: Cell, images: Manifest) -> str:
    """Say why this suspect cannot be read at all; empty if it can."""
    needs, readout = METHODS.get(cell.method.name).needs, _readout(cell.method)
    named, classifier = cell.owner.args["library"], cell.owner.args.get("classifier")
    if asks_only(cell.method) and not classifier and LIBRARIES.get(named).classifies is None:
        return f"needs {needs.text}, {cell.owner.name} has no `classifier`"
    if not METHODS.get(cell.method.name).marks and any(map(copies, cell.attack)):
        return "needs copies under other keys, a fingerprint releases one model"
    if readout == "relinear" and not labelled(images):
        return f"relinear needs labelled images, {images.name} has none"
    offered = functools.reduce(
        operator.and_, (ATTACKS.get(step.name).offers for step in cell.attack)
    )
    # A head can be put on whatever gives features.
    wanted = Access.FEATURES if readout in ("graft", "relinear") else needs
    if Access.OWN_HEAD in needs:
        wanted = needs & Access.ENCODER  # in whatever classes, a suspect's own head answers
    who = f"{readout} needs" if readout else "needs"
    if wanted in offered and cell.method.align != "none":
        who, wanted = "align needs", Access.WEIGHTS  # it writes them in another basis
    if wanted in offered:
        return ""
    return f"{who} {wanted.text}, the suspect offers {offered.text or 'nothing'}"


def labelled(images: Manifest) -> bool:
    """Say whether images show two classes or more, each image one."""
    return len(images.classes) > 1 and not images.masked
