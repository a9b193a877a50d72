"""Carry out the stages of a plan, one at a time, and keep what each of them makes."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.data.images import Images, Preprocess, load
from bench.data.manifest import Manifest, split
from bench.models.building import blank, build
from bench.models.heads import Head, SegmentationHead
from bench.models.libraries import EMBEDDED
from bench.models.meter import Meter, aside, measuring, timed
from bench.models.suspect import View
from bench.models.symmetry import Alignment, align, rewritten
from bench.models.vision import Architecture, VisionModel, compiling
from bench.models.weights import load_state, refuse_infinite, secret_digest, sketch
from bench.records.leases import Leases
from bench.records.nouns import (
    ALIGN,
    UNTOUCHED,
    Access,
    Cost,
    Evidence,
    Fidelity,
    Json,
    Precision,
    Readout,
    Shape,
    UserError,
    canonical,
    digest,
    packed,
)
from bench.records.store import Artefact, Store
from bench.registry import ACCUSERS, ATTACKS, METHODS
from bench.runs import accusing
from bench.runs.machine import device_name, environment
from bench.runs.made import Made
from bench.runs.owners import called, load_owner, refuse_others, refuse_two_heads
from bench.suite import sources
from bench.suite.graph import Kind, Plan, Stage
from bench.suite.owners import ClassifierSettings, weights_file
from bench.suite.todo import near_models
from bench.training import hardness, pretraining, probe, readout
from bench.training.loop import passes
from bench.training.microbatch import in_batches
from bench.types import Context, HasPrecision, UsesBase

if TYPE_CHECKING:
    from collections.abc import Sequence


FULL: Precision = "float32"
"""The precision of a method that has no such setting."""

BATCH = 64
"""Images per inference pass where the bench itself makes it."""

SLOW = 0.1
"""Seconds of an image from which a processor's passes hide what a cold start costs."""

PAIRED = 3
"""Readings of a kind that each process times beside a plain pass: a median needs no more of them,
and the pass costs as much as the reading."""


