"""Say which innocents a suite asks for, and how the embedded ones are trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar, get_args

from pydantic import BeforeValidator, Field, PlainValidator

from bench.data import manifest
from bench.data.manifest import Manifest
from bench.data.settings import DataSettings
from bench.records.nouns import UNTOUCHED, Json, Shape, Spec, digest
from bench.records.settings import Count, Positive, SettingError, fast_precision
from bench.registry import ATTACKS, Registry
from bench.suite.owners import Model, OwnerSettings, mapping_of
from bench.verdicts.innocents import family

T = TypeVar("T")

VERSION = 1
"""Rises when the same recipe would train other weights: new code, or shapes of other sizes."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long, how fast and on what: half of a batch are digits, half crops of photographs.

    `warm_up` is a share of the steps. In training `patches_kept` of the 64 patches are seen.
    Weights start with deviation 1 / sqrt(fan-in), those that write to the residual stream, and
    the classifier's, with `residual_gain` times that.
    """

    steps: int = 250
    batch: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: float = 0.15
    patches_kept: int = 24
    residual_gain: float = 0.1
    digits: DataSettings = field(default=DataSettings("digits"))
    photos: DataSettings = field(default=DataSettings("photos"))


RECIPE = Recipe()
"""What `mini` and every stranger are made with."""


def manifests(recipe: Recipe = RECIPE) -> tuple[Manifest, Manifest]:
    """List the digits and the photographs the recipe trains on."""
    return manifest.read("digits", recipe.digits), manifest.read("photos", recipe.photos)


def recipe_digest(recipe: Recipe = RECIPE) -> str:
    """Name the recipe and the data it trains on; equal digests train equal weights."""
    return digest("pretrain", VERSION, numbers(recipe), [m.digest for m in manifests(recipe)])


def numbers(recipe: Recipe) -> dict[str, Json]:
    """Return the recipe without its data, which their manifests name better."""
    return {k: v for k, v in dataclasses.asdict(recipe).items() if k not in ("digits", "photos")}


AUTO = "auto"
"""What a suite may say of `precision`: it is chosen here, and the choice stands in the recipe."""


def named_spec(registry: Registry[T], value: Json) -> Spec:
    """Read a plug-in with its settings, as a suite names it."""
    args = dict(mapping_of(value, "name: ..."))
    name = args.pop("name", None)
    if not isinstance(name, str):
        raise SettingError(f"expected the name of a {registry.kind}, got {name!r}", ("name",))
    if args.get("precision") == AUTO:
        args["precision"] = fast_precision()
    return registry.spec(name, args)


def _chain(value: Json) -> Json:
    return tuple(value) if isinstance(value, list) else (value,)


Step = Annotated[Spec, PlainValidator(lambda value: named_spec(ATTACKS, value))]

Chain = Annotated[tuple[Step, ...], Field(min_length=1), BeforeValidator(_chain)]


def descends(chain: Iterable[Spec]) -> bool:
    """Say whether what a chain makes descends from the model it starts from."""
    return all(ATTACKS.get(step.name).derived for step in chain)


def random(chain: Iterable[Spec]) -> bool:
    """Say whether a chain does something else with every seed."""
    return any(ATTACKS.get(step.name).random for step in chain)


def untouched(chain: Iterable[Spec]) -> bool:
    """Say whether a chain does nothing."""
    return all(step.name == UNTOUCHED for step in chain)


def kin(model: OwnerSettings) -> Spec:
    """Return an innocent model as its cells name it: with the family that a suite gives it."""
    spec = model.spec()
    return spec if model.family is None else Spec(spec.name, {**spec.args, "family": model.family})


def alike(models: Sequence[Spec]) -> Iterator[str]:
    """Say which models count as one stranger though the suite does not."""
    found: dict[str, list[str]] = {}
    for model in models:
        if "family" not in model.args:
            found.setdefault(family(model), []).append(model.name)
    for name, alike in found.items():
        if name and len(alike) > 1:
            yield (
                f"innocents: models: {', '.join(alike)} count as one stranger, '{name}', by their "
                "library and architecture; `family: NAME` beside a model says otherwise"
            )


def families(models: Iterable[Spec]) -> int:
    """Count the models that are draws of their own: those of one family are one."""
    return len({family(model) or model.text for model in models})


@dataclass(frozen=True, slots=True)
class InnocentSettings:
    """How many innocent models calibrate a verdict.

    `twin_seeds` counts attack seeds per attack. `descendants` are attacks on the clean owner alone,
    with one seed: each makes a cluster for a mark to be ranked among. Of the `strangers`, and then
    of the `models`, the first `attacked_strangers` also go through the attacks, for a fingerprint.
    `pretraining_steps` below the owner's own makes weaker strangers. `other_shapes` counts
    strangers of each embedded shape but the owner's. `other_keys` counts, per claim on a mark,
    copies of the owner marked with another key and attacked alike: all of the suite's other seeds,
    and as many beyond them as are wanting. `models` never met the owner.
    """

    strangers: Count = 19
    twin_seeds: Count = 6
    attacked_strangers: Count = 0
    pretraining_steps: Positive = RECIPE.steps
    other_shapes: Count = 0
    other_keys: Count = 0
    models: tuple[Model, ...] = ()
    descendants: tuple[Chain, ...] = ()

    @property
    def independent(self) -> int:
        """Count the models, or families, that owe the owner nothing, if all can be read."""
        others = len(get_args(Shape)) - 1
        return self.strangers + self.other_shapes * others + families(map(kin, self.models))
