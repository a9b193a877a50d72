"""Speak to the backbones of every library in one vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bench.records.nouns import Incompatible, UserError


class Backbone(nn.Module):
    """What a `VisionModel` asks of a backbone: a library's own answers what it can.

    Tokens are (b, n, d), prefix tokens (CLS, registers) first. A transformer is `embed`, a sequence
    of `blocks`, `finish`; with `blocks = None` a backbone has `forward_features` instead. The last
    four members are about a classifier that the library keeps within the backbone. `patch` is the
    height and width in pixels of what becomes a token, where images are cut into such. `readout` is
    a linear map of a model's own that follows `finish`: its stream may speak in another basis.
    """

    width: int
    prefix: int = 0
    grid: tuple[int, int]
    patch: tuple[int, int] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.readout: nn.Linear | None = None

    if TYPE_CHECKING:  # at run time it would hide a module that is assigned to the name

        @property
        def blocks(self) -> nn.Module | None:
            """The transformer blocks, in order; None where there is no plain sequence of them."""

    @property
    def num_features(self) -> int:
        """Channels of final tokens."""
        return self.width if self.readout is None else self.readout.out_features

    @property
    def has_class_token(self) -> bool:
        """Say whether the first of the prefix tokens is CLS; a register is no summary."""
        return self.prefix > 0

    def embed(self, x: Tensor) -> Tensor:
        """Map normalised images (b, 3, h, w) to the residual stream (b, n, d)."""
        raise NotImplementedError

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the final norm to the residual stream (b, n, d)."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Map normalised images (b, 3, h, w) to features, where there are no blocks."""
        raise NotImplementedError

    def positions(self, found: Tensor) -> Tensor:
        """List features by position (b, n, d)."""
        return found

    def embedding(self, tokens: Tensor) -> Tensor:
        """Pool final tokens (b, n, d), or features, to the library's own embedding (b, d')."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """Classes of the library's own classifier, 0 without one."""
        return 0

    def get_classifier(self) -> nn.Module | None:
        """Return the library's own classifier; a list of modules where it has several."""
        return None

    def own_logits(self, tokens: Tensor) -> Tensor:
        """Apply the library's own classifier to final tokens, or features: (b, k)."""
        raise NotImplementedError

    def reset_classifier(self) -> None:
        """Leave the library's own classifier out, in place."""


def refuse_rest(who: str, backbone: Backbone, size: tuple[int, int], own: tuple[int, int]) -> None:
    """Refuse a size (height, width) whose last rows or columns fill no patch and are never read.

    The library's `own` size is what its weights were trained at, whatever it leaves out.
    """
    if backbone.patch is None or size == own:
        return
    for side, patch in zip(size, backbone.patch, strict=True):
        if rest := side % patch:
            near = f"{side - rest} or {side - rest + patch}" if side > patch else f"{patch}"
            raise UserError(
                f"{who}: image_size: expected a multiple of its patches of {patch} pixels, got "
                f"{side}, of which {rest} would never be read; take {near}"
            )


def _patch(net: nn.Module) -> tuple[int, int] | None:
    """Ask a model of timm's what it cuts images into; None where it pads, or says nothing."""
    for stem in net.children():
        ratio = getattr(stem, "feat_ratio", None)
        if ratio is not None and not getattr(stem, "dynamic_img_pad", False):
            found = ratio(as_scalar=False)
            return (found, found) if isinstance(found, int) else (int(found[0]), int(found[1]))
    return None


def _classifier(net: nn.Module) -> nn.Module:
    """Return the classifier of a model of timm's, which hands out several as a tuple."""
    kept = cast(Any, net).get_classifier()
    return nn.ModuleList(kept) if isinstance(kept, tuple) else cast(nn.Module, kept)


