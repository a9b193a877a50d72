"""Make what plug-ins are checked on: the embedded owner, strangers like it, and two parties."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from bench.data import embedded, manifest
from bench.data.images import Images
from bench.data.images import load as load_
from bench.data.item import IGNORE
from bench.data.settings import DataSettings
from bench.models.building import build
from bench.models.heads import Head
from bench.models.surgery import with_head
from bench.models.vision import VisionModel, clone
from bench.models.weights import load_state
from bench.records.nouns import Access
from bench.suite.innocents import Recipe
from bench.training import loop, pretraining
from bench.training.probe import pooled_features
from bench.types import Context

STRANGERS = 4
"""Innocents a method is ranked against: the smallest p-value is 1 / 5."""

RECIPE = Recipe(steps=60)
"""How these strangers are trained: briefly, but on real images."""

CPU = torch.device("cpu")


def owner() -> VisionModel:
    """Return the embedded owner, `mini`; every call makes a new copy."""
    return clone(_mini())


def stranger(index: int = 0) -> VisionModel:
    """Return the index-th independently trained model of the owner's shape, as a new copy."""
    return clone(_cohort(index // STRANGERS)[index % STRANGERS])


def context(seed: int = 0, party: Literal["owner", "thief"] = "thief") -> Context:
    """Give one party its 64 digits, labelled and masked, 32 held out, and its own generator."""
    images, held_out = _pools()[party]
    return Context(CPU, torch.Generator().manual_seed(seed), images, held_out, stranger)


@functools.cache
def _mini() -> VisionModel:
    weights = load_file(embedded.WEIGHTS / "mini.safetensors")
    return load_state(build(pretraining.ARCHITECTURE), weights, "mini")


@functools.cache
def _cohort(number: int) -> list[VisionModel]:
    states = pretraining.cohort(number, STRANGERS, RECIPE)
    return [load_state(build(pretraining.ARCHITECTURE), state, "a stranger") for state in states]


@functools.cache
def _pools() -> Mapping[str, tuple[Images, Images]]:
    digits = manifest.read("digits", DataSettings("digits"))
    pools, size = manifest.split(digits), _mini().preprocess

    def some(indices: tuple[int, ...], count: int) -> Images:
        found = load_(digits, indices[:count], size)
        assert found.labels is not None
        # Where there is ink the pixels show the digit; what is not ink does not count.
        shown = found.labels[:, None, None].to(torch.uint8)
        masks = torch.where(found.pixels[:, 0] > 127, shown, IGNORE)
        return dataclasses.replace(found, masks=masks)

    return {
        "owner": (some(pools.owner_images, 64), some(pools.owner_held_out, 32)),
        "thief": (some(pools.thief_images, 64), some(pools.thief_held_out, 32)),
    }


def _owner_for(needs: Access) -> VisionModel:
    return _with_digits_head(owner()) if needs & Access.BLACK_BOX else owner()


@functools.cache
def _strangers_for(needs: Access) -> list[VisionModel]:
    models = [stranger(i) for i in range(STRANGERS)]
    return [_with_digits_head(m) for m in models] if needs & Access.BLACK_BOX else models


def _with_digits_head(model: VisionModel) -> VisionModel:
    """Give a model the label space that methods needing labels or logits ask about."""
    images, labels, rng = _pools()["owner"][0], _pools()["owner"][0].labels, context().rng
    made = with_head(model, Head(images.classes), rng)
    head, pooled = made.head, pooled_features(made, images, CPU)
    assert head is not None
    assert labels is not None

    def loss_of(chosen: Tensor) -> Tensor:
        return F.cross_entropy(head(pooled[chosen]), labels[chosen])

    settings = loop.Training(epochs=30, batch=32, lr=1e-2)
    loop.fit(head.parameters(), loss_of, len(images), settings, rng)
    return made
