"""Give vision models of every library one vocabulary, and write them down without pickling.

A `VisionModel` takes images in [0, 1] and does its own resizing and normalisation. It is rebuilt
from an `Architecture`, which is JSON, and a state dict, which is safetensors.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import measure
from bench.data import Preprocess
from bench.types import Access, Incompatible, Json, UserError

MINI: dict[str, Json] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 6,
    "num_heads": 3,
    "mlp_ratio": 1.0,
    "num_classes": 0,
}
"""The embedded owner's shape: timm's VisionTransformer, 65 tokens, 16 MFLOP a forward pass."""


@dataclass(frozen=True, slots=True)
class Head:
    """A classifier on [CLS; mean patch]: LayerNorm, dropout, linear (ActiveMark, section 5.1)."""

    classes: int
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything but the weights: enough to rebuild a model from a state dict.

    `head` is None (features only), "own" (the library's own classifier) or a `Head`.
    """

    library: Literal["embedded", "timm", "open_clip"]
    name: str
    image_size: int | None = None
    head: Head | Literal["own"] | None = None

    def json(self) -> Json:
        """Return the form that artefacts store."""
        return dataclasses.asdict(self)

    @staticmethod
    def of(value: Mapping[str, Json]) -> Architecture:
        """Read back what `json` wrote."""
        head = value["head"]
        built = Head(**head) if isinstance(head, dict) else head
        return Architecture(value["library"], value["name"], value["image_size"], built)


