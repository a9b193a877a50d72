"""Lay out a suite as a graph of stages, each named by its recipe and made at most once.

The plan makes the innocents: for every attacked copy of a marked model its twin, the same attack
with the same seed on the unmarked owner; and the strangers, plain and attacked alike.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench import manifest
from bench.files import file_digest
from bench.manifest import Manifest
from bench.recipe import RECIPE, Recipe, recipe_digest
from bench.registry import ATTACKS, METHODS
from bench.store import Artefact, Store
from bench.suite import OwnerSettings, Suite
from bench.types import SCHEMA, Access, Cell, Json, Spec, UserError, digest

Kind = Literal["owner", "cohort", "protect", "attack", "extract", "utility", "fidelity"]

UNTOUCHED = "control.identity"
"""The control that stands for "nothing was done": the plan prices a mark on it."""

STRANGER = "control.stranger"
"""The control the plan makes innocents with."""

COHORT = 10
"""Strangers trained in one batched run; the i-th belongs to cohort i // 10 whatever is asked."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One reusable piece of work. `recipe` holds all that decides its result, and nothing else."""

    kind: Kind
    recipe: Mapping[str, Json]
    parents: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name the stage, and what it makes, by the digest of its recipe."""
        return digest(SCHEMA, self.kind, dict(self.recipe), list(self.parents))


@dataclass(frozen=True, slots=True)
class Question:
    """A cell and the stages that answer it; `skip` says why it is not asked at all."""

    cell: Cell
    access: Access
    marks: bool
    owner: str
    protect: str
    suspect: str
    extract: str
    utility: str
    fidelity: str | None = None
    skip: str = ""

    @property
    def key(self) -> str:
        """Name the question by the cell and every stage: other data or weights, another key."""
        stages = [self.extract, self.utility, self.fidelity]
        return digest(SCHEMA, "cell", dataclasses.asdict(self.cell), stages, self.skip)

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the keys of the stages whose results the record holds."""
        wanted = (self.protect, self.suspect, self.extract, self.utility, self.fidelity)
        return tuple(key for key in wanted if key) if not self.skip else ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Every question of a suite, and the stages by key, parents before children."""

    suite: Suite
    stages: Mapping[str, Stage]
    questions: tuple[Question, ...]
    manifests: Mapping[str, Manifest]
    owners: Mapping[str, OwnerSettings]  # by the key of their stage
    recipe: Recipe  # of the strangers
    warnings: tuple[str, ...]

    def manifest(self, key: str) -> Manifest:
        """Return the data set whose digest a recipe names."""
        return next(m for m in self.manifests.values() if m.digest == key)


def make(suite: Suite, data_dir: Path | None) -> Plan:
    """Resolve weights and data to their digests and lay out the stages.

    Raises:
        UserError: a weights file or a data folder is missing.

    """
    manifests = {n: manifest.read(n, s, data_dir) for n, s in suite.data.items()}
    builder = _Builder(suite, manifests)
    for owner in suite.owners:
        builder.add_owner(owner, weights_identity(owner, data_dir))
    warnings = (*suite.warnings, *builder.warnings, *_shared(manifests))
    return Plan(
        suite,
        builder.stages,
        tuple(builder.questions.values()),
        manifests,
        builder.owners,
        builder.recipe,
        warnings,
    )


def _shared(manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """Warn of images that one data set gives the owner and another gives the thief."""
    for (ours, one), (theirs, other) in itertools.permutations(manifests.items(), 2):
        if {i.source for i in one.items}.isdisjoint(i.source for i in other.items):
            continue
        mine, yours = manifest.split(one), manifest.split(other)
        owner = {one.items[i].source for i in mine.owner_images + mine.owner_held_out}
        thief = {other.items[i].source for i in yours.thief_images + yours.thief_held_out}
        if both := len(owner & thief):
            yield (
                f"data {ours} gives the owner {both} images that data {theirs} gives the thief: "
                "the two share what they must not"
            )


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
            if not there:
                for parent in plan.stages[key].parents:
                    want(parent, True)
        return wanted[key]

    for question in questions:
        for key in question.stages:
            want(key, False)
    return tuple(key for key in plan.stages if wanted.get(key))


def weights_identity(owner: OwnerSettings, data_dir: Path | None) -> str:
    """Name an owner's weights by content: a file by its bytes, a draw by its seed.

    Weights from a hub are named "hub": their digest is recorded when they are first loaded, and the
    loaded copy is kept, so later runs need no network.
    """
    if owner.library == "embedded" and owner.weights == "hub":
        return file_digest(Path(__file__).parent / "weights" / f"{owner.name}.safetensors")[:16]
    if owner.from_file:
        return file_digest(weights_file(owner, data_dir))[:16]
    return f"random {owner.seed}" if owner.weights == "random" else "hub"


def weights_file(owner: OwnerSettings, data_dir: Path | None) -> Path:
    """Find the file an owner's weights lie in."""
    path = Path(owner.weights).expanduser()
    found = path if data_dir is None else data_dir / path
    if not found.is_file():
        raise UserError(
            f"owner '{owner.name}': expected weights at {found}, found no such file; "
            "--data DIR or BENCH_DATA sets where relative paths start"
        )
    return found