class TimmViT(Backbone):
    """timm's VisionTransformer."""

    def __init__(self, vit: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.vit = vit
        self.projection = projection
        self.prefix = int(vit.num_prefix_tokens)  # type: ignore[arg-type]
        self.grid: tuple[int, int] = vit.patch_embed.grid_size  # type: ignore[union-attr,assignment]
        self.patch = _patch(vit)
        self.width = int(vit.embed_dim)  # type: ignore[arg-type]

    @property
    def blocks(self) -> nn.Module:
        """The transformer blocks, in order."""
        return cast(nn.Module, self.vit.blocks)

    @property
    def has_class_token(self) -> bool:
        """Say whether the first of the prefix tokens is CLS."""
        return _has_class_token(self.vit)

    def embed(self, x: Tensor) -> Tensor:
        """Map normalised images to the residual stream (b, n, d)."""
        x = self.vit._pos_embed(self.vit.patch_embed(x))  # type: ignore[operator]
        return cast(Tensor, self.vit.norm_pre(self.vit.patch_drop(x)))  # type: ignore[operator]

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the final norm."""
        return cast(Tensor, self.vit.norm(tokens))  # type: ignore[operator]

    def embedding(self, tokens: Tensor) -> Tensor:
        """Pool final tokens to the library's own embedding."""
        pooled = self.vit.forward_head(tokens, pre_logits=True)  # type: ignore[operator]
        return cast(Tensor, self.projection(pooled) if self.projection else pooled)

    @property
    def classes(self) -> int:
        """Classes of timm's own classifier, 0 without one."""
        return int(cast(int, self.vit.num_classes))

    def get_classifier(self) -> nn.Module:
        """Return timm's own classifier; of a distilled model both, which it averages."""
        return _classifier(self.vit)

    def own_logits(self, tokens: Tensor) -> Tensor:
        """Apply timm's own classifier to final tokens."""
        return cast(Tensor, self.vit.forward_head(tokens))  # type: ignore[operator]

    def reset_classifier(self) -> None:
        """Leave timm's own classifier out, in place."""
        cast(Any, self.vit).reset_classifier(0)


class OpenClipViT(Backbone):
    """open_clip's VisionTransformer image tower."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.prefix = 1
        self.grid: tuple[int, int] = visual.grid_size  # type: ignore[assignment]
        self.patch: tuple[int, int] = visual.patch_size  # type: ignore[assignment]
        self.width = int(visual.ln_post.normalized_shape[0])  # type: ignore[union-attr,index]
        # An attentional pool, or a norm after pooling, leaves no normalised token sequence.
        self.plain = visual.attn_pool is None and not visual.final_ln_after_pool
        for module in self.blocks.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.register_forward_pre_hook(_token_first)

    @property
    def blocks(self) -> nn.Module:
        """The transformer blocks, in order."""
        return cast(nn.Module, self.visual.transformer.resblocks)  # type: ignore[union-attr]

    def embed(self, x: Tensor) -> Tensor:
        """Map normalised images to the residual stream (b, n, d)."""
        return cast(Tensor, self.visual._embeds(x))  # type: ignore[operator]

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the final norm, where the tower has one for tokens."""
        return cast(Tensor, self.visual.ln_post(tokens)) if self.plain else tokens  # type: ignore[operator]

    def embedding(self, tokens: Tensor) -> Tensor:
        """Pool final tokens to the library's own embedding."""
        pool = self.visual._global_pool if self.plain else self.visual._pool
        pooled = pool(tokens)[0]  # type: ignore[operator]
        proj = self.visual.proj
        return cast(Tensor, pooled if proj is None else pooled @ proj)


class TransformersViT(Backbone):
    """Hugging Face transformers' Dinov2Model, ViTModel, CLIPVisionModel or SiglipVisionModel.

    CLIP's final norm is the library's for CLS alone: here every token goes through it.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        config: Any = net.config
        side, patch = int(config.image_size), int(config.patch_size)
        self.grid = (side // patch, side // patch)
        self.patch = (patch, patch)
        self.width = int(config.hidden_size)
        embeddings: Any = net.embeddings
        classed = hasattr(embeddings, "cls_token") or hasattr(embeddings, "class_embedding")
        self.prefix = int(classed)
        for block in self.blocks.children():
            block.register_forward_pre_hook(_unmasked, with_kwargs=True)

    @property
    def blocks(self) -> nn.Module:
        """The transformer blocks, in order."""
        encoder: Any = getattr(self.net, "encoder", self.net)
        return cast(nn.Module, encoder.layer if hasattr(encoder, "layer") else encoder.layers)

    def embed(self, x: Tensor) -> Tensor:
        """Map normalised images to the residual stream (b, n, d)."""
        net: Any = self.net
        tokens = net.embeddings(x)
        # The library's own spelling.
        return cast(Tensor, net.pre_layrnorm(tokens) if hasattr(net, "pre_layrnorm") else tokens)

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the final norm."""
        net: Any = self.net
        norm = net.layernorm if hasattr(net, "layernorm") else net.post_layernorm
        return cast(Tensor, norm(tokens))

    def embedding(self, tokens: Tensor) -> Tensor:
        """Pool final tokens to the library's own embedding, its `pooler_output`.

        Without a pooler that is CLS, and the mean of tokens where there is no CLS.
        """
        pool = getattr(self.net, "pooler", None) or getattr(self.net, "head", None)
        if pool is not None:
            return cast(Tensor, pool(tokens))
        return tokens[:, 0] if self.prefix else tokens.mean(1)


def _unmasked(
    _: nn.Module, asked: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Call a block of transformers' with all tokens in view, as its model does for images."""
    return (asked, {**named, "attention_mask": None}) if len(asked) == 1 else None


def _token_first(_: nn.Module, asked: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Lay tokens (b, n, d) out as PyTorch's attention will look at them: token by token.

    Under autocast it multiplies them by weights that, for any other layout, it copies n times
    first: a ViT-L/14 then takes sixty times as long on a CPU.
    """
    tokens, kind = asked[0], asked[0].device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if not autocast or any(other is not tokens for other in asked):
        return None
    return (tokens.transpose(0, 1).contiguous().transpose(0, 1),) * len(asked)


def _has_class_token(net: nn.Module) -> bool:
    """Say whether a model of timm's has a class token, as it says itself where it can."""
    own = getattr(net, "cls_token", None) is not None
    return bool(getattr(net, "has_class_token", own))


class OtherTrunk(Backbone):
    """Any other timm backbone: features, but no residual stream of transformer blocks.

    Class and register tokens come first where the library says how many there are; where it counts
    none (VOLO, PiT) they are those of `cls_token`.
    """

    blocks = None

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.patch = _patch(net)
        self.width = int(net.num_features)  # type: ignore[arg-type]
        first = getattr(net, "cls_token", None)
        own = first.shape[1] if isinstance(first, Tensor) else 0
        self.prefix = int(getattr(net, "num_prefix_tokens", own))

    def forward_features(self, x: Tensor) -> Tensor:
        """Map normalised images to the library's own features, by token or as a map.

        Raises:
            Incompatible: the features are several sequences, with no one patch beside another.

        """
        found = self.net.forward_features(x)  # type: ignore[operator]
        if not isinstance(found, Tensor):
            raise Incompatible(
                f"expected one sequence or map of features, got {len(found)} of them from a "
                f"{type(self.net).__name__}; choose a model with one"
            )
        return found

    @property
    def has_class_token(self) -> bool:
        """Say whether the first of the prefix tokens is CLS."""
        return _has_class_token(self.net)

    def positions(self, found: Tensor) -> Tensor:
        """List features by position (b, n, d)."""
        if found.ndim == 4:  # (b, d, h, w), or (b, h, w, d) where the library says so
            last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
            found = found.flatten(1, 2) if last else found.flatten(2).mT
        return found

    def embedding(self, found: Tensor) -> Tensor:
        """Pool features to the library's own embedding."""
        return cast(Tensor, self.net.forward_head(found, pre_logits=True))  # type: ignore[operator]

    @property
    def classes(self) -> int:
        """Classes of timm's own classifier, 0 without one."""
        return int(cast(int, self.net.num_classes))

    def get_classifier(self) -> nn.Module:
        """Return timm's own classifier; of a distilled model both, which it averages."""
        return _classifier(self.net)

    def own_logits(self, found: Tensor) -> Tensor:
        """Apply timm's own classifier to features."""
        return cast(Tensor, self.net.forward_head(found))  # type: ignore[operator]

    def reset_classifier(self) -> None:
        """Leave timm's own classifier out, in place."""
        cast(Any, self.net).reset_classifier(0)


class PitTrunk(OtherTrunk):
    """timm's PiT, which hands out its class tokens alone: the patches are laid behind them.

    They are those of the last stage, through the norm that the class tokens go through.
    """

    def forward_features(self, x: Tensor) -> Tensor:
        """Map normalised images to class tokens and patches (b, n, d)."""
        net = cast(Any, self.net)
        first, (patches,) = net.forward_intermediates(x, indices=1)
        return torch.cat([first, net.norm(patches.flatten(2).mT)], dim=1)
