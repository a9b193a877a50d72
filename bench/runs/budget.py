"""Foresee a plan from settings and shapes: what it costs, and whom its methods can read.

Passes follow from the plug-ins' settings, time from what was measured here. Or from what is
declared of a device that is not here: its peak, at a stated share of it. Passes alone are priced;
loading, writing and the passes timed for comparison come on top.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.data.images import Images, Preprocess
from bench.data.manifest import split
from bench.models.meter import aside
from bench.models.vision import Architecture
from bench.records.nouns import (
    UNTOUCHED,
    Access,
    Incompatible,
    Passes,
    Readout,
    Sizes,
    Spec,
    UserError,
    how_many,
)
from bench.records.settings import suggestion
from bench.records.store import Store
from bench.registry import ACCUSERS, ATTACKS, METHODS
from bench.reports.blocks import labelled
from bench.runs.owners import architecture_at, unweighted
from bench.suite.graph import Kind, Plan, Question, Stage
from bench.suite.todo import at_once, began, guesses, pace
from bench.training.hardness import MOST
from bench.training.readout import head_for
from bench.types import (
    CountsAccusing,
    CountsExtracting,
    CountsPasses,
    CountsProtecting,
    Method,
    SaysUnreadable,
)
from bench.verdicts.innocents import WHOLE, attack_of, family
from bench.verdicts.verdict import innocents_needed

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
            "time and GB: of stages alike in the store, else of as many passes of the same model; "
            "forward and backward: images through the whole model; ? nothing here tells"
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


def budget(plan: Plan, store: Store, todo: Iterable[str], device: str | None = None) -> Budget:
    """Price the stages in `todo`, kind by kind; they are taken on in this order.

    Raises:
        UserError: nothing is declared of a device of this name.

    """
    if device is not None and device not in BFLOAT16_PEAKS:
        raise UserError(f"--device: no device '{device}'{suggestion(device, BFLOAT16_PEAKS)}")
    estimates, left, rows = _Estimates(plan, store, device), dict.fromkeys(todo), []
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


def _total(parts: Iterable[float | None]) -> float | None:
    found = list(parts)
    return None if None in found else float(sum(cast(list[float], found)))


def _bound(passes: Iterable[Passes]) -> str:
    signs = {"exact": "", "at least": "≥", "at most": "≤", "about": "~"}
    found = {signs[p.bound] for p in passes} - {""}
    return found.pop() if len(found) == 1 else "~" if found else ""


@dataclass(frozen=True, slots=True)
class Reach:
    """How many strangers of a claim its method can read, as far as shapes tell before a run."""

    owner: str
    method: Spec
    attacked: bool  # alike, for a fingerprint
    listed: int
    readable: int
    unknown: int  # of the readable: nothing tells of them
    draws: int  # as how many the readable count at most: those of a family are one

    def text(self, alpha: float) -> str:
        """Say how many can be read, and whether they are too few for any verdict."""
        alike = " attacked alike" if self.attacked else ""
        parts = [f"{self.readable} of {how_many(self.listed, 'stranger')}{alike} can be read"]
        if self.unknown:
            parts.append(f"{self.unknown} of them as far as is known before a run")
        if self.draws < self.readable:
            parts.append(f"counted as {self.draws} at most")
        needed = innocents_needed(alpha)
        short = f"; {needed} are needed at alpha = {alpha:g}: verdicts stay undecided"
        return ", ".join(parts) + (short if self.draws < needed else "")


def reaches(plan: Plan) -> list[Reach]:
    """Count whom each method can read, of claims with strangers of other shapes than the owner's.

    Strangers of a mark are untouched; those of a fingerprint count attack by attack. Shapes are
    those they start with.
    """
    claims: dict[tuple[str, str, str], dict[str, Question]] = {}
    for question in plan.questions:
        cell = question.cell
        if cell.lineage == "stranger" and cell.accuser is None and not question.skip:
            attack = WHOLE if question.marks else attack_of(cell)
            strangers = claims.setdefault((cell.owner.text, cell.method.text, attack), {})
            strangers[(cell.other_model or cell.attack[0]).text] = question
    model = functools.cache(functools.partial(architecture_at, plan))
    methods = {question.cell.method.text: question.cell.method for question in plan.questions}
    why = functools.cache(lambda name, *models: _unreadable(methods[name], *models))
    found = list[Reach]()
    for (_, name, attack), strangers in claims.items():
        claim = next(iter(strangers.values()))
        owner, suspects = model(claim.owner), {s: model(q.suspect) for s, q in strangers.items()}
        if all(_alike(owner, suspect) for suspect in suspects.values()):
            continue
        said = {s: why(name, owner, suspect) for s, suspect in suspects.items()}
        read = [s for s, reason in said.items() if not reason]
        unknown = sum(said[s] is None for s in read)
        models = {s: strangers[s].cell.other_model for s in read}
        draws = {(model and family(model)) or s for s, model in models.items()}
        counts = len(said), len(read), unknown, len(draws)
        found.append(Reach(claim.cell.owner.name, methods[name], attack != WHOLE, *counts))
    return found


def _unreadable(method: Spec, owner: Architecture, suspect: Architecture) -> str | None:
    """Say why a suspect cannot be read; empty if it can, None if nobody knows before a run."""
    plugin = METHODS.build(method.name, method.args)
    if method.align != "none" and not _alike(owner, suspect):
        return None  # aligned it may take the owner's shape
    if plugin.needs in Access.BLACK_BOX:
        return _without_head(method.args.get("readout", "native"), owner, suspect)
    if not isinstance(plugin, SaysUnreadable):
        return "" if _alike(owner, suspect) else None
    try:
        with torch.device("meta"), torch.no_grad():
            return plugin.unreadable(unweighted(owner), unweighted(suspect))
    except Incompatible as error:
        return str(error)


def _alike(one: Architecture, other: Architecture) -> bool:
    return replace(one, head=other.head) == other


@functools.cache
def _without_head(how: Readout, owner: Architecture, suspect: Architecture) -> str:
    """Say why nothing answers for a suspect in the owner's classes; empty if a head does."""
    none = Images(torch.empty(0, 3, 1, 1, dtype=torch.uint8), None, 0, ())
    try:
        if how != "relinear":  # which fits whatever gives features
            head_for(how, unweighted(suspect), unweighted(owner), none, torch.device("meta"))
    except Incompatible as error:
        return str(error)
    return ""


