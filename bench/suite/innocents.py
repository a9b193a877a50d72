"""Say how the embedded models are trained, in numbers a key can carry."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import get_args

from bench.data import manifest
from bench.data.manifest import Manifest
from bench.data.settings import DataSettings
from bench.records.nouns import Json, Shape, digest
from bench.records.settings import Count, Positive
from bench.suite.owners import Model

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


@dataclass(frozen=True, slots=True)
class InnocentSettings:
    """How many innocent models calibrate a verdict.

    `twin_seeds` counts attack seeds per attack; of the `strangers`, the first `attacked_strangers`
    also go through the attacks. `pretraining_steps` below the owner's own makes weaker strangers.
    `other_shapes` counts strangers of each embedded shape but the owner's. `other_keys` counts,
    per claim on a mark, copies of the owner marked with another key: the suite's other seeds first,
    then seeds beyond them. `models` never met the owner: each is read as it comes.
    """

    strangers: Count = 19
    twin_seeds: Count = 6
    attacked_strangers: Count = 0
    pretraining_steps: Positive = RECIPE.steps
    other_shapes: Count = 0
    other_keys: Count = 0
    models: tuple[Model, ...] = ()

    @property
    def independent(self) -> int:
        """Count the models that owe the owner nothing, if all of them can be read."""
        others = len(get_args(Shape)) - 1
        return self.strangers + self.other_shapes * others + len(self.models)
