"""Fit the basis of one transformer to another's: by embeddings, by blocks, by activations.

A fit says which rotation and which scale bring the reference's stream to the suspect's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.data.images import Images
from bench.models import VisionModel, clone
from bench.models.symmetry import frames, gauge
from bench.models.symmetry.anatomy import Anatomy, Attention, Mlp, Norm
from bench.models.symmetry.frames import Fit

DYNAMIC_IMAGES = 96
"""Images whose activations are compared, of the owner's; no trigger may be among them."""

INERT = 0.01
"""A block that adds less than this share of what the strongest adds is none."""

PROBES = 32
"""Random directions that two blocks are compared on."""

FAR = 0.5
"""A residual above this says that what was compared was made anew, or is another's."""

TURNS = 6
"""Turns, at most, in which attention adds to what the embedding says of the basis."""

ASKED = 48
"""Channels of the reference, about, that attention is asked about in a turn."""

STILL = 1e-5
"""A turn that moves the basis less than this, in the mean, was the last."""

EXACT = 1e-5
"""What fits better than this counts as if it fitted so: no evidence outweighs all other."""

ROUNDS = 60
"""Turns, at most, in which blocks alone say what the basis is."""

SETTLED = 1e-5
"""A turn that brings less than this was the last."""

BATCH = 32
"""Images that are looked at together."""

TOKENS = 64
"""Tokens of an image that are compared, about, evenly spaced."""


def by_embedding(found: Tensor, wanted: Tensor, theirs: Anatomy, ours: Anatomy) -> Fit:
    """Fit the basis to the columns (d', k) and (d, k) of two embeddings."""
    if ours.entry is not None and theirs.entry is not None:
        entries = [_entry(theirs.entry, len(found)), _entry(ours.entry, len(wanted))]
        fit = frames.permuted([found, entries[0]], [wanted, entries[1]])
        scale = frames.scale_of(entries[0], fit.basis @ entries[1])
        return dataclasses.replace(fit, scale=scale)
    return frames.rotated(found, wanted, all(norm.centred for norm in ours.norms))


