"""Say where a vision transformer keeps what writes to its residual stream, and what reads it.

A pre-norm transformer adds to one stream: embeddings and the last layer of each branch write to it,
and the first layer of each branch reads it behind a norm. What is found are the library's own
parameters and modules: who changes them changes the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import nn

from bench.models import Dimensions, OpenClipViT, TimmViT, VisionModel
from bench.records.nouns import UserError


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map: its weight is (out, in) or, of a convolution, (out, in, h, w)."""

    weight: nn.Parameter
    bias: nn.Parameter | None


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of the stream; one that is not `centred` does not subtract the mean."""

    module: Any
    centred: bool

    @property
    def gain(self) -> nn.Parameter | None:
        """Return its gain (d,), if it has one."""
        found: nn.Parameter | None = self.module.weight
        return found

    @property
    def bias(self) -> nn.Parameter | None:
        """Return its bias (d,), if it has one."""
        found: nn.Parameter | None = getattr(self.module, "bias", None)
        return found


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention as a branch: packed queries, keys and values of `heads` heads, (3 h c, d).

    `normed` says that queries and keys are normed; `between` names what stands between values and
    `writer`, if anything does.
    """

    norm: Norm
    readers: tuple[Linear, ...]
    writer: Linear
    scale: nn.Parameter | None  # LayerScale's, (d,)
    heads: int
    module: Any
    normed: bool
    between: str

    @property
    def qkv(self) -> Linear:
        """Return the packed map to queries, keys and values."""
        return self.readers[0]

    @property
    def head_dim(self) -> int:
        """Channels c of a head."""
        return self.qkv.weight.shape[0] // (3 * self.heads)


