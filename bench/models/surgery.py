"""Give a model another head or another shape, or cut some of it out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bench.models.backbones import OpenClipViT, TimmViT
from bench.models.heads import ClassifierHead, Head, SegmentationHead, make_head
from bench.models.vision import (
    Architecture,
    Dimensions,
    Part,
    VisionModel,
    clone,
    compiling,
)
from bench.records.nouns import UserError


def with_head(
    model: VisionModel, head: Head | SegmentationHead, rng: torch.Generator
) -> VisionModel:
    """Copy a model and give the copy a fresh head drawn from `rng`."""
    made = clone(model)
    if made.architecture.head == "own":  # `build` makes no own classifier beside another head
        made.trunk.reset_classifier()
    made.architecture = dataclasses.replace(made.architecture, head=head)
    seed = 0 if isinstance(head, Head) else int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=[]):  # modules draw on the global generator alone
        torch.default_generator.manual_seed(seed)
        fresh = make_head(made.trunk, head, made.preprocess.size[0])
    if isinstance(fresh, ClassifierHead):
        with torch.no_grad():
            fresh.linear.weight.normal_(std=0.02, generator=rng)  # timm's std for linear layers
            fresh.linear.bias.zero_()
    made.head = fresh.to(made.mean.device)
    return made


def segmentation_head(
    model: VisionModel, kind: Literal["linear", "dpt"], classes: int
) -> SegmentationHead:
    """Describe a segmentation head for this model: on its last block, or on four evenly spaced."""
    depth = len(model.blocks)
    taken = (depth,) if kind == "linear" else tuple(math.ceil(depth * i / 4) for i in range(1, 5))
    return SegmentationHead(classes, kind, tuple(i - 1 for i in taken))


def narrow(
    model: VisionModel, part: Part, left: int, score: Callable[[Any], Tensor] | None = None
) -> None:
    """Cut `part` of a timm vision transformer down to its `left` best units, in place.

    Torch-Pruning traces the model and finds what must go with a unit: `score` maps such a group to
    the worth of its channels. Without one the first units stay, as fits weights yet to be loaded.

    Raises:
        UserError: the model is not a plain vision transformer of timm's.

    """
    import torch_pruning as tp

    units = getattr(dimensions(model), part)
    if left == units:
        return
    if part == "width":
        _refuse_fixed_width(model)
    blocks: list[Any] = list(model.blocks)
    roots = {
        "mlp": [block.mlp.fc1 for block in blocks],
        "heads": [block.attn.qkv for block in blocks],
        "width": [blocks[0].attn.proj],
    }[part]
    size = blocks[0].attn.head_dim if part == "heads" else 1
    channels = torch.arange(units * size).view(units, size)
    group_of = functools.partial(_traced(model), pruning_fn=tp.prune_linear_out_channels)
    for root in roots:
        worth = torch.arange(units, 0, -1)
        if score is not None:  # queries, keys and values of a head are one group
            found = score(group_of(root, idxs=channels.flatten().tolist()))
            worth = found.view(-1, units, size).sum((0, 2)).cpu()
        weakest = worth.argsort(stable=True)[: units - left]
        group_of(root, idxs=sorted(channels[weakest].flatten().tolist())).prune()
        if part == "width":
            _narrow_ends(model, left, sorted(weakest.tolist()))
    for block in blocks if part == "heads" else ():
        block.attn.num_heads, block.attn.attn_dim = left, left * size
    model.architecture = dataclasses.replace(model.architecture, dimensions=dimensions(model))


def dimensions(model: VisionModel) -> Dimensions:
    """Measure a timm vision transformer.

    Raises:
        UserError: the model is not a plain vision transformer of timm's.

    """
    from timm.layers.attention import Attention
    from timm.layers.mlp import Mlp
    from timm.models.vision_transformer import Block

    blocks: list[Any] = list(model.blocks) if isinstance(model.trunk, TimmViT) else []
    kinds = {(type(b), type(b.attn), type(b.mlp), type(b.attn.q_norm)) for b in blocks}
    if kinds != {(Block, Attention, Mlp, nn.Identity)}:
        raise UserError(
            "expected a plain vision transformer of timm's, for no other can be cut unit by unit, "
            f"got {model.architecture.name}; choose an attack that keeps its shape"
        )
    first = blocks[0]
    return Dimensions(
        first.mlp.fc1.out_features, first.attn.num_heads, model.width, depth=len(blocks)
    )


def _traced(model: VisionModel) -> Callable[..., Any]:
    """Trace a pass and return what finds the group of weights that goes with given channels."""
    import torch_pruning as tp

    def answer(model: VisionModel, images: Tensor) -> Tensor:
        # Heads are left out: they have no say in what a channel is worth. One of ours reads every
        # channel twice, which the trace overlooks.
        return model.features(images)

    blank = torch.zeros(1, 3, *model.preprocess.size, device=model.mean.device)
    with torch.enable_grad(), compiling(False):  # the trace follows autograd, op by op
        graph = tp.DependencyGraph().build_dependency(
            model, blank, forward_fn=answer, verbose=False
        )
    return cast(Callable[..., Any], graph.get_pruning_group)


def _refuse_fixed_width(model: VisionModel) -> None:
    vit = cast(TimmViT, model.trunk).vit
    head = model.architecture.head
    layer_norms = isinstance(model.blocks[0].norm1, nn.LayerNorm)
    # Behind a readout everything keeps its width.
    fits = model.trunk.readout is not None or (
        vit.attn_pool is None and isinstance(head, Head | str | None)
    )
    if not (layer_norms and fits):
        raise UserError(
            f"expected a transformer with layer norms, without attention pooling or a head for "
            f"masks, to change its width, got {model.architecture.name}; cut 'mlp' or 'heads'"
        )


def _narrow_ends(model: VisionModel, left: int, gone: list[int]) -> None:
    """Bring what the trace of the backbone does not reach to the new width."""
    import torch_pruning as tp

    vit: Any = cast(TimmViT, model.trunk).vit
    before = model.width
    vit.embed_dim = model.trunk.width = left
    if model.trunk.readout is not None:
        return
    vit.num_features = vit.head_hidden_size = left
    kept = model.trunk.get_classifier() if model.architecture.head == "own" else None
    for layer in [] if kept is None else kept.modules():
        if isinstance(layer, nn.Linear):  # a distilled model has two
            tp.prune_linear_in_channels(layer, gone)
    if isinstance(model.head, ClassifierHead):
        both = gone + [before + channel for channel in gone]  # of [CLS; mean patch]
        tp.prune_layernorm_out_channels(model.head.norm, both)
        tp.prune_linear_in_channels(model.head.linear, both)


def reshape(model: VisionModel, to: Architecture) -> None:
    """Give a transformer the dimensions, readout, eps and patches of an architecture, in place.

    What is left of it are its first units. What is new repeats what was there, to have a value: it
    is a place for weights to be written to.
    """
    trunk = model.trunk
    if to.dimensions is not None:
        _set_depth(cast(nn.Sequential | nn.ModuleList, model.blocks), to.dimensions.depth)
        for block in model.blocks:
            _resize_block(block, to.dimensions)
        if isinstance(trunk, TimmViT):
            _resize_ends(trunk, to.dimensions.width, to.readout or to.dimensions.width)
    if to.readout is not None:
        if trunk.readout is None:
            made = nn.Linear(trunk.width, to.readout, device=model.mean.device)
            trunk.readout = made.to(next(trunk.parameters()).dtype)
        _fit(trunk.readout, to.readout, trunk.width)
    for norm in stream_norms(model) if to.eps is not None else []:
        norm.eps = to.eps
    if to.patch is not None and (to.patch, to.patch) != trunk.patch:
        _cut_otherwise(model, to.patch)
    model.architecture = to


def _cut_otherwise(model: VisionModel, patch: int) -> None:
    """Cut images into as many patches of another size; timm resamples the filters (FlexiViT).

    Raises:
        UserError: the model is no vision transformer of timm's.

    """
    if not isinstance(model.trunk, TimmViT):
        raise UserError(
            "expected a vision transformer of timm's, for no other can cut images otherwise, got "
            f"{model.architecture.name}; choose another attack"
        )
    size = (model.trunk.grid[0] * patch, model.trunk.grid[1] * patch)
    cast(Any, model.trunk.vit).set_input_size(img_size=size, patch_size=(patch, patch))
    model.trunk.patch = (patch, patch)
    model.preprocess = dataclasses.replace(model.preprocess, size=size)


def stream_norms(model: VisionModel) -> list[Any]:
    """List the norms with an `eps` that read the residual stream; none that stand before it."""
    found = [
        getattr(block, name)
        for block in model.blocks
        for name in ("norm1", "norm2", "ln_1", "ln_2")
        if hasattr(block, name)
    ]
    if isinstance(model.trunk, TimmViT):
        found.append(model.trunk.vit.norm)
    elif isinstance(model.trunk, OpenClipViT) and model.trunk.plain:
        found.append(model.trunk.visual.ln_post)
    return [norm for norm in found if hasattr(norm, "eps")]


def _set_depth(blocks: nn.Sequential | nn.ModuleList, depth: int) -> None:
    while len(blocks) > depth:
        del blocks[-1]
    while len(blocks) < depth:
        blocks.append(copy.deepcopy(blocks[-1]))


def _resize_block(block: Any, to: Dimensions) -> None:
    if hasattr(block.mlp, "c_fc"):  # open_clip's, whose attention is as wide as the stream
        _fit(block.mlp.c_fc, to.mlp)
        _fit(block.mlp.c_proj, into=to.mlp)
        return
    attn, mlp, width, channels = block.attn, block.mlp, to.width, to.heads * block.attn.head_dim
    for each in (block.norm1, block.ls1, block.norm2, block.ls2):
        _fit(each, width)
    _fit(attn.qkv, 3 * channels, width, groups=3)
    _fit(getattr(attn, "gate", None), channels, width)
    _fit(getattr(attn, "norm", None), channels)
    _fit(attn.proj, width, channels)
    attn.num_heads, attn.attn_dim = to.heads, channels
    halves = 2 if hasattr(mlp, "fc1") and mlp.fc1.out_features > mlp.fc2.in_features else 1
    for name in ("fc1", "fc1_g", "fc1_x"):
        _fit(getattr(mlp, name, None), halves * to.mlp, width, halves)
    _fit(getattr(mlp, "norm", None), to.mlp)
    _fit(mlp.fc2, width, to.mlp)


def _resize_ends(trunk: TimmViT, width: int, features: int) -> None:
    vit: Any = trunk.vit
    for name in ("cls_token", "reg_token", "dist_token", "pos_embed"):
        if getattr(vit, name, None) is not None:
            setattr(vit, name, _sized(getattr(vit, name), -1, width))
    for each in (vit.patch_embed.proj, vit.norm_pre, vit.norm):
        _fit(each, width)
    vit.embed_dim = trunk.width = width
    vit.num_features = vit.head_hidden_size = features
    _fit(vit.fc_norm, features)
    for name in ("head", "head_dist"):
        _fit(getattr(vit, name, None), into=features)


def _fit(module: Any, out: int | None = None, into: int | None = None, groups: int = 1) -> None:
    """Give a linear map, a norm or a scale `out` channels of `into`, if there is one, in place."""
    for name, value in [] if module is None else list(module.named_parameters(recurse=False)):
        made = value if out is None else _sized(value, 0, out, groups)
        made = made if into is None or value.ndim < 2 else _sized(made, 1, into)
        setattr(module, name, made)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels = len(module.weight)
    elif hasattr(module, "normalized_shape") and out is not None:
        module.normalized_shape = (out,)


def _sized(value: nn.Parameter, axis: int, size: int, groups: int = 1) -> nn.Parameter:
    """Take the first units of each of `groups` along an axis, or repeat them to fill `size`."""
    if value.shape[axis] == size:
        return value
    each = value.shape[axis] // groups
    first = torch.arange(size // groups, device=value.device) % each
    chosen = (torch.arange(groups, device=value.device)[:, None] * each + first).flatten()
    made = value.detach().index_select(axis, chosen)
    return nn.Parameter(made, requires_grad=value.requires_grad)
