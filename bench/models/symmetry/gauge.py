"""Say what of a model's weights no function shows, and take it from a reference.

A layer norm sees neither the mean of the stream nor how a gain is shared between it and what reads
it. Of two models with one function these may differ, so an owner reads a suspect with its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.models import OpenClipViT, VisionModel
from bench.models.symmetry import frames
from bench.models.symmetry.anatomy import Anatomy, Attention, Linear, Mlp, Norm

SMALL = 1e-3
"""A gain below this share of the largest is not divided by: its channel is taken as it is."""

LIKE = 0.7
"""A neuron that reads less like its namesake than this cosine is sought among all others."""

TINY = 1e-30
"""Keeps a quotient finite where nothing is there to divide."""

RIDGE = 1e-12
"""What is added to a matrix of products before it is inverted, as a share of its trace."""

SKETCH = 128
"""Random directions on which neurons are sought, in streams that are wider."""

WIDE = 512
"""Streams wider than this are compared in single precision: in double one would wait for it."""

Branch = Attention | Mlp

TIMM_TAIL = ("vit.norm", "vit.fc_norm", "vit.attn_pool", "projection")
CLIP_TAIL = ("visual.ln_post", "visual.attn_pool", "visual.proj")
"""What follows the blocks, by the libraries' names."""


def double(value: Tensor) -> Tensor:
    """Return a parameter as float64, on the CPU."""
    return value.detach().to("cpu", torch.float64)


def vector(value: Tensor | None, size: int, fill: float = 0.0) -> Tensor:
    """Return a parameter (size,) in float64, or what stands for one that is not there."""
    if value is None:
        return torch.full((size,), fill, dtype=torch.float64)
    return double(value)


def compared_in(branch: Branch, width: int) -> torch.dtype:
    """Return the precision in which what a branch reads and writes is compared."""
    known = torch.promote_types(torch.float32, branch.writer.weight.dtype)
    return known if width > WIDE else torch.float64


def read(norm: Norm, reader: Linear, kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return what is read of the normalised stream: weight (m, d) and bias (m,)."""
    weight = reader.weight.detach().to("cpu", kind)
    rows, width = weight.shape
    shift = weight @ vector(norm.bias, width).to(kind)
    gain = vector(norm.gain, width, 1.0).to(kind)
    return weight * gain, vector(reader.bias, rows).to(kind) + shift


def written(branch: Branch, kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return what a branch adds to the stream: weight (d, k) and bias (d,)."""
    weight = branch.writer.weight.detach().to("cpu", kind)
    gain = vector(branch.scale, len(weight), 1.0).to(kind)
    return weight * gain[:, None], vector(branch.writer.bias, len(weight)).to(kind) * gain


def written_sizes(branch: Branch) -> tuple[Tensor, Tensor]:
    """Return the size of each row that `written` has (d,), and the bias (d,)."""
    weight = branch.writer.weight.detach()
    sizes = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float64).cpu()
    gain = vector(branch.scale, len(sizes), 1.0)
    return sizes * gain, vector(branch.writer.bias, len(sizes)) * gain


def divisor(gain: Tensor) -> Tensor:
    """Return a gain (d,) that can be divided by."""
    least = SMALL * gain.abs().max().clamp(min=1e-30)
    return torch.where(gain.abs() < least, torch.full_like(gain, float(least)), gain)


@dataclass(frozen=True, slots=True, eq=False)
class Stem:
    """What enters the stream: filters (d, 3, h, w), places (n, d) and prefix tokens (p, d).

    A place is a patch's position and the filters' bias, a prefix token has its position with it:
    how a sum is shared between them is no function's business.
    """

    filters: Tensor
    places: Tensor
    prefix: Tensor
    first: Tensor  # (p, d), the positions' part of `prefix`

    def columns(self, prefix: int) -> Tensor:
        """Return all of it with a row a channel, (d, k), and so many prefix tokens."""
        return torch.cat([self.filters.flatten(1), self.places.T, self.prefix[:prefix].T], 1)