def said_of(plan: Plan) -> list[str]:
    """Say whom methods can read, in a line for all methods of an owner of which the same is so."""
    lines: dict[tuple[str, str], dict[str, Spec]] = {}
    found = reaches(plan)
    for reach in found:
        told = lines.setdefault((reach.owner, reach.text(plan.suite.alpha)), {})
        told[reach.method.text] = reach.method
    label = labelled(reach.method for reach in found)
    return [
        f"{owner}: {', '.join(map(label, methods.values()))}: {text}"
        for (owner, text), methods in lines.items()
    ]


class _Estimates:
    """Answers for one plan and one store; measures every architecture and reads every list once."""

    guessed = functools.cached_property(lambda self: guesses(self.plan, self._store))
    pace = functools.cached_property(lambda self: pace(self._store))

    def __init__(self, plan: Plan, store: Store, device: str | None) -> None:
        self.plan, self.device, self._store = plan, device, store
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
        if passes is None or not passes.work:
            return None if passes is None else 0.0
        if self.device is not None:
            speed = BFLOAT16_PEAKS[self.device] * UTILISATION
            return passes.work * self.shape(stage).operations / speed
        found = self._model(began(stage, self.plan.stages))
        pace = self.pace.get((found.name, found.image_size))
        return None if pace is None else passes.work * pace

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
