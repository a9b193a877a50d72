"""Lay out a suite as a graph of stages, each named by its recipe and made at most once.

The plan makes the innocents that `bench.suite.cells` lists.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.data import manifest
from bench.data.manifest import Manifest
from bench.data.settings import LOADERS
from bench.models.libraries import EMBEDDED, LIBRARIES
from bench.records.nouns import (
    ALIGN,
    ALIGN_VERSION,
    Access,
    Cell,
    Json,
    Shape,
    Spec,
    UserError,
    canonical,
    how_many,
    uncollected,
)
from bench.registry import ACCUSERS, ATTACKS, METHODS
from bench.suite.cells import (
    Peers,
    Person,
    access,
    accusations,
    answered,
    apart,
    asks_only,
    cells,
    colluders,
    copies,
    labelled,
    people_of,
    strange_to,
    surrogates_of,
    unjudged,
    unobtainable,
    unsuited,
    uses_base,
)
from bench.suite.graph import MOST, Kind, Plan, Question, Stage, TooMany, stage_key
from bench.suite.grid import Suite
from bench.suite.innocents import RECIPE, alike, families, kin, recipe_digest, untouched
from bench.suite.owners import ClassifierSettings, OwnerSettings, weights_identity
from bench.types import NeedsLabels
from bench.verdicts.verdict import innocents_needed

COHORT = 10
"""Strangers trained in one batched run; the i-th belongs to cohort i // 10 whatever is asked."""

SMALL_COHORT = 2
"""The same for strangers of another shape than `mini`, of which a suite asks for few."""


def make(suite: Suite, data_dir: Path | None, assume: bool = False, most: int = MOST) -> Plan:
    """Resolve weights and data to their digests and lay out the stages of every part.

    `assume` takes published data sets that are not there, and weights in files, as if they were:
    enough to count with, and said among the warnings, but not to run.

    Raises:
        UserError: a weights file or a data folder is missing.
        TooMany: it is of more than `most` cells, which are not laid out.

    """
    manifests, assumed = _manifests(suite, data_dir, assume)
    builder = _Builder(suite, manifests, most)
    with uncollected():  # a plan is a tree of millions of parts, none of them in a circle
        for part in suite.parts or (suite,):
            builder.begin(part)
            for model in part.innocents.models:
                builder.add_model(model, weights_identity(model, data_dir, assume))
            builder.warnings += alike(builder.models)
            for owner in part.owners:
                builder.add_owner(owner, weights_identity(owner, data_dir, assume))
    _refuse_unlabelled_probe(suite, manifests)
    _refuse_unlabelled_attacks(suite, manifests)
    read = (f"data {name}: {said}" for name, made in manifests.items() for said in made.notes)
    found = (*assumed, *read, *suite.warnings, *builder.warnings, *manifest.shared(manifests))
    warnings = tuple(dict.fromkeys(found))
    return Plan(
        suite,
        builder.stages,
        tuple(builder.questions.values()),
        manifests,
        builder.owners,
        builder.recipe,
        warnings,
    )


def _manifests(
    suite: Suite, data_dir: Path | None, assume: bool
) -> tuple[dict[str, Manifest], list[str]]:
    """Read the data sets, and say which of them had to be assumed."""
    found, said = dict[str, Manifest](), list[str]()
    for name, settings in suite.data.items():
        made = None
        if assume and not manifest.is_there(name, settings, data_dir):
            made = manifest.assumed(name, settings)
        if made is None:
            made = manifest.read(name, settings, data_dir)
        else:
            images, classes = len(made.items), how_many(len(made.classes), "class", "classes")
            size = f"{how_many(images, 'image')}, {classes}"
            said.append(f"data {name} is not there: counted with its published size, {size}")
        found[name] = made
    return found, said


def _refuse_unlabelled_probe(suite: Suite, manifests: Mapping[str, Manifest]) -> None:
    """Refuse to probe on a folder that might have had class folders, and has not."""
    for part in suite.parts or (suite,):
        probe = manifests[part.probe]
        if probe.settings.labelled and not labelled(probe):
            raise UserError(
                f"probe: expected labelled images, got '{part.probe}'; put them in two class "
                "folders or more"
            )


def _refuse_unlabelled_attacks(suite: Suite, manifests: Mapping[str, Manifest]) -> None:
    """Refuse to train a thief on labels that his images do not have."""
    for part in suite.parts or (suite,):
        for step in itertools.chain(*part.attacks, *part.innocents.descendants):
            attack = ATTACKS.build(step.name, step.args)
            if not isinstance(attack, NeedsLabels) or not attack.labelled:
                continue
            used = manifests[step.args.get("data") or part.probe]
            if not used.classes:
                raise UserError(
                    f"attack '{step.name}': expected labelled images, got '{used.name}' without "
                    "labels; give `data` a labelled data set"
                )


