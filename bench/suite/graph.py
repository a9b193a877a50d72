"""The nouns of a plan: stages, each named by its recipe, and the questions they answer."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.data.manifest import Manifest, split
from bench.records.nouns import (
    SCHEMA,
    Cell,
    Change,
    Json,
    Readout,
    Spec,
    StepFacts,
    UserError,
    canonical,
    digest_of,
)
from bench.registry import ATTACKS
from bench.suite.grid import Suite
from bench.suite.innocents import Recipe
from bench.suite.owners import OwnerSettings
from bench.types import CountsImages, CountsQueries, IsAdaptive, IsExact, SaysChange

Kind = Literal[
    "owner",
    "classifier",
    "cohort",
    "protect",
    "attack",
    "align",
    "extract",
    "utility",
    "fidelity",
    "hardness",
    "accuse",
]

STRANGER = "control.stranger"
"""The control the plan makes innocents with."""

READ_WITH: Mapping[Readout, str] = {
    "graft": "owner's head grafted",
    "relinear": "linear head fitted anew",
    "native": "suspect's own head",
}
"""How tables say by what head labels were obtained."""


MOST = 5_000_000
"""Cells of a suite. Every key is held against all others, so N seeds ask for N * N and more."""


class TooMany(UserError):
    """A suite asks for more `cells` than shall be laid out."""

    def __init__(self, suite: Suite, cells: int, most: int) -> None:
        allowed = MOST if cells > MOST else most
        super().__init__(
            f"suite {suite.name}: expected at most {allowed:,} cells, it asks for {cells:,}; ask "
            "for fewer seeds, attacks, methods or innocents, or make several suites of it"
        )
        self.cells = cells


@dataclass(frozen=True, slots=True)
class Stage:
    """One reusable piece of work. `recipe` holds all that decides its result, and nothing else.

    `beside` holds what its plug-in wants to know beside that: how suspects will be read.
    """

    kind: Kind
    recipe: Mapping[str, Json]
    parents: tuple[str, ...] = ()
    beside: Mapping[str, Json] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Json]:
        """Return all settings of the plug-in that carries it out."""
        spec = self.recipe.get("method") or self.recipe["step"]
        return {**spec["args"], **self.beside}

    @property
    def key(self) -> str:
        """Name the stage, and what it makes, by the digest of its recipe."""
        return stage_key(self.kind, canonical(dict(self.recipe)), self.parents)


def stage_key(kind: Kind, recipe: str, parents: tuple[str, ...]) -> str:
    """Name a stage, given the canonical text of its recipe: millions of stages share one."""
    above = ",".join([f'"{parent}"' for parent in parents])
    return digest_of(f'[{SCHEMA},"{kind}",{recipe},[{above}]]')


@dataclass(frozen=True, slots=True)
class Question:
    """A cell and the stages that answer it; `skip` says why it is not asked at all.

    Where a suspect is aligned before it is read, extraction follows from `align`. `protect` makes
    the secret: of an accuser's claim it is the stage that forges it.
    """

    cell: Cell
    access: str
    marks: bool
    owner: str
    protect: str
    suspect: str
    extract: str
    utility: str
    fidelity: str | None = None
    skip: str = ""
    align: str | None = None
    hardness: str | None = None  # beside the question, and no part of its key

    @property
    def key(self) -> str:
        """Name the question by the cell and every stage: other data or weights, another key."""
        made = f'"{self.extract}","{self.utility}",{_quoted(self.fidelity)}'
        skip = canonical(self.skip) if self.skip else '""'
        return digest_of(f'[{SCHEMA},"cell",{_named(self.cell)},[{made}],{skip}]')

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the keys of the stages whose results the record holds."""
        made = self.owner, self.protect, self.suspect, self.align
        wanted = (*made, self.extract, self.utility, self.fidelity, self.hardness)
        return tuple(key for key in wanted if key) if not self.skip else ()


def _quoted(key: str | None) -> str:
    return "null" if key is None else f'"{key}"'


def _named(cell: Cell) -> str:
    """Return the canonical text of what a cell says, made of texts that millions of them share."""
    steps = ",".join([step.text for step in cell.attack])
    said: dict[str, str | int | None] = {
        "accused": cell.accused,
        "accuser": None if cell.accuser is None else cell.accuser.text,
        "attack": f"[{steps}]",
        "attack_seed": cell.attack_seed,
        "base": f'"{cell.base}"',
        "lineage": f'"{cell.lineage}"',
        "method": cell.method.text,
        "method_seed": cell.method_seed,
        "other_model": None if cell.other_model is None else cell.other_model.text,
        "other_seed": cell.other_seed,
        "owner": cell.owner.text,
    }
    told = [f'"{name}":{text}' for name, text in said.items() if text is not None]
    return f"{{{','.join(told)}}}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Every question of a suite, and the stages by key, parents before children."""

    suite: Suite
    stages: Mapping[str, Stage]
    questions: tuple[Question, ...]
    manifests: Mapping[str, Manifest]
    owners: Mapping[str, OwnerSettings]  # by the key of their stage, innocent models with them
    recipe: Recipe  # of the strangers
    warnings: tuple[str, ...]

    def lineage(self, keys: Iterable[str]) -> set[str]:
        """Return these stages and all they follow from."""
        found, left = set[str](), list(keys)
        while left:
            key = left.pop()
            if key not in found:
                found.add(key)
                left += self.stages[key].parents
        return found

    def manifest(self, key: str) -> Manifest:
        """Return the data set whose digest a recipe names."""
        return next(m for m in self.manifests.values() if m.digest == key)


def steps(plan: Plan) -> tuple[tuple[Spec, StepFacts], ...]:
    """Say of every step of an attack what a report must know, and cannot ask of its plug-in."""
    pool = functools.cache(lambda key: len(split(plan.manifest(key)).thief_images))
    found: dict[str, tuple[Spec, StepFacts]] = {}
    for stage in plan.stages.values():
        if stage.kind != "attack":
            continue
        spec = Spec(**stage.recipe["step"])
        if ATTACKS.get(spec.name).derived:  # a stranger is no attack
            made = _facts(spec, stage.recipe["data"], pool(stage.recipe["data"]))
            _, held = found.get(spec.text, (spec, made))
            # Of parts with probes of their own the larger pool counts: a price is never too low.
            found[spec.text] = spec, max(held, made, key=lambda facts: facts.images or 0)
    return tuple(found.values())


def _facts(step: Spec, data: str, images: int) -> StepFacts:
    attack = ATTACKS.build(step.name, step.args)
    exact = isinstance(attack, IsExact) and attack.exact
    told: Change = "exact" if exact else "other"
    return StepFacts(
        change=attack.change if isinstance(attack, SaysChange) else told,
        exact=exact,
        adaptive=attack.adaptive if isinstance(attack, IsAdaptive) else "",
        images=attack.looks_at(images) if isinstance(attack, CountsImages) else images,
        data=data,
        queries=attack.victim_queries(images) if isinstance(attack, CountsQueries) else None,
    )
