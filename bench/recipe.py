"""Say how the embedded owner `mini` and its strangers are trained, in numbers a key can carry."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from bench import manifest
from bench.manifest import DataSettings, Manifest
from bench.types import digest

VERSION = 1
"""Rises when the same recipe would train other weights: new code, or another shape of `mini`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long, how fast and on what: half of a batch are digits, half crops of photographs.

    `warm_up` is a share of the steps; of the 64 patches `patches_kept` are seen in training, which
    makes it cheaper and the features better; `gain` scales the initial weights, whose deviation is
    gain / sqrt(fan-in).
    """

    steps: int = 600
    batch: int = 16
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warm_up: float = 0.15
    patches_kept: int = 16
    gain: float = 1.0
    digits: DataSettings = field(default=DataSettings("digits"))
    photos: DataSettings = field(default=DataSettings("photos"))


RECIPE = Recipe()
"""What `mini` and every stranger are made with."""


def manifests(recipe: Recipe = RECIPE) -> tuple[Manifest, Manifest]:
    """List the digits and the photographs the recipe trains on."""
    return manifest.read("digits", recipe.digits), manifest.read("photos", recipe.photos)


def recipe_digest(recipe: Recipe = RECIPE) -> str:
    """Name the recipe and the data it trains on; equal digests train equal weights."""
    data = [listed.digest for listed in manifests(recipe)]
    return digest("pretrain", VERSION, dataclasses.asdict(recipe), data)
