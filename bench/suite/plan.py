"""Lay out a suite as a graph of stages, each named by its recipe and made at most once.

The plan makes the innocents that `bench.suite.cells` lists.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.data import manifest
from bench.data.manifest import Manifest
from bench.data.settings import LOADERS
from bench.models.libraries import EMBEDDED, LIBRARIES
from bench.records.nouns import (
    ALIGN,
    ALIGN_VERSION,
    ALIGNED,
    Access,
    Cell,
    Json,
    Readout,
    Shape,
    Spec,
    UserError,
    how_many,
)
from bench.registry import ACCUSERS, ATTACKS, METHODS
from bench.suite.cells import (
    Peers,
    Person,
    accusations,
    cells,
    colluders,
    copies,
    people_of,
    strange_to,
    surrogates_of,
    unjudged,
    unsuited,
    uses_base,
)
from bench.suite.graph import MOST, READ_WITH, Kind, Plan, Question, Stage, TooMany
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
        if probe.settings.labelled and not _labelled(probe):
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
        self.warnings: list[str] = []
        self.recipe = dataclasses.replace(RECIPE, steps=suite.innocents.pretraining_steps)

    def begin(self, part: Suite) -> None:
        """Ask what one part of the suite asks from here on."""
        self.suite, self.models = part, []

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
        self._people = people_of(peers)
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
        if not _labelled(images):
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
        method, access = METHODS.get(cell.method.name), _access(cell.method)
        task = self._task(cell.owner)
        images = task if _asks_only(cell.method) else self.manifests[self.suite.owner_images]
        owner_data = images.digest
        made, how = _apart(cell.method)
        recipe = {"method": made, "seed": cell.method_seed, "data": owner_data}
        if skip := (cell.accuser and unsuited(cell.accuser, cell.method)) or _unobtainable(
            cell, images
        ):
            empty = Question(cell, access, method.marks, owner, "", "", "", "", None, skip)
            self.questions.setdefault(empty.key, empty)
            return
        honest = protect = self._add("protect", recipe, (owner,), how)

        def other_copy(seed: int) -> str:
            return self._add("protect", {**recipe, "seed": seed}, (owner,), how)

        forged = self._forged(cell, recipe, owner, honest, how, other_copy)
        if forged and cell.other_seed is None:
            protect = forged
        start = honest if cell.base == "released" and method.marks else owner
        if forged and cell.base == "accuser":
            start = forged
        elif cell.other_seed is not None:
            start = self._add("protect", {**recipe, "seed": cell.other_seed}, (owner,), how)
        if cell.other_model is not None:
            start = self._loaded_before(cell.other_model)
        suspect, data = self._attacked(cell, owner, start, other_copy)
        align = self._aligned(cell.method, suspect, honest if method.marks else owner, images)
        extract = self._add("extract", how, (protect, align or suspect, owner))
        probe = self.manifests[self.suite.probe].digest
        tests = {"own": data, "owner": task.digest, "probe": probe}
        utility = self._add("utility", tests, (suspect,))
        fidelity = None
        priced = method.marks and cell.lineage == "released" and forged is None
        if priced and untouched(cell.attack):
            tests = {"task": task.digest, "owner": owner_data, "probe": probe}
            fidelity = self._add("fidelity", tests, (owner, protect))
        hardness = None
        if self.suite.hardness:
            hardness = self._add("hardness", {"owner": task.digest}, (suspect, owner))
        question = Question(
            *(cell, access, method.marks, owner, protect, suspect, extract, utility, fidelity),
            align=align,
            hardness=hardness,
        )
        self.questions.setdefault(question.key, question)

    def _forged(
        self,
        cell: Cell,
        recipe: dict[str, Json],
        owner: str,
        honest: str,
        how: dict[str, Json],
        other_copy: Callable[[int], str],
    ) -> str | None:
        """Add the stage in which an accuser makes up a claim, with all that he looks at."""
        if cell.accuser is None:
            return None
        spec, accuser = cell.accuser, ACCUSERS.get(cell.accuser.name)
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
        answered = _answered(cell.method)
        asked = {"accuser": spec.json(), **recipe, **answered, "given": given}
        read = {name: value for name, value in how.items() if name not in answered}
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
        beside: Mapping[str, Json] | None = None,
    ) -> str:
        stage = Stage(kind, recipe, parents, beside or {})
        key = stage.key
        self.stages.setdefault(key, stage)
        return key


def _owner_recipe(owner: Spec) -> dict[str, Json]:
    """Name a model as its library reads it; the first version is that of no mention."""
    version = LIBRARIES.get(owner.args["library"]).version
    return {"owner": owner.json(), **({"library": version} if version > 1 else {})}


_recipe_digest = functools.cache(recipe_digest)


def _alone(model: Spec) -> Spec:
    """Return what a model is loaded as, whatever family it counts as."""
    return Spec(model.name, {k: v for k, v in model.args.items() if k != "family"})


def _asks_only(method: Spec) -> bool:
    """Say whether a method needs no more than answers in the owner's label space."""
    return METHODS.get(method.name).needs in Access.BLACK_BOX


def _readout(method: Spec) -> Readout | None:
    """Return how a method says that its answers are got; None leaves it to the suspect's head."""
    return method.args.get("readout") if _asks_only(method) else None


def _answered(method: Spec) -> dict[str, Json]:
    """Say whose head answers an accuser: the one that will answer the judge."""
    readout = _readout(method)
    return {} if readout is None else {"readout": readout}


def _access(method: Spec) -> str:
    """Say in words what a method needs to see, by whose head it is answered, and in what basis."""
    readout = _readout(method)
    how = [*([READ_WITH[readout]] if readout else []), ALIGNED[method.align]]
    said = ", ".join(filter(None, how))
    return METHODS.get(method.name).needs.text + (f" ({said})" if said else "")


def _apart(method: Spec) -> tuple[Json, dict[str, Json]]:
    """Name what makes the secret, and beside it the settings by which suspects are read later.

    Alignment is neither: it is a stage of its own.
    """
    reading, given = METHODS.reading(method.name), method.unaligned.args
    args = {name: value for name, value in given.items() if name not in reading}
    how = {name: value for name, value in given.items() if name in reading}
    return Spec(method.name, args, method.version).json(), how


def _unobtainable(cell: Cell, images: Manifest) -> str:
    """Say why this suspect cannot be read at all; empty if it can."""
    needs, readout = METHODS.get(cell.method.name).needs, _readout(cell.method)
    named, classifier = cell.owner.args["library"], cell.owner.args.get("classifier")
    if _asks_only(cell.method) and not classifier and LIBRARIES.get(named).classifies is None:
        return f"needs {needs.text}, {cell.owner.name} has no `classifier`"
    if not METHODS.get(cell.method.name).marks and any(map(copies, cell.attack)):
        return "needs copies under other keys, a fingerprint releases one model"
    if readout == "relinear" and not _labelled(images):
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


def _labelled(images: Manifest) -> bool:
    return len(images.classes) > 1 and not images.masked