def refined(
    fit: Fit, columns: tuple[Tensor, Tensor], bodies: tuple[Anatomy, Anatomy], kept: Sequence[int]
) -> Fit:
    """Let attention say what the columns (d', k) and (d, k) of two embeddings leave open.

    An embedding has few strong directions. In all others a copy that was pruned or trained differs
    by more than they hold, and a rotation that fits them fits the difference. What attention makes
    of a direction is known in all of them. Each matrix weighs by how well it fits: its columns over
    its squared residual, as in least squares of unequal errors.

    A turn asks about other channels of the reference, so that no few of them are fitted. `kept`
    are the suspect's blocks that do something.
    """
    fixed, basis = all(norm.centred for norm in bodies[1].norms), fit.basis
    found, wanted = map(frames.centred, columns) if fixed else columns
    blocks = kept, range(len(bodies[1].blocks))
    summed = len(blocks[0]) != len(blocks[1])  # no telling which stands for which
    inside = len(found) == len(wanted)  # a wider stream is read by shares of each channel
    kind = gauge.compared_in(bodies[1].blocks[0][0], len(wanted))  # one for both
    there, here = (
        _attentions(body, which, inside, fixed, kind)
        for body, which in zip(bodies, blocks, strict=True)
    )
    share = max(1, len(wanted) // ASKED)
    for turn in range(TURNS):
        part, seen = slice(turn % share, None, share), basis.to(kind)
        answers = (
            [found, *_answered(there, part, seen, summed)],
            [wanted, *_answered(here, part, None, summed)],
        )
        products = torch.zeros_like(basis)
        for one, other in zip(*(map(frames.unit, side) for side in answers), strict=True):
            apart = float((one - basis.to(one) @ other).norm())
            products += one.shape[1] / max(apart, EXACT) ** 2 * (one @ other.T)
        before, basis = basis, frames.nearest_turn(products, fixed)
        if (basis - before).norm() < STILL * basis.norm():
            break
    return dataclasses.replace(fit, basis=basis, scale=frames.scale_of(found, basis @ wanted))


def _attentions(
    body: Anatomy, kept: Sequence[int], inside: bool, fixed: bool, kind: torch.dtype
) -> list[list[tuple[Tensor, Tensor]]]:
    """List, for each kind of product, its two factors in every block that is kept.

    What attention writes of what it reads; `inside` adds its transpose and queries with keys, whose
    rows are read. Means that no norm sees are taken out.
    """
    kinds = list[list[tuple[Tensor, Tensor]]]()
    for attention, _ in (body.blocks[i] for i in kept):
        reader = gauge.read(attention.norm, attention.qkv, kind)[0]
        writer = gauge.written(attention, kind)[0]
        if fixed:
            reader, writer = reader - reader.mean(1, keepdim=True), frames.centred(writer)
        queries, keys, values = reader.chunk(3)
        made = [(writer, values)]
        if inside:
            made += [(values.T, writer.T), (queries.T, keys), (keys.T, queries)]
        kinds.append(made)
    return [list(kind) for kind in zip(*kinds, strict=True)]


def _answered(
    kinds: Sequence[Sequence[tuple[Tensor, Tensor]]],
    part: slice,
    basis: Tensor | None,
    summed: bool,
) -> list[Tensor]:
    """Say what products make of some of the reference's channels, (d, s), of each or their sum.

    `basis` brings those channels to these products' stream; without one they are its own.
    """

    def seen(reader: Tensor) -> Tensor:
        return reader[:, part] if basis is None else reader @ basis[:, part]

    found = [[left @ seen(right) for left, right in kind] for kind in kinds]
    if summed:
        return [torch.stack(kind).sum(0) for kind in found]
    return [answer for kind in found for answer in kind]


def by_blocks(start: Fit, theirs: Anatomy, ours: Anatomy) -> Fit:
    """Fit the basis to products of what blocks write and read, beginning from another fit.

    A product M (d, d) of the reference's is R M R^T of a copy's. With R known on one side it is
    found on the other, and so on in turns. Where an embedding was made anew and the blocks were
    kept, this comes to the basis from a start that is hardly better than chance.
    """
    there, here = ([frames.unit(m) for m in _products(body)] for body in (theirs, ours))
    fixed, known = all(norm.centred for norm in ours.norms), torch.cat(here, 1)
    fit, before = start, math.inf
    for _ in range(ROUNDS):
        seen = torch.cat([m @ fit.basis for m in there], 1)
        if ours.entry is None:
            fit = frames.rotated(seen, known, fixed)
        else:
            fit = frames.measured(seen, known, frames.assigned(seen @ known.T))
        if before - fit.residual < SETTLED:
            break
        before = fit.residual
    wide, width = fit.basis.shape
    found, wanted = _products(theirs)[0] @ fit.basis, fit.basis @ _products(ours)[0]
    scale = math.sqrt(wide / width) * frames.scale_of(found, wanted)
    return dataclasses.replace(start, basis=fit.basis, scale=scale, residual=fit.residual)


def _products(body: Anatomy) -> list[Tensor]:
    """Sum up over all blocks what attention writes of what it reads, and queries with keys.

    These, (d, d), and their transposes: inner freedoms and blocks that do nothing leave them alone.
    """
    mixing, asking = _mixing(body), torch.zeros((), dtype=torch.float64)
    if all(norm.centred for norm in body.norms):
        mixing = frames.centred(mixing)
    for attention, _ in body.blocks:
        queries, keys, _ = gauge.read(attention.norm, attention.qkv)[0].chunk(3)
        asking = asking + queries.T @ keys
    return [mixing, mixing.T, asking, asking.T]


def _entry(norm: Norm, width: int) -> Tensor:
    """Return gain and centred bias of the norm that a stream starts from, (d, 2)."""
    bias = gauge.vector(norm.bias, width)
    return torch.stack([gauge.vector(norm.gain, width, 1.0), bias - bias.mean()], 1)


def _mixing(body: Anatomy) -> Tensor:
    """Sum up what attention writes of what it reads, (d, d), over all heads and blocks.

    Heads, their bases, copies of them and blocks that do nothing leave it as it is.
    """
    return sum(
        (gauge.written(a)[0] @ gauge.read(a.norm, a.qkv)[0].chunk(3)[2] for a, _ in body.blocks),
        torch.zeros((), dtype=torch.float64),
    )


def by_activations(found: Tensor, wanted: Tensor, body: Anatomy) -> Fit:
    """Fit the basis to activations (d', k) and (d, k) of the same images."""
    fixed = all(norm.centred for norm in body.norms)
    if fixed:
        found, wanted = frames.centred(found), frames.centred(wanted)
    # Few tokens are so large that they would decide alone.
    theirs, ours = (_spread(tokens / tokens.norm(dim=0)) for tokens in (found, wanted))
    if body.entry is not None:
        basis = frames.assigned(theirs @ ours.T)
        fit = frames.measured(theirs, ours, basis)
    else:
        fit = frames.rotated(theirs, ours, fixed)
    return dataclasses.replace(fit, scale=frames.scale_of(found, fit.basis @ wanted))


def _spread(tokens: Tensor) -> Tensor:
    """Take out of tokens (d, k) what all have in common."""
    return tokens - tokens.mean(1, keepdim=True)


@torch.no_grad()
def activations(model: VisionModel, images: Images, block: int, device: torch.device) -> Tensor:
    """Return what enters a block, (d, k), a column a token; of long sequences only some tokens."""
    net, chosen = clone(model).to(device), list(range(min(len(images), DYNAMIC_IMAGES)))
    seen = list[Tensor]()
    for start in range(0, len(chosen), BATCH):
        pixels = images.batch(torch.tensor(chosen[start : start + BATCH]), device)
        tokens = net.run_blocks(net.embed(pixels), 0, block)  # (b, n, d)
        step = -(-tokens.shape[1] // TOKENS)
        seen.append(tokens[:, ::step].flatten(0, 1).double().cpu())
    return torch.cat(seen).T


def live(body: Anatomy) -> list[int]:
    """List the blocks that add anything to the stream; all, if none does."""
    added = [
        float(sum(part.square().sum() for b in block for part in gauge.written_sizes(b)))
        for block in body.blocks
    ]
    return [i for i, size in enumerate(added) if size >= INERT**2 * max(added)]


def matched(
    theirs: Anatomy, ours: Anatomy, kept: Sequence[int], basis: Tensor, rng: torch.Generator
) -> tuple[int | None, ...]:
    """Find for each block of the reference the suspect's that does the same, in order."""
    if len(kept) == len(ours.blocks):
        return tuple(kept)
    probes = torch.randn(len(basis.T), PROBES, generator=rng, dtype=torch.float64)
    there = [_answers(theirs.blocks[i], basis, probes) for i in kept]
    here = [_answers(block, None, probes) for block in ours.blocks]
    likeness = torch.stack([torch.stack([(a * b).sum() / len(a) for b in here]) for a in there])
    found = frames.depths_matched(likeness)
    return tuple(None if i is None else kept[i] for i in found)


def _answers(block: tuple[Attention, Mlp], basis: Tensor | None, probes: Tensor) -> Tensor:
    """Say what three products of a block's weights make of probes (d, p), each of norm 1.

    Queries with keys, values with what they write, and an MLP as if it were linear: the freedoms
    of heads and neurons cancel in them (A. Zeng et al., "HuRef: human-readable fingerprint for
    large language models", NeurIPS 2024, section 3).
    """
    attention, mlp = block
    moved = probes if basis is None else basis @ probes
    queries, keys, values = gauge.read(attention.norm, attention.qkv)[0].chunk(3)
    first = gauge.read(mlp.norm, mlp.readers[0])[0]
    hidden = (first @ moved).reshape(-1, mlp.hidden, moved.shape[1]).sum(0)  # of a gated one two
    made = [
        queries.T @ (keys @ moved),
        gauge.written(attention)[0] @ (values @ moved),
        gauge.written(mlp)[0] @ hidden,
    ]
    return torch.stack([frames.unit(m if basis is None else basis.T @ m) for m in made])