@dataclass(frozen=True)
class Laboratory:
    """Where stages are carried out: the plan, the store, the user's data and the device.

    What the user should know of on the way is told to `note`, a line at a time. With `compile`,
    blocks are compiled, which may change the last digits of evidence. With `drop_copies`, the
    weights of an attacked copy go as soon as no cell of the run needs them.
    """

    plan: Plan
    store: Store
    data_dir: Path | None
    device: torch.device
    note: Callable[[str], None] = print
    compile: bool = False
    drop_copies: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """Say what evidence depends on here beside its recipe."""
        return {**environment(self.device), **({"compile": "yes"} if self.compile else {})}

    def carry_out(self, stage: Stage) -> Artefact:
        """Do one stage and keep what it makes; its parents must be in the store."""
        if self.store.damaged(stage.key):
            self.note(f"store: {stage.kind} {stage.key} was damaged and is made again")
        before = self.store.find(stage.key)
        wanted = self.compile and stage.kind != "cohort"  # strangers train under vmap
        with compiling(wanted), measuring(self.device) as meter:
            made = self._work[stage.kind](stage)
        cost = dataclasses.asdict(self._cost(meter, made.seconds, made.ideal_seconds))
        code = sources.code_of(stage, self.plan.stages)
        beside = {"cost": cost, "environment": self.environment, "code": code}
        payload = {**beside, **made.payload}
        if meter.micro_batch is not None:
            payload["notes"] = {**payload.get("notes", {}), "micro_batch": meter.micro_batch}
        if before is not None and before.payload.get("digest") != payload.get("digest"):
            self.note(
                f"store: {stage.kind} {stage.key} came out with other weights than before (other "
                "threads, another device?): earlier records of it do not hold against this store"
            )
        return self.store.put(
            stage.key, stage.kind, dict(stage.recipe), stage.parents, payload, made.tensors
        )

    @property
    def _work(self) -> Mapping[Kind, Callable[[Stage], Made]]:
        return {
            "owner": self._owner,
            "classifier": self._classifier,
            "cohort": self._cohort,
            "protect": self._protect,
            "attack": self._attack,
            "align": self._align,
            "extract": self._extract,
            "utility": self._utility,
            "fidelity": self._fidelity,
            "hardness": self._hardness,
            "accuse": self._accuse,
        }

    def _cost(self, meter: Meter, seconds: float | None, ideal: float | None) -> Cost:
        return Cost(
            seconds=meter.seconds if seconds is None else seconds,
            ideal_seconds=ideal,
            forward_passes=meter.forward_passes,
            backward_passes=meter.backward_passes,
            peak_memory_mb=meter.peak_memory_mb,
            device=device_name(self.device),
        )

    def _owner(self, stage: Stage) -> Made:
        owner = self.plan.owners[stage.key]
        file = weights_file(owner, self.data_dir) if owner.from_file else None
        made = load_owner(owner, file)
        for told in made.notes.get("weights", []):
            self.note(f"{owner.name}: {told}")
        kept = Made.of(made, made.notes)
        payload = {**kept.payload, "sketch": list(sketch(made))}
        return dataclasses.replace(kept, payload=payload)

    def _classifier(self, stage: Stage) -> Made:
        with aside(self.device):
            owner = self._model(stage.parents[0]).to(self.device)
        images = self._pool(stage.recipe["data"], "owner_images", owner)
        how = ClassifierSettings(**stage.recipe["classifier"])
        rng = self._context(stage.key, (images, images)).rng
        made = readout.with_classifier(owner, images, how, rng, self.device)
        return Made.of(made.cpu(), dict(made.notes))

    def _cohort(self, stage: Stage) -> Made:
        number, size = stage.recipe["cohort"], stage.recipe["size"]
        states = pretraining.cohort(number, size, self.plan.recipe, _shape(stage.recipe))
        tensors = {f"{i}.{k}": v for i, state in enumerate(states) for k, v in state.items()}
        return Made({"members": size}, tensors)

    def _protect(self, stage: Stage) -> Made:
        method = METHODS.build(stage.recipe["method"]["name"], stage.settings)
        with aside(self.device):  # loading is not embedding
            owner = self._model(stage.parents[0]).to(self.device)
        ctx = self._context(stage.key, self._owner_pools(stage.recipe["data"], owner))
        protected = method.protect(owner, ctx)
        with aside(self.device):  # keys that are one and the same count as one
            notes = {**protected.notes, "secret_digest": secret_digest(protected.secret)}
        made = Made.of(protected.model.cpu(), notes, "model.")
        # A fingerprint's released model is the owner's, which is there.
        kept = made.tensors if method.marks and made.tensors else {}
        secret = {f"secret.{k}": v for k, v in protected.secret.items()}
        return dataclasses.replace(
            made, tensors={**kept, **secret}, ideal_seconds=protected.ideal_seconds
        )

    def _attack(self, stage: Stage) -> Made:
        spec = stage.recipe["step"]
        attack = ATTACKS.build(spec["name"], spec["args"])
        with aside(self.device):  # loading is not attacking
            victim = self._model(stage.parents[0]).to(self.device)
        # Not the victim's key: a twin must see the same draws.
        draws = digest("draw", spec, stage.recipe["position"], stage.recipe["seed"])
        images = self._pool(stage.recipe["data"], "thief_images", victim)
        ctx = self._context(draws, (images, images.subset([])), self._stranger(stage))
        beside = stage.parents[1:]
        if isinstance(attack, UsesBase) and attack.uses_base:
            ctx = dataclasses.replace(ctx, base=self._model(beside[0]).to(self.device))
            beside = beside[1:]
        if beside:
            ctx = dataclasses.replace(ctx, copies=lambda i: self._model(beside[i]).to(self.device))
        attacked = attack.run(victim, ctx)
        refuse_infinite(attacked, f"attack {spec['name']}")
        made = Made.of(attacked.cpu(), dict(attacked.notes))
        if attacked.secret and made.tensors:
            kept = {f"secret.{k}": v for k, v in attacked.secret.items()}
            made = dataclasses.replace(made, tensors={**made.tensors, **kept})
        return dataclasses.replace(made, tensors=None) if spec["name"] == UNTOUCHED else made

    def _align(self, stage: Stage) -> Made:
        with aside(self.device):
            suspect, reference = (self._model(key).to(self.device) for key in stage.parents)
        images = None
        if data := stage.recipe.get("data"):
            images = self._pool(data, "owner_images", reference)
        rng = torch.Generator().manual_seed(int(stage.key, 16) >> 1)
        found = align(suspect, reference, stage.recipe[ALIGN], images, rng, self.device)
        noted = {"stage": found.stage, "before": found.before, "residual": found.residual}
        payload = {"alignment": found.json(), "notes": {**found.notes, **noted}}
        return Made(payload, found.tensors())

    def _extract(self, stage: Stage) -> Made:
        protect = self.store.find(stage.parents[0])
        assert protect is not None, "a parent was planned and made"
        spec = protect.recipe["method"]
        method = METHODS.build(spec["name"], {**spec["args"], **stage.recipe})
        how: Readout = stage.recipe.get("readout", "native")
        with aside(self.device):
            secret = _part(self.store.tensors(stage.parents[0]), "secret.")
            model = self._model(stage.parents[1]).to(self.device)
            asks = method.needs in Access.BLACK_BOX
            # Only a head asks for the owner's weights; the last owner serves many suspects.
            owner = self._last_owner(stage.parents[2]) if asks else self._bare(stage.parents[2])
            pools = self._owner_pools(protect.recipe["data"], owner)
            head = readout.head_for(how, model, owner, pools[0], self.device) if asks else None
            suspect = View(model, method.needs, head, grafted=how != "native")

        def read() -> Evidence:
            return method.extract(secret, suspect, self._context(stage.key, pools))

        precision = method.precision if isinstance(method, HasPrecision) else FULL
        most = min(BATCH, *map(len, pools))
        kind = canonical([spec, how, model.architecture.json()])
        self._readings[kind] += 1
        most = most if self._readings[kind] <= PAIRED else 0
        evidence, seconds, ideal = self._timed_reading(read, model, precision, most)
        found = dataclasses.asdict(evidence)
        notes = found.pop("notes")
        if model.architecture.served and suspect.queries:
            notes = {**notes, "answered": suspect.answered}
        noted = {"notes": notes} if notes else {}
        if evidence.null is None:
            del found["null"]
        payload = {"evidence": found, "queries": suspect.queries, **noted}
        return Made(payload, None, seconds, ideal)

    def _timed_reading(
        self, read: Callable[[], Evidence], model: VisionModel, precision: Precision, batch: int
    ) -> tuple[Evidence, float, float | None]:
        """Read the evidence; time it beside a plain forward pass of as many images, if any.

        Before that a pass of `batch` images warms caches up. With a batch of 0 readings alike have
        done so, and have been timed beside a pass often enough.
        """
        found: list[Evidence] = []
        if not batch:
            seconds = timed(lambda: found.append(read()), self.device)
            return found[0], seconds, None
        with aside(self.device):  # neither is timed cold
            one = functools.partial(_plain_pass, model, 1, self.device, precision)
            if timed(one, self.device) < SLOW or self.device.type != "cpu":
                # A compiled block gets its graph for any batch once it has seen two.
                more = BATCH - 1 if self.compile else 0
                _plain_pass(model, batch + more, self.device, precision)
        with measuring(self.device) as meter:
            seconds = timed(lambda: found.append(read()), self.device)
        if not meter.images:  # weights were compared: there is no pass to compare with
            return found[0], seconds, None
        with aside(self.device):
            plain = functools.partial(_plain_pass, model, meter.images, self.device, precision)
            return found[0], seconds, timed(plain, self.device)

    def _utility(self, stage: Stage) -> Made:
        model = self._model(stage.parents[0]).to(self.device)
        own, task = self._own_test(stage, model)
        train, test = self._owner_pools(stage.recipe["probe"], model)
        name = self.plan.manifest(stage.recipe["probe"]).name
        found = probe.utility(
            model, own, task, train, test, f"{name}, owner's held-out images", self.device
        )
        return Made({"utility": dataclasses.asdict(found)})

    def _own_test(self, stage: Stage, model: VisionModel) -> tuple[Images | None, str]:
        """Find the held-out images of the task the model's own head was trained for."""
        trained_on, owner = stage.recipe["own"], stage.recipe["owner"]
        kinds = Head | SegmentationHead
        if trained_on and isinstance(model.architecture.head, kinds):
            name = self.plan.manifest(trained_on).name
            return self._pool(trained_on, "thief_held_out", model), f"{name}, thief's test images"
        return self._owners_test(owner, model)

    def _owners_test(self, owner: str, model: VisionModel) -> tuple[Images | None, str]:
        """Find the owner's held-out images of the classes that a model tells apart, if any."""
        images = self.plan.manifest(owner)
        if images.classes and not images.masked and model.classes == len(images.classes):
            held_out = self._pool(owner, "owner_held_out", model)
            return held_out, f"{images.name}, owner's held-out images"
        return None, ""

    def _fidelity(self, stage: Stage) -> Made:
        owner, released = (self._model(key).to(self.device) for key in stage.parents)
        _, held_out = self._owner_pools(stage.recipe["owner"], owner)
        train, test = self._owner_pools(stage.recipe["probe"], owner)
        before, after = (
            probe.probe_right(model, train, test, self.device) for model in (owner, released)
        )
        found = Fidelity(
            feature_cosine=probe.feature_cosines(owner, released, held_out, self.device),
            owner_probe_accuracy=probe.share(before),
            released_probe_accuracy=probe.share(after),
            probe_images=len(test),
            task=self.plan.manifest(stage.recipe["probe"]).name,
            owner_probe_right=packed(before.tolist()),
            released_probe_right=packed(after.tolist()),
        )
        own, task = self._owners_test(stage.recipe["task"], owner)
        if own is not None and released.classes == owner.classes:
            before, after = (
                probe.head_right(model, own, self.device) for model in (owner, released)
            )
            found = dataclasses.replace(
                found,
                own_task=task,
                own_images=len(own),
                owner_right=packed(before.tolist()),
                released_right=packed(after.tolist()),
            )
        return Made({"fidelity": dataclasses.asdict(found)})

    def _hardness(self, stage: Stage) -> Made:
        suspect, owner = (self._model(key).to(self.device) for key in stage.parents)
        pools = [
            self._pool(stage.recipe["owner"], "owner_held_out", model) for model in (suspect, owner)
        ]
        found = hardness.likeness(suspect, owner, (pools[0], pools[1]), self.device)
        return Made({"notes": found})

    def _accuse(self, stage: Stage) -> Made:
        recipe = stage.recipe
        method = METHODS.build(recipe["method"]["name"], stage.settings)
        accuser = ACCUSERS.build(recipe["accuser"]["name"], recipe["accuser"]["args"])
        with aside(self.device):  # loading is not forging
            own = self._model(stage.parents[0]).to(self.device)
            whose = "thief" if accuser.accuses == "owner" else "owner"
            pools = tuple(
                self._pool(recipe["data"], f"{whose}_{pool}", own)
                for pool in ("images", "held_out")
            )
            looked = accusing.Looked(method, own, recipe.get("readout"), pools[0], self.device)
            for role, key in zip(recipe["given"], stage.parents[1:], strict=True):
                unmarked = role == "victim" and not method.marks
                model = own if unmarked else self._model(key).to(self.device)
                looked.add(role, model, _part(self.store.tensors(key), "secret."))
            case = looked.case()
        return accusing.made(accuser, case, self._context(stage.key, (pools[0], pools[1])))

    def _model(self, key: str) -> VisionModel:
        """Load the model a stage made, on the CPU."""
        made = self.store.find(key)
        assert made is not None, "a parent was planned and made"
        if made.kind == "cohort":
            return self._member(made, 0)
        if made.kind == "align":
            suspect = self._model(made.parents[0])
            return rewritten(
                suspect, Alignment.of(self.store.tensors(key), made.payload["alignment"])
            )
        if not made.tensors:  # left untouched: it is kept as what it was
            return self._model(made.parents[0])
        model = blank(Architecture.of(made.payload["architecture"]))
        tensors = self.store.tensors(key)
        return load_state(model, _part(tensors, "model."), key)

    @functools.cached_property
    def _readings(self) -> Counter[str]:
        return Counter()  # by method and architecture

    @functools.cached_property
    def _last_owner(self) -> Callable[[str], VisionModel]:
        return functools.lru_cache(maxsize=1)(self._model)

    def _bare(self, key: str) -> VisionModel:
        """Build the model a stage made without its weights, which nobody will ask for."""
        made = self.store.find(key)
        assert made is not None, "a parent was planned and made"
        with torch.device("meta"):
            return build(Architecture.of(made.payload["architecture"]))

    def _member(self, cohort: Artefact, member: int) -> VisionModel:
        state = _part(self.store.tensors(cohort.key), f"{member}.")
        architecture = Architecture(EMBEDDED, _shape(cohort.recipe))
        return load_state(blank(architecture), state, cohort.key)

    def _stranger(self, stage: Stage) -> Callable[[int], VisionModel] | None:
        found = self.store.find(stage.parents[0])
        if found is None or found.kind != "cohort":
            return None
        first, size = found.recipe["cohort"] * found.recipe["size"], found.recipe["size"]

        def stranger(index: int) -> VisionModel:
            if not first <= index < first + size:
                raise UserError(
                    f"expected a stranger of {first} to {first + size - 1}, got {index}; "
                    "a control names its stranger in the setting `index`"
                )
            return self._member(found, index - first).to(self.device)

        return stranger

    def _context(
        self,
        seed: str,
        pools: tuple[Images, Images],
        stranger: Callable[[int], VisionModel] | None = None,
    ) -> Context:
        """Give a stage its own randomness, fixed by a key and by nothing that ran before it."""
        rng = torch.Generator().manual_seed(int(seed, 16) >> 1)
        return Context(self.device, rng, *pools, stranger)

    def _owner_pools(self, name: str, model: VisionModel) -> tuple[Images, Images]:
        with aside(self.device):
            return (
                self._pool(name, "owner_images", model),
                self._pool(name, "owner_held_out", model),
            )

    def _pool(self, name: str, pool: str, model: VisionModel) -> Images:
        with aside(self.device):
            return self._decoded(name, pool, model.preprocess)

    @functools.cached_property
    def _decoded(self) -> Callable[[str, str, Preprocess], Images]:
        @functools.lru_cache(maxsize=16)
        def decoded(name: str, pool: str, preprocess: Preprocess) -> Images:
            found: Manifest = self.plan.manifest(name)
            indices: Sequence[int] = getattr(split(found), pool)
            return load(found, indices, preprocess, self.store.pixels)

        return decoded


