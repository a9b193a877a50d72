"""Read off what enters a transformer's residual stream, as another model would have it.

Patch filters and the vectors added to them are a basis of the stream that every copy shares,
whatever was done to the channels: what is compared is written in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.models import OpenClipViT, VisionModel
from bench.models.symmetry import Anatomy, patches_resized, positions_resized, read
from bench.types import Incompatible, UserError

Size = tuple[int, int]

BASE = "the model that weights were trained on from, which proves nothing of a public one"
"""What a high score names, as tables say it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How images enter a model: `patch` and `grid` (height, width), and so many `prefix` tokens.

    `places` counts what is added to patches: one vector each, or one for all. `scaling` is the mean
    and the deviation that pixels are normalised with.
    """

    patch: Size
    grid: Size
    places: int
    prefix: int
    scaling: tuple[tuple[float, ...], tuple[float, ...]]

    def tensors(self) -> dict[str, Tensor]:
        """Return it as a secret keeps it."""
        numbers = [*self.patch, *self.grid, self.places, self.prefix]
        scaling = torch.tensor(self.scaling, dtype=torch.float64)
        return {"entry": torch.tensor(numbers), "scaling": scaling}

    @staticmethod
    def of(secret: Mapping[str, Tensor]) -> Entry:
        """Read back what `tensors` wrote."""
        a, b, c, d, places, prefix = secret["entry"].tolist()
        mean, std = (tuple(row) for row in secret["scaling"].tolist())
        return Entry((a, b), (c, d), places, prefix, (mean, std))


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What enters the stream: filters (d, 3, h, w), places (n, d) and prefix tokens (p, d).

    A place is the filters' bias and a patch's position, a prefix token has its position with it:
    how a sum is shared is no function's business. All are float64.
    """

    entry: Entry
    filters: Tensor
    places: Tensor
    prefix: Tensor

    def columns(self, like: Entry) -> tuple[Tensor, Tensor]:
        """Return it as a model with this entry would have it, (d, k), and which of k it has, (k,).

        Pixels are normalised alike, filters and positions resampled to that patch and grid. A
        prefix token that is not there, or places of one kind where the other has two, are none.
        """
        (mean, std), (seen, spread) = (
            torch.tensor(scaling, dtype=torch.float64)
            for scaling in (self.entry.scaling, like.scaling)
        )
        places = self.places + self.filters.sum((2, 3)) @ ((seen - mean) / std)
        filters = self.filters * (spread / std)[:, None, None]
        filters = patches_resized(filters, like.patch).flatten(1)  # (d, 3 h w)
        alike = (len(places) > 1) == (like.places > 1)
        if alike and len(places) > 1:
            places = positions_resized(places, self.entry.grid, like.grid)
        elif not alike:
            places = places.new_zeros(like.places, len(filters))
        prefix = self.prefix[: like.prefix]
        missing = like.prefix - len(prefix)
        parts = [filters, places.T, F.pad(prefix.T, (0, missing))]
        counts = torch.tensor([filters.shape[1], like.places, len(prefix), missing])
        known = torch.tensor([True, alike, True, False]).repeat_interleave(counts)
        return torch.cat(parts, 1), known


def anatomy(model: VisionModel) -> Anatomy:
    """Find the parts of a model.

    Raises:
        Incompatible: it is no transformer in whose parts the residual stream can be told.

    """
    try:
        found = read(model)
        _table(model)
    except UserError as error:
        raise Incompatible(str(error).partition("; ")[0]) from None
    (embedding,) = found.embeddings
    if embedding.weight.ndim != 4 or embedding.weight.shape[1] != 3:
        shape = tuple(embedding.weight.shape)
        raise Incompatible(f"expected patches cut by filters of 3 colours, got {shape}")
    return found


def embedding(model: VisionModel, parts: Anatomy) -> Embedding:
    """Read off what enters the stream of a model."""
    (patches,) = parts.embeddings
    filters, positions = _double(patches.weight), _table(model)
    width = len(filters)
    rest = [_double(token) for token in parts.tokens if token is not positions]
    prefix = torch.cat(
        [token.reshape(-1, width) for token in rest] or [filters.new_empty(0, width)]
    )
    bias = filters.new_zeros(width) if patches.bias is None else _double(patches.bias)
    places = bias[None]  # (1, d)
    if positions is not None:
        table = _double(positions).reshape(-1, width)
        first = len(table) - math.prod(model.trunk.grid)
        prefix = prefix + table[:first] if first else prefix
        places = places + table[first:]  # (n, d)
    patch = cast(Size, tuple(filters.shape[-2:]))
    entry = Entry(patch, model.trunk.grid, len(places), len(prefix), model.scaling)
    return Embedding(entry, filters, places, prefix)


def centred(values: Tensor, parts: Anatomy) -> Tensor:
    """Take out of every column (d, k) what the model's norms do not see: the mean, as a rule."""
    return values - values.mean(0) if parts.norms[0].centred else values


def _table(model: VisionModel) -> Tensor | None:
    """Return the positions that are added to tokens, if any are."""
    trunk: Any = model.trunk
    clip = isinstance(trunk, OpenClipViT)
    found: Tensor | None = trunk.visual.positional_embedding if clip else trunk.vit.pos_embed
    return found


def _double(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.float64)
