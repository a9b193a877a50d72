"""The grid a suite asks for: every owner by every method by every attack by every seed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from bench.data.settings import DataSettings
from bench.records.nouns import ALIGN, Align, Json, Spec
from bench.records.settings import Count, OpenShare, Positive, SettingError, settings, suggestion
from bench.registry import ACCUSERS, ATTACKS, METHODS, has_exact_null, unhelped
from bench.suite.innocents import (
    RECIPE,
    Chain,
    InnocentSettings,
    descends,
    named_spec,
    random,
    untouched,
)
from bench.suite.owners import Owner, mapping_of
from bench.verdicts.verdict import innocents_needed

SuiteName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=60)]
"""The name of a suite, of its folder too: letters of four bytes still fit into a file's name."""


def _named_loaders(value: Json) -> Json:
    return {
        name: {"loader": name, **entry} if isinstance(entry, Mapping) else entry
        for name, entry in mapping_of(value, "digits: {}").items()
    }


def _no_parts(value: Json) -> tuple[Suite, ...]:
    assert not value, "a suite of parts is loaded part by part"
    return ()


def _several(value: Json) -> tuple[Json, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _readings(value: Json) -> tuple[Spec, ...]:
    """Read one entry: a method once for each of the ways in which it says suspects are aligned."""
    entry = mapping_of(value, "name: ...")
    listed = entry.get(ALIGN, "none")
    if listed == []:
        raise SettingError(f"{ALIGN}: expected at least 1, got none", (ALIGN,))
    return tuple(named_spec(METHODS, {**entry, ALIGN: one}) for one in _several(listed))


def _flat(entries: tuple[tuple[Spec, ...], ...]) -> tuple[Spec, ...]:
    return tuple(itertools.chain.from_iterable(entries))


Method = Annotated[Spec, PlainValidator(_readings)]

Methods = Annotated[tuple[Method, ...], Field(min_length=1), AfterValidator(_flat)]
"""An entry may be several methods: read raw, and aligned."""

Forger = Annotated[Spec, PlainValidator(lambda value: named_spec(ACCUSERS, value))]

Aligns = Annotated[tuple[Align, ...], Field(min_length=1), BeforeValidator(_several)]

Data = Annotated[DataSettings, PlainValidator(functools.partial(settings, DataSettings))]

Innocents = Annotated[
    InnocentSettings, PlainValidator(functools.partial(settings, InnocentSettings))
]

NotEmpty = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Suite:
    """A grid: every owner by every method by every attack chain by every seed.

    `owner_images` and `probe` name data sets: what the owner marks and reads with, and the labelled
    images on which models without a head of their own are probed. `hardness` also measures how
    alike every suspect and the owner are. `reductions` says, for reading, what this suite does more
    cheaply than the paper; `align` is for every method that it can help and that says nothing of it
    itself. Of the models that owe the owner nothing every one of the `accusers` accuses the first
    `accused`; the owner's clean model is his own. A suite of `parts` asks what they ask, each its
    own grid; its other fields then hold what those of the parts come to.
    """

    name: SuiteName
    owners: Annotated[tuple[Owner, ...], NotEmpty]
    methods: Methods
    attacks: Annotated[tuple[Chain, ...], NotEmpty]
    data: Annotated[Mapping[str, Data], NotEmpty, BeforeValidator(_named_loaders)]
    owner_images: str
    probe: str
    title: str = ""
    seeds: Annotated[tuple[Count, ...], NotEmpty] = (0,)
    innocents: Innocents = field(default_factory=InnocentSettings)
    alpha: OpenShare = 0.05
    hardness: bool = False
    reductions: tuple[str, ...] = ()
    align: Aligns = ("none",)
    accusers: tuple[Forger, ...] = ()
    accused: Positive = 3
    parts: Annotated[tuple[Suite, ...], PlainValidator(_no_parts)] = ()

    def __post_init__(self) -> None:
        self._require("owner_images", self.owner_images, ("owner_images",))
        self._require("probe", self.probe, ("probe",))
        for i, owner in enumerate(self.owners):
            if owner.classifier is not None:
                self._require_labels(owner.classifier.data, ("owners", i, "classifier", "data"))
        self._require_data(self.attacks, ("attacks",))
        self._require_data(self.innocents.descendants, ("innocents", "descendants"))
        for i, chain in enumerate(self.innocents.descendants):
            for step in chain:
                if not ATTACKS.get(step.name).derived:
                    message = f"expected attacks on the owner's model, got the control {step.name}"
                    raise SettingError(f"descendants: {message}", ("innocents", "descendants", i))

    def _require_data(self, chains: tuple[Chain, ...], where: tuple[str, ...]) -> None:
        for i, chain in enumerate(chains):
            for j, step in enumerate(chain):
                if name := step.args.get("data"):
                    self._require(f"attack '{step.name}': data", name, (*where, i, j, "data"))

    def _require(self, reader: str, name: str, where: tuple[str | int, ...]) -> None:
        if name not in self.data:
            message = f"{reader}: no data set '{name}'{suggestion(name, self.data)}"
            raise SettingError(message, where)

    def _require_labels(self, name: str, where: tuple[str | int, ...]) -> None:
        self._require("classifier: data", name, where)
        data = self.data[name]
        if not data.labelled:  # a folder's labels are not known so early
            found = f"'{name}' (loader '{data.loader}')"
            raise SettingError(f"classifier: data: expected labelled images, got {found}", where)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say, in sentences, what this suite cannot decide however it turns out."""
        if self.parts:
            return tuple(f"{part.name}: {said}" for part in self.parts for said in part.warnings)
        found = []
        needed, asked = innocents_needed(self.alpha), self.innocents.independent
        ranked = [m.name for m in self.methods if not has_exact_null(METHODS.get(m.name))]
        if ranked and asked < needed:
            found.append(
                f"alpha = {self.alpha:g} needs {needed} strangers, the suite asks for {asked}: "
                "verdicts will be undecided"
            )
        found += self._short(needed, ranked)
        steps = self.innocents.pretraining_steps
        if asked and steps != RECIPE.steps:
            found.append(
                f"strangers are trained for {steps} steps, the embedded owner for {RECIPE.steps}: "
                "they are weaker models than the owner's peers would be"
            )
        return tuple(found)

    def _short(self, needed: int, ranked: Sequence[str]) -> Iterator[str]:
        """Say after which attacks the innocents asked for are too few to decide anything.

        `ranked` are the methods whose verdicts rank a suspect among innocents.
        """
        innocents, marks = self.innocents, {METHODS.get(name).marks for name in ranked}
        tried = [chain for chain in self.attacks if descends(chain) and not untouched(chain)]
        attacked = min(innocents.attacked_strangers, innocents.strangers + len(innocents.models))
        if False in marks and tried and attacked < needed:
            yield (
                f"alpha = {self.alpha:g} needs {needed} strangers that went through an attack, the "
                f"suite asks for {attacked}: fingerprints will be undecided after any"
            )
        others = [chain for chain in innocents.descendants if not untouched(chain)]
        recipes = {tuple(step.text for step in chain) for chain in (*tried, *others)}
        enough = innocents.twin_seeds >= needed
        alone = [chain for chain in self.attacks if descends(chain) and not random(chain)]
        if True in marks and len(recipes) + 1 < needed and (alone or not enough):
            but = (
                f", but after random attacks, of {innocents.twin_seeds} twins each"
                if enough
                else ""
            )
            yield (
                f"alpha = {self.alpha:g} needs {needed} recipes of descendants, the suite has "
                f"{len(recipes) + 1} with the clean owner (`innocents: descendants` adds some): "
                f"marks will be undecided{but}"
            )


def with_align(suite: Mapping[str, Json]) -> Mapping[str, Json]:
    """Have every method that says nothing of `align`, and can be helped, do as its suite says."""
    entries = suite.get("methods")
    if ALIGN not in suite or not isinstance(entries, list):
        return suite
    return {**suite, "methods": [_said(entry, suite[ALIGN]) for entry in entries]}


def _said(entry: Json, align: Json) -> Json:
    """Add a suite's `align` to an entry, unless it has one or is wrong, which is told later."""
    try:
        given = mapping_of(entry, "name: ...")
        spec = named_spec(METHODS, {k: v for k, v in given.items() if k != ALIGN})
    except SettingError:
        return entry
    helped = not unhelped(METHODS.get(spec.name), spec.args)
    return {ALIGN: align, **given} if helped else entry


@dataclass(frozen=True, slots=True)
class Composed:
    """What a suite of parts says of itself; everything else is theirs."""

    name: SuiteName
    parts: Annotated[tuple[str, ...], NotEmpty]
    title: str = ""
    reductions: tuple[str, ...] = ()


def departures(suite: Suite) -> tuple[str, ...]:
    """List the numbers in which plug-ins of a suite differ from their defaults, the papers' own.

    Words choose a variant, so the defaults compared with are those under the same words.
    """
    steps = [(ATTACKS, step) for chain in suite.attacks for step in chain]
    forgers = [(ACCUSERS, accuser) for accuser in suite.accusers]
    lines: dict[str, None] = {}
    for registry, spec in [*((METHODS, m) for m in suite.methods), *steps, *forgers]:
        words = {k: v for k, v in spec.args.items() if isinstance(v, str)}
        usual = registry.build(spec.name, words)  # type: ignore[attr-defined]
        changed = [
            f"{name} {value:g} (default {getattr(usual, name):g})"
            for name, value in spec.args.items()
            if type(value) in (int, float) and type(getattr(usual, name)) in (int, float)
            if value != getattr(usual, name)
        ]
        if changed:
            label = " ".join(
                [spec.name, *(words[k] for k in ("variant", "schedule") if k in words)]
            )
            lines[f"{label}: {', '.join(changed)}"] = None
    return tuple(lines)