@dataclass(frozen=True, slots=True)
class Mlp:
    """An MLP as a branch: one reader of m rows, or of a gated one two, or one of 2 m packed rows.

    `gated` says that hidden units are a product of two maps, and `plain` which of these, 0 or 1,
    goes through no activation function. `between` is as in `Attention`.
    """

    norm: Norm
    readers: tuple[Linear, ...]
    writer: Linear
    scale: nn.Parameter | None
    gated: bool
    plain: int
    between: str

    @property
    def hidden(self) -> int:
        """Hidden units m."""
        return self.writer.weight.shape[1]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """All that writes to a residual stream (b, n, d) or reads it.

    `embeddings` and `tokens` (..., d) add up to what enters; `carriers` are those of them, or
    biases, that reach each token exactly once, so that a constant can be put there. `entry` is a
    norm behind them, which the stream starts from then. `final` is the norm of the last tokens,
    None where a model has none before it pools.
    """

    embeddings: tuple[Linear, ...]
    tokens: tuple[nn.Parameter, ...]
    carriers: tuple[nn.Parameter, ...]
    entry: Norm | None
    blocks: tuple[tuple[Attention, Mlp], ...]
    final: Norm | None

    @property
    def branches(self) -> tuple[Attention | Mlp, ...]:
        """Every attention and MLP, in order."""
        return tuple(branch for block in self.blocks for branch in block)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Every norm that reads the stream."""
        found = [branch.norm for branch in self.branches]
        return tuple(found if self.final is None else [*found, self.final])


def read(model: VisionModel) -> Anatomy:
    """Find the parts of a vision transformer of timm's, or of open_clip's.

    Raises:
        UserError: it is no pre-norm transformer in whose parts the stream can be told.

    """
    if isinstance(model.trunk, TimmViT):
        return _of_timm(model, model.trunk.vit)
    if isinstance(model.trunk, OpenClipViT):
        return _of_open_clip(model, model.trunk.visual)
    _refuse(model, f"a {type(next(model.trunk.children())).__name__}")


def dimensions(model: VisionModel) -> Dimensions:
    """Measure a transformer whose blocks are alike.

    Raises:
        UserError: as `read` does, or the blocks are not alike.

    """
    found = {(mlp.hidden, attention.heads) for attention, mlp in read(model).blocks}
    if len(found) != 1:
        _refuse(model, "blocks of several sizes")
    ((hidden, heads),) = found
    return Dimensions(hidden, heads, model.width, len(model.blocks))


def dimensions_in(model: VisionModel, shapes: Mapping[str, Sequence[int]]) -> Dimensions | None:
    """Say how large a copy of a transformer is, by the shapes of its parameters under their names.

    Its heads are taken to be as wide as the model's, for no shape tells. None where the names of
    its blocks are others, or these are no matrices of whole heads.

    Raises:
        UserError: as `read` does.

    """
    attention, mlp = read(model).blocks[0]
    names = {id(value): name for name, value in model.named_parameters()}
    reader, writer = (names[id(part.weight)] for part in (attention.qkv, mlp.writer))
    if any(len(shapes.get(name, ())) != 2 for name in (reader, writer)):
        return None
    rows, width = shapes[reader]
    heads, rest = divmod(rows, 3 * attention.head_dim)
    if rest or not heads:
        return None
    depth = next(i for i in itertools.count() if reader.replace(".0.", f".{i}.", 1) not in shapes)
    return Dimensions(shapes[writer][1], heads, width, depth)


def _of_timm(model: VisionModel, vit: Any) -> Anatomy:
    from timm.layers.attention import Attention as TimmAttention
    from timm.models.vision_transformer import Block

    for block in vit.blocks:
        attention = getattr(block, "attn", None)
        if type(block) is not Block or type(attention) is not TimmAttention:
            _refuse(model, f"a {type(block).__name__} with {type(attention).__name__}")
    embed = vit.patch_embed
    if not isinstance(getattr(embed, "proj", None), nn.Conv2d | nn.Linear) or not _absent(
        getattr(embed, "norm", None)
    ):
        _refuse(model, f"a {type(embed).__name__} that does not end in a linear map")
    named = ("cls_token", "reg_token", "dist_token", "pos_embed")
    tokens = {name: getattr(vit, name) for name in named if getattr(vit, name, None) is not None}
    positions = tokens.get("pos_embed")
    if positions is not None and not vit.no_embed_class:
        carriers = [positions]
    else:  # prefix tokens have no positions
        every = embed.proj.bias if positions is None else positions
        carriers = [*(p for name, p in tokens.items() if name != "pos_embed"), every]
    return Anatomy(
        (_linear(embed.proj),),
        tuple(tokens.values()),
        tuple(p for p in carriers if p is not None),
        None if _absent(vit.norm_pre) else _norm(model, vit.norm_pre),
        tuple((_timm_attention(model, block), _timm_mlp(model, block)) for block in vit.blocks),
        None if _absent(vit.norm) else _norm(model, vit.norm),
    )


def _timm_attention(model: VisionModel, block: Any) -> Attention:
    attn = block.attn
    gate = getattr(attn, "gate", None)
    between = "" if _absent(getattr(attn, "norm", None)) else "a norm"
    return Attention(
        _norm(model, block.norm1),
        (_linear(attn.qkv), *([] if gate is None else [_linear(gate)])),
        _linear(attn.proj),
        getattr(block.ls1, "gamma", None),
        attn.num_heads,
        attn,
        normed=not _absent(attn.q_norm),
        between=between if gate is None else "a gate",
    )


def _timm_mlp(model: VisionModel, block: Any) -> Mlp:
    from timm.layers.mlp import GluMlp, SwiGLU
    from timm.layers.mlp import Mlp as TimmMlp

    mlp = block.mlp
    if type(mlp) not in (TimmMlp, GluMlp, SwiGLU):
        _refuse(model, f"a {type(mlp).__name__}")
    split = isinstance(mlp, SwiGLU)
    readers = (mlp.fc1_g, mlp.fc1_x) if split else (mlp.fc1,)
    return Mlp(
        _norm(model, block.norm2),
        tuple(map(_linear, readers)),
        _linear(mlp.fc2),
        getattr(block.ls2, "gamma", None),
        gated=split or isinstance(mlp, GluMlp),
        plain=0 if isinstance(mlp, GluMlp) and mlp.gate_last else 1,
        between="" if _absent(mlp.norm) else "a norm",
    )


def _of_open_clip(model: VisionModel, visual: Any) -> Anatomy:
    from open_clip.transformer import ResidualAttentionBlock

    blocks = []
    for block in visual.transformer.resblocks:
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            _refuse(model, f"a {type(block).__name__}")
        attn, mlp = block.attn, block.mlp
        packed = Linear(attn.in_proj_weight, attn.in_proj_bias)
        attention = Attention(
            _norm(model, block.ln_1),
            (packed,),
            _linear(attn.out_proj),
            getattr(block.ls_1, "gamma", None),
            attn.num_heads,
            attn,
            normed=False,
            between="",
        )
        scale, norm = getattr(block.ls_2, "gamma", None), _norm(model, block.ln_2)
        readers, writer = (_linear(mlp.c_fc),), _linear(mlp.c_proj)
        blocks.append((attention, Mlp(norm, readers, writer, scale, False, 1, between="")))
    final = visual.ln_post if isinstance(model.trunk, OpenClipViT) and model.trunk.plain else None
    return Anatomy(
        (_linear(visual.conv1),),
        (visual.class_embedding, visual.positional_embedding),
        (visual.positional_embedding,),
        None if _absent(visual.ln_pre) else _norm(model, visual.ln_pre),
        tuple(blocks),
        None if final is None or _absent(final) else _norm(model, final),
    )


def _norm(model: VisionModel, module: nn.Module) -> Norm:
    from timm.layers.norm import RmsNorm

    if isinstance(module, nn.LayerNorm | RmsNorm):
        return Norm(module, centred=isinstance(module, nn.LayerNorm))
    _refuse(model, f"a {type(module).__name__} before a branch")


def _linear(module: Any) -> Linear:
    return Linear(module.weight, module.bias)


def _absent(module: nn.Module | None) -> bool:
    return module is None or isinstance(module, nn.Identity)


def _refuse(model: VisionModel, found: str) -> NoReturn:
    raise UserError(
        "expected a pre-norm vision transformer of timm's or open_clip's, whose residual stream "
        f"has plain writers and readers, got {found} in {model.architecture.name}; choose another "
        "attack"
    )
