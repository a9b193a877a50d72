"""Foresee what a plan costs, from settings and shapes.

Passes follow from the plug-ins' settings, time from what was measured here. Or from what is
declared of a device that is not here: its peak, at a stated share of it. Passes alone are priced;
loading, writing and the passes timed for comparison come on top.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.data.images import Preprocess
from bench.data.manifest import split
from bench.models.meter import aside
from bench.models.vision import Architecture
from bench.records.nouns import (
    UNTOUCHED,
    Passes,
    Sizes,
    UserError,
)
from bench.records.settings import suggestion
from bench.records.store import Store
from bench.registry import ACCUSERS, ATTACKS, METHODS
from bench.runs.owners import architecture_at, unweighted
from bench.suite.graph import Kind, Plan, Stage
from bench.suite.todo import at_once, began, guesses, pace
from bench.training.hardness import MOST
from bench.types import (
    CountsAccusing,
    CountsExtracting,
    CountsPasses,
    CountsProtecting,
    Method,
)

BFLOAT16_PEAKS: dict[str, float] = {"a100-80gb": 312e12, "h100": 989e12, "h200": 989e12}
"""Operations a second on dense bfloat16 matrices, by the makers' data sheets (SXM boards)."""

UTILISATION = 0.4
"""The share of its peak that a device is taken to reach; measure yours with a first stage."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model is to a budget: operations of a forward pass, bytes of weights, sizes."""

    operations: float
    bytes: int
    classes: int
    blocks: int
    tokens: int
    width: int
    preprocess: Preprocess

    @property
    def pixels(self) -> int:
        """Return the bytes of a decoded image."""
        return 3 * math.prod(self.preprocess.size)


@dataclass(frozen=True, slots=True)
class Row:
    """What the missing stages of one kind will take; None where nothing tells."""

    kind: Kind | None  # None: of all kinds together
    stages: int
    there: int
    forward: float | None
    backward: float | None
    bound: str  # of both counts: "", "≥", "≤" or "~"
    seconds: float | None
    bytes: float | None