class TimmViT(nn.Module):
    """timm's VisionTransformer, in the vocabulary of `VisionModel`."""

    def __init__(self, vit: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.vit = vit
        self.projection = projection
        self.prefix = int(vit.num_prefix_tokens)  # type: ignore[arg-type]
        self.width = int(vit.embed_dim)  # type: ignore[arg-type]

    @property
    def blocks(self) -> nn.Module:
        """The transformer blocks, in order."""
        return cast(nn.Module, self.vit.blocks)

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

    def own_logits(self, tokens: Tensor) -> Tensor:
        """Apply the library's own classifier to final tokens."""
        return cast(Tensor, self.vit.forward_head(tokens))  # type: ignore[operator]


class OpenClipViT(nn.Module):
    """open_clip's VisionTransformer image tower, in the vocabulary of `VisionModel`."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.prefix = 1
        self.width = int(visual.ln_post.normalized_shape[0])  # type: ignore[union-attr,index]
        # An attentional pool, or a norm after pooling, leaves no normalised token sequence.
        self.plain = visual.attn_pool is None and not visual.final_ln_after_pool

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


class OtherTrunk(nn.Module):
    """Any other timm backbone: features, but no residual stream of transformer blocks."""

    blocks = None
    prefix = 0

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.width = int(net.num_features)  # type: ignore[arg-type]

    def forward_features(self, x: Tensor) -> Tensor:
        """Map normalised images to the library's own features, by token or as a map."""
        return cast(Tensor, self.net.forward_features(x))  # type: ignore[operator]

    def positions(self, found: Tensor) -> Tensor:
        """List features by position (b, n, d)."""
        if found.ndim == 4:  # (b, d, h, w), or (b, h, w, d) where the library says so
            last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
            found = found.flatten(1, 2) if last else found.flatten(2).mT
        return found

    def embedding(self, found: Tensor) -> Tensor:
        """Pool features to the library's own embedding."""
        return cast(Tensor, self.net.forward_head(found, pre_logits=True))  # type: ignore[operator]

    def own_logits(self, found: Tensor) -> Tensor:
        """Apply the library's own classifier to features."""
        return cast(Tensor, self.net.forward_head(found))  # type: ignore[operator]


class ClassifierHead(nn.Module):
    """LayerNorm, dropout and a linear layer on [CLS; mean patch] (ActiveMark, section 5.1)."""

    def __init__(self, width: int, head: Head) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(head.dropout)
        self.linear = nn.Linear(width, head.classes)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map [CLS; mean patch] (b, 2 d) to logits (b, k)."""
        return cast(Tensor, self.linear(self.dropout(self.norm(pooled))))


class VisionModel(nn.Module):
    """A backbone with its preprocessing and, perhaps, a classification head.

    Images are (b, 3, h, w) floats in [0, 1] of any size; tokens are (b, n, d), prefix tokens (CLS,
    registers) first. `embed`, `run_blocks` and `finish` are the three parts of `forward_features`:
    methods that read or write the residual stream use them, and every pass is counted.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: Architecture,
        trunk: TimmViT | OpenClipViT | OtherTrunk,
        preprocess: Preprocess,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.trunk = trunk
        self.preprocess = preprocess
        self.notes: dict[str, Json] = {}  # what the attack that made this model has to report
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        own = architecture.head
        self.head = ClassifierHead(2 * trunk.width, own) if isinstance(own, Head) else None

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, in order.

        Raises:
            Incompatible: the model is not a sequence of transformer blocks.

        """
        if self.trunk.blocks is None:
            raise Incompatible(
                f"expected a sequence of transformer blocks, got {self.architecture.name}, "
                "which has none; choose a plain vision transformer"
            )
        return cast(nn.ModuleList, self.trunk.blocks)

    @property
    def width(self) -> int:
        """Width d of the residual stream."""
        return self.trunk.width

    @property
    def prefix(self) -> int:
        """Tokens before the first patch token: CLS and registers."""
        return self.trunk.prefix

    def normalise(self, images: Tensor) -> Tensor:
        """Bring images (b, 3, h, w) in [0, 1] to the model's own size, mean and deviation."""
        if tuple(images.shape[-2:]) != self.preprocess.size:
            images = F.interpolate(
                images, self.preprocess.size, mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
        return (images - self.mean) / self.std

    def embed(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to the residual stream before the first block, (b, n, d)."""
        _ = self.blocks  # refuses models that have none
        measure.count(images=len(images))
        return cast("TimmViT | OpenClipViT", self.trunk).embed(self.normalise(images))

    def run_blocks(self, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Send the residual stream (b, n, d) through blocks start .. stop - 1."""
        blocks = self.blocks
        chosen = list(blocks)[start:stop]
        share = len(tokens) * len(chosen) / len(blocks)
        measure.count(forward=share)
        for block in chosen:
            tokens = block(tokens)
        if tokens.requires_grad and measure.counting():
            tokens.register_hook(lambda _: measure.count(backward=share))  # type: ignore[no-untyped-call]
        return tokens

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the final norm to the residual stream (b, n, d)."""
        return cast("TimmViT | OpenClipViT", self.trunk).finish(tokens)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to final tokens (b, n, d), or what a model without them has."""
        if isinstance(self.trunk, OtherTrunk):
            measure.count(forward=len(images), images=len(images))
            tokens = self.trunk.forward_features(self.normalise(images))
            if tokens.requires_grad and measure.counting():
                tokens.register_hook(  # type: ignore[no-untyped-call]
                    lambda g: measure.count(backward=len(g))
                )
            return tokens
        return self.finish(self.run_blocks(self.embed(images)))

    def embedding(self, tokens: Tensor) -> Tensor:
        """Map final tokens (b, n, d) to the model's own output embedding (b, d')."""
        return self.trunk.embedding(tokens)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Map final tokens (b, n, d) to [CLS; mean patch], (b, 2 d)."""
        if isinstance(self.trunk, OtherTrunk):
            tokens = self.trunk.positions(tokens)
        patches = tokens[:, self.prefix :].mean(1)  # (b, d)
        first = tokens[:, 0] if self.prefix else patches
        return torch.cat([first, patches], dim=1)

    def features(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to the model's own output embedding (b, d')."""
        return self.embedding(self.forward_features(images))

    def logits(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to class scores (b, k).

        Raises:
            Incompatible: the model has no classification head.

        """
        return self.forward_head(self.forward_features(images))

    def forward_head(self, tokens: Tensor) -> Tensor:
        """Map final tokens (b, n, d) to class scores (b, k)."""
        if self.head is not None:
            return cast(Tensor, self.head(self.pooled(tokens)))
        if self.architecture.head is None:
            raise Incompatible(f"{self.architecture.name} has no classification head")
        return cast("TimmViT | OtherTrunk", self.trunk).own_logits(tokens)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits where there is a head, else the output embedding."""
        tokens = self.forward_features(images)
        has_head = self.architecture.head is not None
        return self.forward_head(tokens) if has_head else self.embedding(tokens)


def clone(model: VisionModel) -> VisionModel:
    """Copy a model, its notes left out; the copy is in eval mode and trainable throughout."""
    made = copy.deepcopy(model).eval().requires_grad_(True)
    made.notes = {}
    return made


def with_head(model: VisionModel, head: Head, rng: torch.Generator) -> VisionModel:
    """Copy a model and give the copy a fresh classification head drawn from `rng`."""
    made = clone(model)
    if made.architecture.head == "own":  # `build` makes no own classifier beside another head
        trunk = made.trunk
        net = trunk.net if isinstance(trunk, OtherTrunk) else cast(TimmViT, trunk).vit
        net.reset_classifier(0)  # type: ignore[operator]
    made.architecture = dataclasses.replace(made.architecture, head=head)
    fresh = ClassifierHead(2 * made.width, head)
    with torch.no_grad():
        fresh.linear.weight.normal_(std=0.02, generator=rng)  # timm's std for linear layers
        fresh.linear.bias.zero_()
    made.head = fresh.to(made.mean.device)
    return made


def build(architecture: Architecture, pretrained: str | bool = False) -> VisionModel:
    """Make a model of this architecture, untrained unless `pretrained` asks the model hub.

    `pretrained` is True (timm's default weights) or an open_clip tag such as "openai".

    Raises:
        UserError: the library does not know the name.

    """
    makers = {"embedded": _embedded, "timm": _timm, "open_clip": _open_clip}
    # The libraries draw first weights on the global generator: it is put back where it was.
    with torch.random.fork_rng(devices=[]), _quietly():
        return makers[architecture.library](architecture, pretrained).eval()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep libraries from logging: open_clip calls every model unweighted before we load it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _embedded(architecture: Architecture, pretrained: str | bool) -> VisionModel:
    from timm.models.vision_transformer import VisionTransformer

    if architecture.name != "mini":
        raise UserError(f"expected the embedded model 'mini', got '{architecture.name}'")
    half = (0.5, 0.5, 0.5)
    trunk = TimmViT(VisionTransformer(**MINI))
    return VisionModel(architecture, trunk, Preprocess((32, 32)), half, half)


def _timm(architecture: Architecture, pretrained: str | bool) -> VisionModel:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    size = architecture.image_size
    extra: dict[str, Any] = {} if size is None else {"img_size": size}
    if architecture.head != "own":
        extra["num_classes"] = 0
    try:
        net = timm.create_model(architecture.name, pretrained=bool(pretrained), **extra)
    except TypeError as error:  # a convolutional model takes no img_size
        raise UserError(f"timm model {architecture.name}: {_first_line(error)}") from error
    trunk = TimmViT(net) if isinstance(net, VisionTransformer) else OtherTrunk(net)
    config = timm.data.resolve_model_data_config(net)  # type: ignore[attr-defined, no-untyped-call]
    side = config["input_size"][-2:] if size is None else (size, size)
    preprocess = Preprocess(
        (int(side[0]), int(side[1])),
        float(config["crop_pct"]),
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )
    return VisionModel(architecture, trunk, preprocess, config["mean"], config["std"])


def _open_clip(architecture: Architecture, pretrained: str | bool) -> VisionModel:
    import open_clip
    from timm.models.vision_transformer import VisionTransformer

    tag = pretrained if isinstance(pretrained, str) else None
    size = architecture.image_size
    model = open_clip.create_model(architecture.name, pretrained=tag, force_image_size=size)
    visual = model.visual
    inner = getattr(visual, "trunk", None)
    trunk: TimmViT | OpenClipViT
    if isinstance(inner, VisionTransformer):
        trunk = TimmViT(inner, visual.head)
    elif isinstance(visual, open_clip.transformer.VisionTransformer):
        trunk = OpenClipViT(visual)
    else:
        raise UserError(
            f"expected a vision transformer, got open_clip {architecture.name}, "
            f"whose image tower is a {type(visual).__name__}"
        )
    side = visual.image_size
    size2 = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    config = open_clip.get_model_preprocess_cfg(model)
    return VisionModel(
        architecture, trunk, Preprocess(size2), tuple(config["mean"]), tuple(config["std"])
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def load_state(model: VisionModel, state: Mapping[str, Tensor], origin: str) -> VisionModel:
    """Put `state` into `model`, in the model's precision, and return it.

    Raises:
        UserError: the state is of another architecture; names the first differing entry.

    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        first = f"lacks '{missing[0]}'" if missing else f"has an unknown '{extra[0]}'"
        raise UserError(
            f"{origin}: expected weights of {model.architecture.name}, got another architecture's "
            f"({first}; {len(missing)} missing, {len(extra)} unknown)"
        )
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise UserError(
                f"{origin}: expected {name} of shape {tuple(own[name].shape)}, "
                f"got {tuple(value.shape)}; the checkpoint is of another architecture"
            )
    model.load_state_dict(dict(state))
    return model


def weights_digest(model: VisionModel) -> str:
    """Name a backbone by its weights: 16 hex digits, whatever head sits on it."""
    found = hashlib.sha256()
    for name, value in sorted(model.trunk.state_dict().items()):
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


class View:
    """A suspect as its verifier sees it: no more than the access declared, every query counted."""

    def __init__(self, model: VisionModel, access: Access) -> None:
        self._model = clone(model).requires_grad_(False)
        self._access = access
        self.queries = 0

    def labels(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to predicted classes (b,)."""
        self._ask(Access.LABELS, len(images))
        return self._logits(images).argmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to class scores (b, k)."""
        self._ask(Access.LOGITS, len(images))
        return self._logits(images)

    def features(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to pooled features (b, d)."""
        self._ask(Access.FEATURES, len(images))
        with torch.no_grad():
            return self._model.features(images)

    @property
    def network(self) -> VisionModel:
        """Return the network itself, in eval mode and frozen."""
        self._ask(Access.WEIGHTS, 0)
        return self._model

    def _logits(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self._model.logits(images)

    def _ask(self, wanted: Access, queries: int) -> None:
        if wanted not in self._access:
            raise PermissionError(
                f"expected use of {self._access.text or 'nothing'} only, as declared in `needs`, "
                f"got a request for {wanted.text}"
            )
        self.queries += queries