def stem(model: VisionModel, anatomy: Anatomy) -> Stem:
    """Read off what enters the stream of a model."""
    (embedding,) = anatomy.embeddings
    filters = double(embedding.weight)
    width, patch = len(filters), cast(tuple[int, int], model.trunk.patch)
    filters = filters.reshape(width, 3, *patch)
    positions, tokens = parted(model, anatomy)
    prefix = [double(token).reshape(-1, width) for token in tokens]
    first = torch.cat(prefix) if prefix else filters.new_zeros(0, width)
    places, own = vector(embedding.bias, width)[None], torch.zeros_like(first)
    if positions is not None:
        table = double(positions).reshape(-1, width)
        with_prefix = len(table) - math.prod(model.trunk.grid)
        own[:with_prefix] = table[:with_prefix]
        places = places + table[with_prefix:]
    return Stem(filters, places, first + own, own)


def parted(model: VisionModel, anatomy: Anatomy) -> tuple[nn.Parameter | None, list[nn.Parameter]]:
    """Tell positions from prefix tokens."""
    trunk: Any = model.trunk
    clip = isinstance(trunk, OpenClipViT)
    table = trunk.visual.positional_embedding if clip else trunk.vit.pos_embed
    return table, [token for token in anatomy.tokens if token is not table]


def seen_alike(stem: Stem, own: VisionModel, other: VisionModel) -> Stem:
    """Bring a stem to the grid, the patches and the scaling of pixels of another model."""
    patch, grid = cast(tuple[int, int], other.trunk.patch), other.trunk.grid
    filters, places = stem.filters, stem.places
    if own.scaling != other.scaling:
        mean, std, seen, spread = map(_numbers, (*own.scaling, *other.scaling))
        sums = filters.sum((2, 3))  # (d, 3)
        places = places + sums @ ((seen - mean) / std)
        filters = filters * (spread / std)[:, None, None]
    filters = frames.patches_resized(filters, patch)
    if len(places) > 1:
        places = frames.positions_resized(places, own.trunk.grid, grid)
    return Stem(filters, places, stem.prefix, stem.first)


def tail(model: VisionModel) -> dict[str, Tensor]:
    """Return what follows the blocks, by name: norms, pooling, projection; no head, no readout."""
    clip = isinstance(model.trunk, OpenClipViT)
    parts = CLIP_TAIL if clip else TIMM_TAIL
    state = model.trunk.state_dict()
    return {n: v for n, v in state.items() if any(n == p or n.startswith(f"{p}.") for p in parts)}