NOTHING: Mapping[str, Json] = {}
"""Beside most recipes there is nothing: millions of stages share it, and send it to workers."""


class _Recipe(NamedTuple):
    """What stages of one kind on different parents have in common, and its canonical text."""

    kind: Kind
    recipe: Mapping[str, Json]
    text: str
    beside: Mapping[str, Json] = NOTHING


@dataclass(frozen=True, slots=True)
class _Told:
    """What is the same for all cells of one method on one owner."""

    owner: str  # the key of its stage
    access: str
    marks: bool
    images: Manifest  # the owner's, that its secret is drawn from
    task: str
    made: Json
    reading: _Recipe
    copies: dict[int, str] = field(default_factory=dict)  # by seed
    skipped: dict[tuple[str, ...], str] = field(default_factory=dict)  # why, by chain

    @property
    def recipe(self) -> dict[str, Json]:
        """Return what makes its secret, but for the seed."""
        return {"method": self.made, "data": self.images.digest}


class _Builder:
    """Grow the graph owner by owner; equal recipes meet in one stage."""

    def __init__(self, suite: Suite, manifests: Mapping[str, Manifest], most: int) -> None:
        self.suite, self.manifests, self.whole = suite, manifests, suite
        self._most, self._counted = most, 0
        self.stages: dict[str, Stage] = {}
        self.questions: dict[str, Question] = {}
        self.owners: dict[str, OwnerSettings] = {}
        self.models: list[Spec] = []
        self.public: str | None = None  # what the owner's backbone was finetuned from
        self._people: list[Person] = []  # who owes the owner nothing
        self._claims: dict[str, _Told] = {}  # of one owner in one part, by method
        self._suspects: dict[
            tuple[str, int, tuple[str, ...]], tuple[str, str | None]
        ] = {}  # likewise
        self._utilities: dict[tuple[str | None, ...], str] = {}
        self.warnings: list[str] = []
        self.recipe = dataclasses.replace(RECIPE, steps=suite.innocents.pretraining_steps)

    def begin(self, part: Suite) -> None:
        """Ask what one part of the suite asks from here on."""
        self.suite, self.models, self._utilities = part, [], {}

    def add_model(self, model: OwnerSettings, weights: str) -> None:
        self._loaded(model, weights)
        self.models.append(Spec(model.name, {**kin(model).args, "digest": weights}))

    def add_owner(self, owner: OwnerSettings, weights: str) -> None:
        clean, key = self._loaded(dataclasses.replace(owner, classifier=None), weights)
        others = strange_to(clean, self.models)
        strangers = self._strangers(owner, families(others))
        claimed, public = clean, None
        if owner.classifier is not None:
            public = clean if owner.classifier.backbone == "finetuned" else None
            self.public = None if public is None else key
            claimed, key = self._classified(clean, owner.classifier, key)
        else:
            self.public = None
        peers = Peers(claimed, strangers, others, public)
        self._people, self._claims, self._suspects = people_of(peers), {}, {}
        self.warnings += unjudged(self.suite, owner.name, len(self._people))
        seeds = self.suite.seeds
        # Every seed asks for as much as the first: millions are counted without being made.
        self._counted += len(seeds) * sum(1 for _ in self._cells(peers, seeds[:1]))
        if self._counted > self._most:
            raise TooMany(self.whole, self._counted, self._most)
        for cell in self._cells(peers, seeds):
            self._ask(cell, key)

    def _cells(self, peers: Peers, seeds: Sequence[int]) -> Iterator[Cell]:
        for method, seed in itertools.product(self.suite.methods, seeds):
            yield from cells(self.suite, peers, method, seed)
            yield from accusations(self.suite, peers, method, seed)

    def _loaded(self, model: OwnerSettings, weights: str) -> tuple[Spec, str]:
        spec = dataclasses.replace(told := model.spec(), args={**told.args, "digest": weights})
        key = self._add("owner", _owner_recipe(spec))
        self.owners[key] = model
        return spec, key

    def _classified(
        self, owner: Spec, classifier: ClassifierSettings, key: str
    ) -> tuple[Spec, str]:
        """Add the training of an owner's classifier; what follows starts from its result."""
        images = self.manifests[classifier.data]
        if not labelled(images):
            raise UserError(
                f"owner '{owner.name}': classifier: data: expected labelled images, got "
                f"'{images.name}'; put them in class folders"
            )
        how = dataclasses.asdict(classifier)
        key = self._add("classifier", {"classifier": how, "data": images.digest}, (key,))
        return Spec(owner.name, {**owner.args, "classifier": how}), key

    def _strangers(self, owner: OwnerSettings, others: int) -> int:
        innocents = self.suite.innocents
        if owner.library == EMBEDDED:
            self._check_shares(owner)
            return innocents.strangers
        if innocents.strangers or innocents.other_shapes:
            listed = ", the models listed as innocents" if others else ""
            short = others < innocents_needed(self.suite.alpha)
            undecided = "; verdicts against strangers stay undecided" if short else ""
            self.warnings.append(
                f"{owner.name}: strangers: n = {others}{listed}, nobody trained models of this "
                f"shape independently here{undecided}"
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
                shown = (data.loader, *LOADERS.get(data.loader).made_of)
                if settings.loader in shown and apart:
                    self.warnings.append(
                        f"data {name}: {owner.name} was trained on other shares of these images "
                        f"(owner_share {settings.owner_share}, held_out {settings.held_out}): "
                        "what this suite holds out it may have seen"
                    )

    def _ask(self, cell: Cell, owner: str) -> None:
        told = self._claim(cell, owner)
        if skip := self._skipped(cell, told):
            empty = Question(cell, told.access, told.marks, owner, "", "", "", "", None, skip)
            self.questions.setdefault(empty.key, empty)
            return
        honest = protect = self._protected(told, cell.method_seed)
        other_copy = functools.partial(self._protected, told)
        forged = self._forged(cell, told, honest, other_copy)
        if forged and cell.other_seed is None:
            protect = forged
        start = honest if cell.base == "released" and told.marks else owner
        if forged and cell.base == "accuser":
            start = forged
        elif cell.other_seed is not None:
            start = other_copy(cell.other_seed)
        if cell.other_model is not None:
            start = self._loaded_before(cell.other_model)
        suspect, data = self._attacked(cell, owner, start, other_copy)
        reference = honest if told.marks else owner
        align = self._aligned(cell.method, suspect, reference, told.images)
        extract = self._added(told.reading, (protect, align or suspect, owner))
        utility = self._measured(suspect, data, told)
        fidelity = None
        priced = told.marks and cell.lineage == "released" and forged is None
        if priced and untouched(cell.attack):
            probe = self.manifests[self.suite.probe].digest
            tests = {"task": told.task, "owner": told.images.digest, "probe": probe}
            fidelity = self._add("fidelity", tests, (owner, protect))
        hardness = None
        if self.suite.hardness:
            hardness = self._add("hardness", {"owner": told.task}, (suspect, owner))
        question = Question(
            *(cell, told.access, told.marks, owner, protect),
            *(suspect, extract, utility, fidelity),
            align=align,
            hardness=hardness,
        )
        self.questions.setdefault(question.key, question)

    def _claim(self, cell: Cell, owner: str) -> _Told:
        """Return what is the same for all cells of a method on an owner, found once."""
        found = self._claims.get(cell.method.text)
        if found is None:
            method = METHODS.get(cell.method.name)
            task = self._task(cell.owner)
            images = task if asks_only(cell.method) else self.manifests[self.suite.owner_images]
            made, how = apart(cell.method)
            reading = _Recipe("extract", how, canonical(how))
            found = _Told(
                *(owner, access(cell.method), method.marks, images, task.digest, made, reading)
            )
            self._claims[cell.method.text] = found
        return found

    def _skipped(self, cell: Cell, told: _Told) -> str:
        """Say why a question is not asked; empty if it is."""
        if cell.accuser and (why := unsuited(cell.accuser, cell.method)):
            return why
        chain = tuple([step.text for step in cell.attack])
        if chain not in told.skipped:
            told.skipped[chain] = unobtainable(cell, told.images)
        return told.skipped[chain]

    def _protected(self, told: _Told, seed: int) -> str:
        if seed not in told.copies:
            recipe = {**told.recipe, "seed": seed}
            told.copies[seed] = self._add("protect", recipe, (told.owner,), told.reading.recipe)
        return told.copies[seed]

    def _measured(self, suspect: str, data: str | None, told: _Told) -> str:
        """Add the measuring of a suspect's utility, once for all methods that read it."""
        asked = suspect, data, told.task
        if asked not in self._utilities:
            probe = self.manifests[self.suite.probe].digest
            tests = {"own": data, "owner": told.task, "probe": probe}
            self._utilities[asked] = self._add("utility", tests, (suspect,))
        return self._utilities[asked]

    def _forged(
        self, cell: Cell, told: _Told, honest: str, other_copy: Callable[[int], str]
    ) -> str | None:
        """Add the stage in which an accuser makes up a claim, with all that he looks at."""
        if cell.accuser is None:
            return None
        spec, accuser = cell.accuser, ACCUSERS.get(cell.accuser.name)
        owner, how = told.owner, told.reading.recipe
        recipe = {**told.recipe, "seed": cell.method_seed}
        parents, given = [owner], list[str]()
        people = self._people
        looked = [people[cell.accused]] if cell.accused is not None else []
        public = people[max(0, len(people) - surrogates_of(spec)) :]
        for role, models in (("innocent", looked), ("surrogate", public)):
            for base, chain, other in models:
                who = dataclasses.replace(cell, base=base, attack=chain, other_model=other)
                start = owner if other is None else self._loaded_before(other)
                parents.append(self._attacked(who, owner, start, other_copy)[0])
                given.append(role)
        if accuser.accuses == "owner":
            parents.append(honest)
            given.append("victim")
        head = answered(cell.method)
        asked = {"accuser": spec.json(), **recipe, **head, "given": given}
        read = {name: value for name, value in how.items() if name not in head}
        if accuser.post_hoc and read:  # what he makes may be chosen by what a judge will read
            asked["reading"] = read
        return self._add("accuse", asked, tuple(parents), how)

    def _loaded_before(self, model: Spec) -> str:
        return self._add("owner", _owner_recipe(_alone(model)))

    def _aligned(self, method: Spec, suspect: str, reference: str, drawn: Manifest) -> str | None:
        """Add the stage that fits a suspect to the model the claim is about, if any is asked for.

        Activations are compared on images that the method has not `drawn` its secret from, where
        the suite has others: a fit to what a mark was put into would read it into innocents.
        """
        if method.align == "none":
            return None
        recipe: dict[str, Json] = {ALIGN: method.align, "version": ALIGN_VERSION}
        if method.align == "auto":
            both = (self.manifests[name] for name in (self.suite.owner_images, self.suite.probe))
            recipe["data"] = next((m for m in both if m.digest != drawn.digest), drawn).digest
        return self._add("align", recipe, (suspect, reference))

    def _task(self, owner: Spec) -> Manifest:
        """Return the images on which an owner's own head is tested."""
        classifier = owner.args.get("classifier")
        return self.manifests[classifier["data"] if classifier else self.suite.owner_images]

    def _attacked(
        self, cell: Cell, owner: str, key: str, other_copy: Callable[[int], str]
    ) -> tuple[str, str | None]:
        """Add the steps of a chain; return the suspect's key and the data last trained on.

        `other_copy` adds what the owner released under the key of another seed.
        """
        asked = key, cell.attack_seed, tuple([step.text for step in cell.attack])
        if asked not in self._suspects:
            made = self._chained(cell, owner, key, other_copy)
            if any(map(copies, cell.attack)):  # which copies, each cell says
                return made
            self._suspects[asked] = made
        return self._suspects[asked]

    def _chained(
        self, cell: Cell, owner: str, key: str, other_copy: Callable[[int], str]
    ) -> tuple[str, str | None]:
        data = None
        for position, step in enumerate(cell.attack):
            attack = ATTACKS.get(step.name)
            parents: tuple[str, ...] = (key,)
            if not attack.derived and cell.owner.args["library"] == EMBEDDED:
                # It owes the victim nothing, so the victim is not in its key.
                shape = step.args.get("shape", "mini")
                parents = (self._cohort(int(step.args.get("index", 0)), shape),)
            if uses_base(step):
                parents = (*parents, self.public or owner)
            others = itertools.islice(colluders(self.suite, cell), copies(step))
            parents = (*parents, *map(other_copy, others))
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

    def _cohort(self, index: int, shape: Shape) -> str:
        # Without its shape, the key of a cohort of `mini` is what it was before there were others.
        size, other = (COHORT, {}) if shape == "mini" else (SMALL_COHORT, {"shape": shape})
        recipe = {"pretraining": _recipe_digest(self.recipe), "cohort": index // size}
        return self._add("cohort", {**recipe, "size": size, **other})

    def _add(
        self,
        kind: Kind,
        recipe: Mapping[str, Json],
        parents: tuple[str, ...] = (),
        beside: Mapping[str, Json] = NOTHING,
    ) -> str:
        return self._added(_Recipe(kind, recipe, canonical(dict(recipe)), beside), parents)

    def _added(self, what: _Recipe, parents: tuple[str, ...]) -> str:
        key = stage_key(what.kind, what.text, parents)
        if key not in self.stages:
            self.stages[key] = Stage(what.kind, what.recipe, parents, what.beside)
        return key


def _owner_recipe(owner: Spec) -> dict[str, Json]:
    """Name a model as its library reads it; the first version is that of no mention."""
    version = LIBRARIES.get(owner.args["library"]).version
    return {"owner": owner.json(), **({"library": version} if version > 1 else {})}


_recipe_digest = functools.cache(recipe_digest)


def _alone(model: Spec) -> Spec:
    """Return what a model is loaded as, whatever family it counts as."""
    return Spec(model.name, {k: v for k, v in model.args.items() if k != "family"})