@dataclass(frozen=True, slots=True)
class Budget:
    """The rows, the most bytes at once where copies are dropped, those of decoded images."""

    rows: tuple[Row, ...]
    at_once: float | None
    decoded: int

    @property
    def total(self) -> Row:
        """Add the rows up."""
        rows = self.rows
        signs = {row.bound for row in rows} - {""}
        return Row(
            None,
            sum(row.stages for row in rows),
            sum(row.there for row in rows),
            _total(row.forward for row in rows),
            _total(row.backward for row in rows),
            "~" if len(signs) > 1 else "".join(signs),
            _total(row.seconds for row in rows),
            _total(row.bytes for row in rows),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Say what the rows leave out."""
        at_once = "?" if self.at_once is None else f"{self.at_once / 1e9:.1f}"
        return (
            f"with --drop-copies, of these GB at once: {at_once}, one stage at a time",
            f"decoded images beside that: {self.decoded / 1e9:.1f} GB at most",
        )


def basis(device: str | None) -> str:
    """Say where times and sizes come from."""
    if device is None:
        return (
            "time and GB: of stages alike in the store, else of as many passes of the same model, "
            "there or, without any, as one of its blocks takes now; forward and backward: images "
            "through the whole model; ? nothing here tells"
        )
    peak = BFLOAT16_PEAKS[device] / 1e12
    return (
        f"GPU time is an estimate, nothing was measured: the passes alone, at {UTILISATION:.0%} of "
        f"the {peak:.0f} TFLOP/s that are declared of {device} (bfloat16, dense)"
    )


@functools.cache
def shape(architecture: Architecture) -> Shape:
    """Measure a model by its shapes alone."""
    model = unweighted(architecture)
    uncounted = aside(torch.device("cpu"))  # on no device at all, this pass is no work
    with uncounted, torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as flops:
        tokens = model.forward_features(torch.zeros(1, 3, *model.preprocess.size))
    blocks = 1 if model.trunk.blocks is None else len(model.blocks)
    size = sum(value.nbytes for value in model.state_dict().values())
    return Shape(
        float(flops.get_total_flops()),
        size,
        model.classes,
        blocks,
        tokens.shape[1],
        model.width,
        model.preprocess,
    )


def budget(
    plan: Plan,
    store: Store,
    todo: Iterable[str],
    device: str | None = None,
    pace_here: Callable[[Architecture], float] | None = None,
) -> Budget:
    """Price the stages in `todo`, kind by kind; they are taken on in this order.

    `pace_here` says how long a pass of a model takes of which the store knows nothing.

    Raises:
        UserError: nothing is declared of a device of this name.

    """
    if device is not None and device not in BFLOAT16_PEAKS:
        raise UserError(f"--device: no device '{device}'{suggestion(device, BFLOAT16_PEAKS)}")
    estimates, left, rows = _Estimates(plan, store, device, pace_here), dict.fromkeys(todo), []
    for kind in dict.fromkeys(stage.kind for stage in plan.stages.values()):
        keys = [key for key, stage in plan.stages.items() if stage.kind == kind]
        ahead = [key for key in keys if key in left]
        passes = [estimates.passes(plan.stages[key]) for key in ahead]
        known = [p for p in passes if p is not None]
        whole = len(known) == len(passes)
        rows.append(
            Row(
                kind,
                len(ahead),
                len(keys) - len(ahead),
                sum(p.forward for p in known) if whole else None,
                sum(p.backward for p in known) if whole else None,
                _bound(known),
                _total(map(estimates.seconds, ahead, passes)),
                _total(estimates.bytes(key) for key in ahead),
            )
        )
    most = at_once(plan, {key: estimates.bytes(key) for key in left})
    return Budget(tuple(rows), most, estimates.decoded(plan.stages[key] for key in left))


def counted(plan: Plan, store: Store, *kinds: Kind) -> dict[str, Passes | None]:
    """Count the passes of every stage of some kinds, by its key; None where nobody says."""
    count = _Estimates(plan, store, None).passes
    return {key: count(stage) for key, stage in plan.stages.items() if stage.kind in kinds}


def training_work(plan: Plan, cohort: str) -> float:
    """Return how many forward passes it is worth to train strangers, on a share of the patches."""
    recipe, size = plan.recipe, int(plan.stages[cohort].recipe["size"])
    return 3.0 * size * recipe.steps * recipe.batch * recipe.patches_kept / PATCHES


PATCHES = 64
"""Patches of an image that `mini` has; in training its strangers see some of them."""


def _total(parts: Iterable[float | None]) -> float | None:
    found = list(parts)
    return None if None in found else float(sum(cast(list[float], found)))


def _bound(passes: Iterable[Passes]) -> str:
    signs = {"exact": "", "at least": "≥", "at most": "≤", "about": "~"}
    found = {signs[p.bound] for p in passes} - {""}
    return found.pop() if len(found) == 1 else "~" if found else ""


class _Estimates:
    """Answers for one plan and one store; measures every architecture and reads every list once."""

    guessed = functools.cached_property(lambda self: guesses(self.plan, self._store))
    pace = functools.cached_property(lambda self: pace(self._store))

    def __init__(
        self,
        plan: Plan,
        store: Store,
        device: str | None,
        pace_here: Callable[[Architecture], float] | None = None,
    ) -> None:
        self.plan, self.device, self._store, self._pace_here = plan, device, store, pace_here
        self._pools = functools.cache(lambda data: split(plan.manifest(data)))
        self._model = functools.cache(functools.partial(architecture_at, plan))
        self._read = functools.cache(self._passes_of_reading)

    def count(self, data: str, *names: str) -> int:
        """Count the images of some pools of a data set."""
        return sum(len(getattr(self._pools(data), name)) for name in names)

    def shape(self, stage: Stage) -> Shape:
        """Measure the model a stage works on: that of the owner, or innocent, it began with."""
        return shape(self._model(began(stage, self.plan.stages)))

    def passes(self, stage: Stage) -> Passes | None:
        """Count the passes of a stage, or None where its plug-in does not say."""
        work: Mapping[Kind, Callable[[Stage], Passes | None]] = {
            "owner": lambda loaded: Passes(),
            "classifier": self._classifier,
            "cohort": lambda trained: None,  # in a loop of its own: only earlier runs tell
            "protect": self._protect,
            "attack": self._attack,
            "align": self._align,
            "extract": self._extract,
            "utility": self._utility,
            "fidelity": self._fidelity,
            "accuse": self._accuse,
            "hardness": lambda made: Passes(
                2 * min(self.count(made.recipe["owner"], "owner_held_out"), MOST)
            ),
        }
        return work[stage.kind](stage)

    def _classifier(self, stage: Stage) -> Passes:
        how = cast(dict[str, Any], stage.recipe["classifier"])
        count = self.count(stage.recipe["data"], "owner_images")
        if how["backbone"] == "frozen":
            return Passes(count)
        return Passes(how["epochs"] * count, how["epochs"] * count)

    def _protect(self, stage: Stage) -> Passes | None:
        method = _method(stage)
        if not isinstance(method, CountsProtecting):  # one from elsewhere may not know
            return None
        return method.protect_passes(self._sizes(stage, stage.recipe["data"]))

    def _accuse(self, stage: Stage) -> Passes | None:
        spec = cast(dict[str, Any], stage.recipe["accuser"])
        accuser = ACCUSERS.build(spec["name"], spec["args"])
        if not isinstance(accuser, CountsAccusing):
            return None
        whose = "thief" if "victim" in stage.recipe["given"] else "owner"
        return accuser.passes(_method(stage), self._sizes(stage, stage.recipe["data"], whose))

    def _extract(self, stage: Stage) -> Passes | None:
        protect = self.plan.stages[stage.parents[0]]
        found = self._read(stage.parents[0])
        if found and stage.recipe.get("readout") == "relinear":
            fitted = self.count(protect.recipe["data"], "owner_images")
            return Passes(found.forward + fitted, found.backward, found.frozen, found.bound)
        return found

    def _passes_of_reading(self, key: str) -> Passes | None:
        method = _method(protect := self.plan.stages[key])
        if not isinstance(method, CountsExtracting):
            return None
        return method.extract_passes(self._sizes(protect, protect.recipe["data"]))

    def _attack(self, stage: Stage) -> Passes | None:
        step = cast(dict[str, Any], stage.recipe["step"])
        attack = ATTACKS.build(step["name"], step["args"])
        if not isinstance(attack, CountsPasses):
            return None
        return attack.passes(self._sizes(stage, stage.recipe["data"], "thief", held=False))

    def _align(self, stage: Stage) -> Passes:
        data = stage.recipe.get("data")  # looked at by both models, where weights tell too little
        return Passes(2 * self.count(data, "owner_images"), bound="at most") if data else Passes()

    def _utility(self, stage: Stage) -> Passes:
        own, owner, probe = (stage.recipe[name] for name in ("own", "owner", "probe"))
        if own:  # unless the attack left no head for its task, which a probe then stands in for
            return Passes(self.count(own, "thief_held_out"), bound="about")
        if self._answers(stage, owner):
            return Passes(self.count(owner, "owner_held_out"))
        return Passes(self.count(probe, "owner_images", "owner_held_out"))

    def _fidelity(self, stage: Stage) -> Passes:
        task, owner, probe = (stage.recipe[name] for name in ("task", "owner", "probe"))
        looked = self.count(owner, "owner_held_out")
        if self._answers(stage, task):
            looked += self.count(task, "owner_held_out")
        return Passes(2 * (looked + self.count(probe, "owner_images", "owner_held_out")))

    def _answers(self, stage: Stage, data: str) -> bool:
        """Say whether a model tells the classes of these images apart."""
        images = self.plan.manifest(data)
        labelled = bool(images.classes) and not images.masked
        return labelled and self._classes(stage) == len(images.classes)

    def _classes(self, stage: Stage) -> int:
        while stage.parents:
            stage = self.plan.stages[stage.parents[0]]
            if stage.kind == "classifier":
                return len(self.plan.manifest(stage.recipe["data"]).classes)
        return 0 if stage.kind == "cohort" else self.shape(stage).classes

    def _sizes(self, stage: Stage, data: str, whose: str = "owner", held: bool = True) -> Sizes:
        made = self.shape(stage)
        images = self.count(data, f"{whose}_images")
        held_out = self.count(data, f"{whose}_held_out") if held else 0
        return Sizes(images, held_out, made.blocks, made.tokens, made.width)

    def seconds(self, key: str, passes: Passes | None) -> float | None:
        """Price a stage: as others like it, by the pace of its model here, or as declared."""
        stage = self.plan.stages[key]
        if self.device is None and key in self.guessed:
            return self.guessed[key][0]
        if stage.kind == "cohort":
            work: float | None = training_work(self.plan, key) if self.device is None else None
        else:
            work = None if passes is None else passes.work
        if not work:
            return work
        if self.device is not None:
            speed = BFLOAT16_PEAKS[self.device] * UTILISATION
            return work * self.shape(stage).operations / speed
        found = self._model(began(stage, self.plan.stages))
        pace = self.pace.get((found.name, found.image_size))
        if pace is None and self._pace_here is not None:
            pace = self._pace_here(found)
        return None if pace is None else work * pace

    def bytes(self, key: str) -> float | None:
        """Foresee the disk a stage takes: a model's weights, and a secret's images."""
        if key in self.guessed:
            return self.guessed[key][1]
        stage = self.plan.stages[key]
        if stage.kind == "cohort":
            return None
        if stage.kind == "align":
            return 8 * self.shape(stage).width ** 2  # a matrix in float64, of a width as usual
        kept = self.shape(stage).bytes if _keeps_a_model(stage) else 0
        if stage.kind not in ("protect", "accuse"):
            return kept
        asked = self._read(key)
        return None if asked is None else kept + asked.forward * self.shape(stage).pixels

    def decoded(self, stages: Iterable[Stage]) -> int:
        """Add up the pools that stages will decode, each once for every size it is needed in."""
        found = {
            (data, pool, self.shape(stage).preprocess): self.shape(stage).pixels
            for stage in stages
            for data, pool in self._looked_at(stage)
        }
        return sum(self.count(data, pool) * size for (data, pool, _), size in found.items())

    def _looked_at(self, stage: Stage) -> Iterator[tuple[str, str]]:
        owners, recipe = ("owner_images", "owner_held_out"), stage.recipe
        if stage.kind == "attack":
            yield recipe["data"], "thief_images"
        if stage.kind in ("classifier", "align") and "data" in recipe:
            yield recipe["data"], "owner_images"
        if stage.kind in ("protect", "accuse"):
            yield from ((recipe["data"], pool) for pool in owners)
        if "probe" in recipe:
            yield from ((recipe["probe"], pool) for pool in owners)
        if stage.kind in ("utility", "fidelity", "hardness"):
            yield recipe["owner"], "owner_held_out"
        if stage.kind == "fidelity" and self._answers(stage, recipe["task"]):
            yield recipe["task"], "owner_held_out"
        if recipe.get("own"):
            yield recipe["own"], "thief_held_out"


def _keeps_a_model(stage: Stage) -> bool:
    if stage.kind == "attack":
        return bool(stage.recipe["step"]["name"] != UNTOUCHED)
    if stage.kind == "protect":
        return METHODS.get(stage.recipe["method"]["name"]).marks
    if stage.kind == "accuse":
        return "victim" in stage.recipe["given"]
    return stage.kind in ("owner", "classifier")


def _method(protect: Stage) -> Method:
    return METHODS.build(protect.recipe["method"]["name"], protect.settings)