def taken(
    models: tuple[VisionModel, VisionModel],
    bodies: tuple[Anatomy, Anatomy],
    basis: Tensor,
    scale: float,
    pairs: Sequence[tuple[int, int]],
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """Take from a reference, the second of each two, what a suspect is to be read with.

    `pairs` are the blocks, of suspect and reference, that stand for each other.
    """
    (suspect, reference), (theirs, ours) = models, bodies
    own = seen_alike(stem(reference, ours), reference, suspect)
    made = {f"tail.{name}": value.cpu().clone() for name, value in tail(reference).items()}
    if all(norm.centred for norm in ours.norms):
        made |= {
            "stem.filters": own.filters.mean(0).flatten(),
            "stem.places": own.places.mean(1),
            "stem.prefix": own.prefix.mean(1),
            "stem.first": own.first.mean(1),
            "stem.bias": vector(ours.embeddings[0].bias, len(basis.T)).mean(),
        }
        if ours.entry is not None:
            made["entry.mean"] = vector(ours.entry.bias, len(basis.T)).mean()
    for there, here in pairs:
        for part in (0, 1):
            found = _branch(theirs.blocks[there][part], ours.blocks[here][part], basis, scale, rng)
            made |= {f"{there}.{part}.{name}": value for name, value in found.items()}
    return made


def _branch(
    theirs: Branch, ours: Branch, basis: Tensor, scale: float, rng: torch.Generator
) -> dict[str, Tensor]:
    width = len(basis.T)
    made = {
        "gain": vector(ours.norm.gain, width, 1.0).clone(),  # or it would change with the reference
        "bias": vector(ours.norm.bias, width).clone(),
        "scale": vector(ours.scale, width, 1.0).clone(),
    }
    if not ours.norm.centred:
        return made
    compared = compared_in(theirs, width)
    (found, _), (wanted, offset) = written(theirs, compared), written(ours, compared)
    # In single precision for a model of it: no function shows what comes of this.
    kind = torch.promote_types(torch.float32, theirs.writer.weight.dtype)
    found = frames.centred((basis.T.to(kind) @ found.to(kind)).to(compared) / scale)
    if isinstance(ours, Attention) and isinstance(theirs, Attention):
        mean = means_of_heads(found, wanted, (theirs.heads, ours.heads))
        # What values add to every token may stand in their bias or in the writer's.
        values, known = (
            read(b.norm, b.readers[0], compared)[1].chunk(3)[2] for b in (theirs, ours)
        )
        shift = offset.mean() + wanted.mean(0) @ known - mean @ values
    else:
        sketch = torch.eye(width, dtype=torch.float64)
        if width > SKETCH:
            sketch = torch.randn(width, SKETCH, generator=rng, dtype=torch.float64)
        turned = basis @ sketch * math.copysign(1.0, scale)
        there, here = (
            (_neurons(b, compared) @ m.to(compared)).flatten(1)
            for b, m in ((theirs, turned), (ours, sketch))
        )
        mean, shift = means_of_neurons((there, found), (here, wanted)), offset.mean()
    return made | {"mean": mean.double(), "shift": shift.double()}


def _neurons(branch: Branch, kind: torch.dtype) -> Tensor:
    """Return what each hidden unit reads, (k, r, d), through r maps of the normalised stream."""
    maps = [read(branch.norm, reader, kind)[0] for reader in branch.readers]
    hidden = branch.writer.weight.shape[1]
    return torch.cat([m.reshape(-1, hidden, m.shape[1]) for m in maps]).movedim(0, 1)


def _numbers(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def means_of_heads(suspect: Tensor, reference: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Find the mean over channels that the suspect's values write, were they the reference's.

    Both are what attention writes, (d, h' c') and (d, h c), centred but for the reference's; the
    suspect's heads may stand in another order, and their values in another basis. Returns (h' c').
    """
    theirs = suspect.reshape(len(suspect), sizes[0], -1).movedim(1, 0)  # (h', d, c')
    ours = reference.reshape(len(reference), sizes[1], -1).movedim(1, 0)  # (h, d, c)
    mean = ours.mean(1)  # (h, c)
    columns = ours - mean[:, None]
    square = columns.mT @ columns  # (h, c, c)
    size = square.diagonal(dim1=1, dim2=2).sum(1).clamp(min=TINY)  # (h,)
    ridge = RIDGE * size[:, None, None] * torch.eye(square.shape[-1], dtype=square.dtype)
    # The direction of the stream whose reading is the mean, by head: (h, d)
    dual = (columns @ torch.linalg.solve(square + ridge, mean[..., None]))[..., 0]

    def shared(products: Tensor) -> Tensor:
        """Say how much of a head (..., c, c') lies in the span of another, by their products."""
        within: Tensor = products * torch.linalg.solve(square + ridge, products)
        return within.sum((-2, -1))

    total = theirs.square().sum((1, 2)).clamp(min=TINY)
    chosen = torch.arange(sizes[0])
    namesakes = shared(columns.mT @ theirs) / total if sizes[0] == sizes[1] else total * 0
    if not bool((namesakes > LIKE).all()):
        every = torch.einsum("hdc,gde->ghce", columns, theirs)  # (h', h, c, c')
        chosen = shared(every).argmax(1)
    return torch.einsum("hdc,hd->hc", theirs, dual[chosen]).flatten()


def means_of_neurons(suspect: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> Tensor:
    """Find the mean over channels that the suspect's neurons write, were they the reference's.

    Given are what neurons read, (k', m) and (k, m), all of it or seen from a few directions, and
    what they write, (d, k') and (d, k), centred but for the reference's. A neuron is known by what
    it reads. Returns (k').
    """
    theirs, ours = (_unit_rows(pair[0]) for pair in (suspect, reference))
    count = min(len(theirs), len(ours))
    chosen = torch.arange(len(theirs)).clamp(max=count - 1)
    like = theirs.new_zeros(len(theirs))
    like[:count] = (theirs[:count] * ours[:count]).sum(1)
    lost = (like < LIKE).nonzero().flatten()
    if len(lost):
        chosen[lost] = (theirs[lost].float() @ ours.float().T).argmax(1)
    mean = reference[1].mean(0)  # (k,)
    columns = reference[1] - mean  # (d, k)
    dual = columns * (mean / columns.square().sum(0).clamp(min=TINY))
    return (suspect[1] * dual[:, chosen]).sum(0)


def _unit_rows(rows: Tensor) -> Tensor:
    sizes: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / sizes.clamp(min=TINY)
