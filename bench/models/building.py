"""Make a model from its architecture: untrained, blank, or as its library publishes it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bench.models.heads import make_head
from bench.models.libraries import LIBRARIES
from bench.models.surgery import reshape
from bench.models.vision import Architecture, VisionModel
from bench.records.nouns import UserError, digest

DRAWS = frozenset(
    {"uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_"}
    | {"erfinv_", "mul_", "add_", "clamp_"}
)
"""What the libraries make first weights with, in place."""


def build(
    architecture: Architecture, pretrained: bool = False, revision: str | None = None
) -> VisionModel:
    """Make a model of this architecture, untrained unless `pretrained` asks its library for more.

    Then it has the weights that its library publishes, of several those that `architecture.tag`
    names. `revision` is a commit of the hub, by default the latest.

    Raises:
        UserError: the library is not known, does not know the name, or publishes no such weights.

    """
    make = _maker(architecture, pretrained, revision)
    # The libraries draw first weights on the global generator: it is put back where it was.
    with torch.random.fork_rng(devices=[]), _quietly():
        plain = dataclasses.replace(
            architecture, dimensions=None, readout=None, eps=None, patch=None
        )
        if plain == architecture:
            return make(architecture).eval()
        own: Literal["own"] | None = "own" if architecture.head == "own" else None
        model = make(dataclasses.replace(plain, head=own))
        reshape(model, architecture)
        # A head of ours comes last: it is as wide as what it reads.
        if not isinstance(architecture.head, str | None):
            model.head = make_head(model.trunk, architecture.head, model.preprocess.size[0])
        return model.eval()


def _maker(
    architecture: Architecture, pretrained: bool, revision: str | None
) -> Callable[[Architecture], VisionModel]:
    library = LIBRARIES.get(architecture.library)
    who, published = f"{architecture.library} {architecture.name}", library.published
    if not pretrained:
        return library.make
    if published is None:
        raise UserError(f"{who}: expected weights that its library publishes, it publishes none")
    if revision and library.place(architecture) is None:
        raise UserError(
            f"{who}: revision: expected none, the library keeps these weights elsewhere than on "
            "the hub; leave it out, or give their `digest`"
        )
    return lambda architecture: published(architecture, revision)


def blank(architecture: Architecture) -> VisionModel:
    """Make a model whose weights are about to be loaded: nothing is drawn, what is there is junk.

    Drawing is most of the time it takes to make a large model.
    """
    with _Undrawn():
        return build(architecture)


class _Undrawn(TorchFunctionMode):
    """Leave parameters as they are where their values would be drawn; buffers are computed."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        given = kwargs or {}
        changed = args[0] if args else given.get("tensor")
        if func.__name__ in DRAWS and isinstance(changed, nn.Parameter):
            return changed
        return func(*args, **given)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep libraries from logging: open_clip calls every model unweighted before we load it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def randomised(architecture: Architecture, seed: int) -> VisionModel:
    """Make a model with the weights its library draws for an untrained one, fixed by `seed`."""
    with torch.random.fork_rng(devices=[]):
        # The libraries' initialisers take no generator: they get the global one, for a while.
        torch.default_generator.manual_seed(int(digest("random weights", seed), 16) >> 1)
        return build(architecture)