class _Builder:
    """Grow the graph owner by owner; equal recipes meet in one stage."""

    def __init__(self, suite: Suite, manifests: Mapping[str, Manifest]) -> None:
        self.suite, self.manifests = suite, manifests
        self.stages: dict[str, Stage] = {}
        self.questions: dict[str, Question] = {}
        self.owners: dict[str, OwnerSettings] = {}
        self.warnings: list[str] = []
        self.recipe = dataclasses.replace(RECIPE, steps=suite.innocents.pretraining_steps)

    def add_owner(self, owner: OwnerSettings, weights: str) -> None:
        spec = Spec(owner.name, {**owner.spec().args, "digest": weights})
        key = self._add("owner", {"owner": spec.json()})
        self.owners[key] = owner
        strangers = self._strangers(owner)
        for method in self.suite.methods:
            for seed in self.suite.seeds:
                for cell in self._cells(spec, method, seed, strangers):
                    self._ask(cell, key)

    def _strangers(self, owner: OwnerSettings) -> int:
        asked = self.suite.innocents.strangers
        if owner.library == "embedded":
            self._check_shares(owner)
        if owner.library == "embedded" or not asked:
            return asked
        self.warnings.append(
            f"{owner.name}: strangers: n = 0, nobody trained models of this shape independently "
            "here; verdicts against strangers stay undecided"
        )
        return 0

    def _check_shares(self, owner: OwnerSettings) -> None:
        """Warn where the suite would test on images the embedded models were trained on."""
        for name, data in self.suite.data.items():
            for settings in (RECIPE.digits, RECIPE.photos):
                apart = (data.owner_share, data.held_out) != (
                    settings.owner_share,
                    settings.held_out,
                )
                if data.loader in (settings.loader, "digit-scenes") and apart:
                    self.warnings.append(
                        f"data {name}: {owner.name} was trained on other shares of these images "
                        f"(owner_share {settings.owner_share}, held_out {settings.held_out}): "
                        "what this suite holds out it may have seen"
                    )

    def _cells(self, owner: Spec, method: Spec, seed: int, strangers: int) -> Iterator[Cell]:
        """Yield the cells of one claim: per attack the marked copy, its twins and strangers."""
        marks = METHODS.get(method.name).marks
        innocents = self.suite.innocents
        for chain in self.suite.attacks:
            random = any(ATTACKS.get(step.name).random for step in chain)
            own = seed if random else 0
            ask = functools.partial(Cell, owner, method, seed)
            if not _derived(chain):
                yield ask("owner", chain, own, "stranger")
                continue
            yield ask("released", chain, own, "released")
            seeds = sorted({*range(innocents.twin_seeds), own}) if random else [0]
            if marks:
                yield from (ask("owner", chain, one, "owner") for one in seeds)
            untouched = all(step.name == UNTOUCHED for step in chain)
            count = strangers if untouched else min(innocents.attacked_strangers, strangers)
            if any(getattr(ATTACKS.get(step.name), "uses_base", False) for step in chain):
                count = 0  # mixed with the owner's base, a stranger is none
            for i in range(count):
                start = ATTACKS.spec(STRANGER, {"index": i})
                steps = (start,) if untouched else (start, *chain)
                yield ask("owner", steps, own, "stranger")

    def _ask(self, cell: Cell, owner: str) -> None:
        method = METHODS.get(cell.method.name)
        owner_data = self.manifests[self.suite.owner_images].digest
        recipe = {"method": cell.method.json(), "seed": cell.method_seed, "data": owner_data}
        offered = functools.reduce(
            operator.and_, (ATTACKS.get(step.name).offers for step in cell.attack)
        )
        skip = ""
        if method.needs not in offered:
            skip = f"needs {method.needs.text}, the suspect offers {offered.text or 'nothing'}"
            empty = Question(cell, method.needs, method.marks, owner, "", "", "", "", None, skip)
            self.questions.setdefault(empty.key, empty)
            return
        protect = self._add("protect", recipe, (owner,))
        start = protect if cell.base == "released" and method.marks else owner
        suspect, data = self._attacked(cell, owner, start)
        extract = self._add("extract", {}, (protect, suspect, owner))
        probe = self.manifests[self.suite.probe].digest
        tests = {"own": data, "owner": owner_data, "probe": probe}
        utility = self._add("utility", tests, (suspect,))
        fidelity = None
        if method.marks and cell.lineage == "released" and _untouched(cell.attack):
            tests = {"owner": owner_data, "probe": probe}
            fidelity = self._add("fidelity", tests, (owner, protect))
        question = Question(
            cell, method.needs, method.marks, owner, protect, suspect, extract, utility, fidelity
        )
        self.questions.setdefault(question.key, question)

    def _attacked(self, cell: Cell, owner: str, key: str) -> tuple[str, str | None]:
        """Add the steps of a chain; return the suspect's key and the data last trained on."""
        data = None
        for position, step in enumerate(cell.attack):
            attack = ATTACKS.get(step.name)
            parents: tuple[str, ...] = (key,)
            if not attack.derived and self.owners[owner].library == "embedded":
                # It owes the victim nothing, so the victim is not in its key.
                parents = (self._cohort(int(step.args.get("index", 0))),)
            if getattr(attack, "uses_base", False):
                parents = (*parents, owner)
            named = step.args.get("data")
            used = self.manifests[named or self.suite.probe].digest
            if named and Access.LABELS not in attack.offers:
                data = used  # a head of a label space of its own: this is now the suspect's task
            key = self._add(
                "attack",
                {
                    "step": step.json(),
                    "position": position,
                    "seed": cell.attack_seed if attack.random else None,
                    "data": used,
                },
                parents,
            )
        return key, data

    def _cohort(self, index: int) -> str:
        recipe = {"pretraining": _recipe_digest(self.recipe), "cohort": index // COHORT}
        return self._add("cohort", {**recipe, "size": COHORT})

    def _add(self, kind: Kind, recipe: Mapping[str, Json], parents: tuple[str, ...] = ()) -> str:
        stage = Stage(kind, recipe, parents)
        self.stages.setdefault(stage.key, stage)
        return stage.key


_recipe_digest = functools.cache(recipe_digest)


def _derived(chain: Iterable[Spec]) -> bool:
    return all(ATTACKS.get(step.name).derived for step in chain)


def _untouched(chain: Iterable[Spec]) -> bool:
    return all(step.name == UNTOUCHED for step in chain)


def departures(suite: Suite) -> tuple[str, ...]:
    """List the numbers in which plug-ins of a suite differ from their defaults, the papers' own.

    Words choose a variant, so the defaults compared with are those under the same words.
    """
    steps = [(ATTACKS, step) for chain in suite.attacks for step in chain]
    lines: dict[str, None] = {}
    for registry, spec in [*((METHODS, m) for m in suite.methods), *steps]:
        words = {k: v for k, v in spec.args.items() if isinstance(v, str)}
        usual = registry.spec(spec.name, words).args  # type: ignore[attr-defined]
        changed = [
            f"{name} {value:g} (default {usual[name]:g})"
            for name, value in spec.args.items()
            if type(value) in (int, float) and type(usual[name]) in (int, float)
            if value != usual[name]
        ]
        if changed:
            label = " ".join(
                [spec.name, *(words[k] for k in ("variant", "schedule") if k in words)]
            )
            lines[f"{label}: {', '.join(changed)}"] = None
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the missing stages of one kind would cost, going by stages of that kind in the store."""

    kind: Kind
    stages: int
    there: int
    seconds: float | None  # None: nothing like it was ever timed here
    megabytes: float | None


def forecast(plan: Plan, store: Store, todo: Iterable[str]) -> tuple[Forecast, ...]:
    """Predict time and disk of the stages in `todo`, kind by kind, from earlier timings."""
    past: dict[str, list[Artefact]] = {}
    for artefact in store:
        past.setdefault(_likeness(artefact.kind, artefact.recipe), []).append(artefact)
    left = set(todo)
    rows = []
    for kind in dict.fromkeys(stage.kind for stage in plan.stages.values()):
        stages = {k: s for k, s in plan.stages.items() if s.kind == kind}
        ahead = [s for k, s in stages.items() if k in left]
        guesses = [_guess(past.get(_likeness(s.kind, s.recipe), [])) for s in ahead]
        known = [g for g in guesses if g is not None]
        complete = len(known) == len(guesses)
        rows.append(
            Forecast(
                kind,
                len(ahead),
                len(stages) - len(ahead),
                sum(seconds for seconds, _ in known) if complete else None,
                sum(size for _, size in known) / 1e6 if complete else None,
            )
        )
    return tuple(rows)


def _likeness(kind: str, recipe: Mapping[str, Json]) -> str:
    """Group stages that should cost alike: same kind, same plug-in and settings, any seed."""
    return digest(kind, recipe.get("method") or recipe.get("step"))


def _guess(alike: list[Artefact]) -> tuple[float, float] | None:
    if not alike:
        return None
    seconds = sorted(float(a.payload["cost"]["seconds"]) for a in alike)
    sizes = sorted(a.bytes for a in alike)
    return seconds[len(seconds) // 2], sizes[len(sizes) // 2]
