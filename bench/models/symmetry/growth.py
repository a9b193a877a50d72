"""Give a transformer more units, heads, channels or blocks than it needs; the function stays.

Source: H. Yan et al., "Rethinking white-box watermarks on deep learning models under neural
structural obfuscation", arXiv:2303.09732, section 4 (dummy neurons: zero, clique, split), for any
activation function. Heads, channels and blocks are worked out here.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from bench.models import Dimensions, SegmentationHead, TimmViT, VisionModel, clone, reshape
from bench.models.symmetry.anatomy import Attention, Mlp, dimensions, read
from bench.models.symmetry.inner import arrange, arrange_heads, split
from bench.models.symmetry.streams import map_stream
from bench.models.symmetry.turns import repeated
from bench.records.nouns import UserError

CLIQUE = 3
"""Neurons of a clique: equal, and their outputs cancel."""

Neurons = Literal["zero", "clique", "split"]
Heads = Literal["zero", "cancelling"]


def widen(model: VisionModel, times: int, rng: torch.Generator) -> VisionModel:
    """Repeat every channel of the residual stream, and split what reads it at random.

    Raises:
        UserError: no such transformer, or its library cannot keep a stream so wide.

    """
    r, undo = repeated(model.width, times, rng)
    return map_stream(model, r, undo=undo)


def add_blocks(model: VisionModel, count: int, at: int) -> VisionModel:
    """Put `count` blocks that add nothing before block `at`, or behind the last.

    They are copies of the block there, whose writers are zero.

    Raises:
        UserError: no such transformer, or it has no block `at`.

    """
    size = dimensions(model)
    depth = size.depth
    if not 0 <= at <= depth:
        raise UserError(f"expected a place from 0 to {depth} for new blocks, got {at}")
    made = clone(model)
    blocks: Any = made.blocks
    for _ in range(count):
        blocks.insert(at, copy.deepcopy(blocks[min(at, depth - 1)]))
    changed: dict[str, Any] = {"dimensions": dataclasses.replace(size, depth=depth + count)}
    head = model.architecture.head
    if isinstance(head, SegmentationHead):  # it reads what the same blocks put out
        moved = tuple(block + count if block >= at else block for block in head.blocks)
        changed["head"] = dataclasses.replace(head, blocks=moved)
    made.architecture = dataclasses.replace(model.architecture, **changed)
    with torch.no_grad():
        for block in read(made).blocks[at : at + count]:
            for branch in block:
                branch.writer.weight.zero_()
                if branch.writer.bias is not None:
                    branch.writer.bias.zero_()
    return made


def add_neurons(
    model: VisionModel, share: float, kind: Neurons, rng: torch.Generator
) -> VisionModel:
    """Give every MLP the share `share` of hidden units more, then permute all of them.

    "zero" draws units that nothing reads; a "clique" is equal units whose outputs cancel; "split"
    copies a unit and divides what it writes among the copies.

    Raises:
        UserError: no such transformer, a norm stands among hidden units, or too few are added.

    """
    size = dimensions(model)
    more = round(share * size.mlp)
    if more < (2 if kind == "clique" else 1):
        raise UserError(f"expected a share that makes a {kind} of neurons, got {share}; take more")
    if found := next((mlp.between for _, mlp in read(model).blocks if mlp.between), ""):
        raise UserError(f"expected nothing among hidden units, got {found}; choose another attack")
    made = _reshaped(model, dataclasses.replace(size, mlp=size.mlp + more))
    with torch.no_grad():
        for (_, old), (_, new) in zip(read(model).blocks, read(made).blocks, strict=True):
            _grow(old, new, kind, rng)
            order = torch.randperm(new.hidden, generator=rng)
            arrange(new, order.to(new.writer.weight.device))
    return made


def add_heads(model: VisionModel, count: int, kind: Heads, rng: torch.Generator) -> VisionModel:
    """Give every attention `count` heads more, then permute all of them.

    What "zero" heads find is read by nothing; "cancelling" ones are pairs that see and write the
    same, with opposite signs.

    Raises:
        UserError: no such transformer, its library has no place for them, or `count` is odd where
            heads come in pairs.

    """
    size = dimensions(model)
    if kind == "cancelling" and count % 2:
        raise UserError(f"expected an even count of cancelling heads, got {count}; take another")
    if not isinstance(model.trunk, TimmViT):
        raise UserError(
            f"expected heads whose number is free, got {model.architecture.name}, whose library "
            "has its attention as wide as the stream; choose another attack"
        )
    if found := next((each.between for each, _ in read(model).blocks if each.between), ""):
        raise UserError(f"expected nothing behind the values, got {found}; choose another attack")
    made = _reshaped(model, dataclasses.replace(size, heads=size.heads + count))
    with torch.no_grad():
        for (old, _), (new, _) in zip(read(model).blocks, read(made).blocks, strict=True):
            _grow_heads(old, new, kind, rng)
            order = torch.randperm(new.heads, generator=rng)
            arrange_heads(new, order.to(new.qkv.weight.device))
    return made


def _reshaped(model: VisionModel, size: Dimensions) -> VisionModel:
    """Copy a model into a shape with room for more, which is yet to be filled."""
    made = clone(model)
    reshape(made, dataclasses.replace(model.architecture, dimensions=size))
    return made


def _grow(old: Mlp, new: Mlp, kind: Neurons, rng: torch.Generator) -> None:
    before, more = old.hidden, new.hidden - old.hidden
    device = old.writer.weight.device
    group = torch.arange(more)
    if kind == "clique":  # what is left over joins the last
        group = (group // CLIQUE).clamp(max=max(more // CLIQUE, 1) - 1)
    groups = int(group[-1]) + 1
    copied = torch.randint(before, (groups,), generator=rng)[group]
    own = torch.cat([torch.arange(before), copied]).to(device)  # which unit each one was
    group = group.to(device)
    for source, place in zip(old.readers, new.readers, strict=True):
        parts = len(source.weight) // before  # 2 where two maps are packed
        rows = split(source.weight, 0, parts, before)[:, own]
        if kind != "split":
            drawn = _drawn((parts, groups, rows.shape[-1]), source.weight, rng)
            rows[:, before:] = drawn[:, group]
        place.weight.copy_(rows.flatten(0, 1))
        if source.bias is not None and place.bias is not None:
            place.bias.copy_(split(source.bias, 0, parts, before)[:, own].flatten())
    weight = old.writer.weight.double()
    if kind == "split":
        share = (torch.rand(before + more, generator=rng).double() + 0.1).to(device)
        whole = torch.zeros(before, device=device).double().index_add(0, own, share)
        new.writer.weight.copy_(weight[:, own] * (share / whole[own]))
        return
    columns = torch.zeros(len(weight), more, device=device).double()
    if kind == "clique":
        columns = _drawn((len(weight), more), weight, rng)
        sums = torch.zeros(len(weight), groups, device=device).double().index_add(1, group, columns)
        columns = columns - (sums / group.bincount())[:, group]
    new.writer.weight.copy_(torch.cat([weight, columns], 1))


def _grow_heads(old: Attention, new: Attention, kind: Heads, rng: torch.Generator) -> None:
    before, more, size = old.heads, new.heads - old.heads, old.head_dim
    packed, writer = old.qkv.weight, old.writer.weight
    pairs = more // 2 if kind == "cancelling" else more
    twice = torch.arange(more) % pairs  # the second of a pair is where the first was
    copied = torch.randint(before, (pairs,), generator=rng)[twice]
    own = torch.cat([torch.arange(before), copied]).to(packed.device)
    drawn = _drawn((3, pairs, size, packed.shape[1]), packed, rng)[:, twice.to(packed.device)]
    rows = torch.cat([split(packed.double(), 0, 3, before, size), drawn], 1)
    new.qkv.weight.copy_(rows.flatten(0, 2))
    if old.qkv.bias is not None and new.qkv.bias is not None:
        new.qkv.bias.copy_(split(old.qkv.bias, 0, 3, before, size)[:, own].flatten())
    columns = torch.zeros(len(writer), more * size, device=writer.device).double()
    if kind == "cancelling":
        first = _drawn((len(writer), pairs * size), writer, rng)
        columns = torch.cat([first, -first], 1)
    new.writer.weight.copy_(torch.cat([writer.double(), columns], 1))


def _drawn(shape: tuple[int, ...], like: Tensor, rng: torch.Generator) -> Tensor:
    """Draw weights as large as those there are."""
    drawn = torch.randn(shape, generator=rng, dtype=torch.float64)
    return drawn.to(like.device) * like.double().std()