def load_owners(laboratory: Laboratory) -> None:
    """Load every owner that is not in the store yet, before any work starts.

    Raises:
        UserError: weights are damaged, of another architecture, not those expected, or cannot be
            fetched.

    """
    for key, owner in laboratory.plan.owners.items():
        if not laboratory.store.verify(key):
            with Leases(laboratory.store.leases) as leases:
                leases.wait_for(key)
                if not laboratory.store.verify(key):  # no other run was quicker
                    laboratory.carry_out(laboratory.plan.stages[key])
        loaded = laboratory.store.find(key)
        assert loaded is not None, "it was just loaded"
        refuse_others(owner, loaded.payload["digest"])
    for group in near_models(laboratory.plan, laboratory.store):
        if len(group) > 1:
            listed = " and ".join(called(laboratory.plan.owners[key]) for key in group)
            laboratory.note(f"{listed} are one model, or nearly: as innocents they count once")
    for stage in laboratory.plan.stages.values():
        if stage.kind == "classifier":
            parent, made = stage.parents[0], laboratory.store.find(stage.parents[0])
            assert made is not None, "it was just loaded"
            refuse_two_heads(laboratory.plan.owners[parent], made.payload["architecture"]["head"])


def _shape(cohort: Mapping[str, Json]) -> Shape:
    """Return the shape of the strangers that a cohort's recipe makes."""
    shape: Shape = cohort.get("shape", "mini")
    return shape


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _plain_pass(model: VisionModel, count: int, device: torch.device, precision: Precision) -> None:
    size = model.preprocess.size

    def look(part: slice) -> None:
        model.forward_features(torch.zeros(part.stop - part.start, 3, *size, device=device))

    with torch.inference_mode(), passes(device, precision):
        for _ in in_batches(count, BATCH, look):
            pass
