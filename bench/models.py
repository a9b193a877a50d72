"""Give vision models of every library one vocabulary, and write them down without pickling.

A `VisionModel` takes images in [0, 1] and does its own resizing and normalisation. It is rebuilt
from an `Architecture`, which is JSON, and a state dict, which is safetensors.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench import measure
from bench.data import Preprocess
from bench.heads import ClassifierHead as ClassifierHead
from bench.heads import DptSegmenter, LinearSegmenter, make_head
from bench.heads import Head as Head
from bench.heads import SegmentationHead as SegmentationHead
from bench.trunks import OpenClipViT as OpenClipViT
from bench.trunks import OtherTrunk as OtherTrunk
from bench.trunks import TimmViT as TimmViT
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

SHAPES: dict[str, dict[str, Json]] = {
    "mini": {},
    "mini-deep": {"depth": 8},
    "mini-wide": {"embed_dim": 64, "num_heads": 4},
}
"""The embedded architectures, by where they differ from `MINI`."""

DRAWS = frozenset(
    {"uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_"}
    | {"erfinv_", "mul_", "add_", "clamp_"}
)
"""What the libraries make first weights with, in place."""

Part = Literal["mlp", "heads", "width"]
"""What can be cut out of a transformer: MLP neurons, attention heads, residual channels."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """How large each part of a transformer is: neurons and heads of a block, residual channels."""

    mlp: int
    heads: int
    width: int


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything but the weights: enough to rebuild a model from a state dict.

    `head` is None (features only), "own" (the library's own classifier), a `Head` or a
    `SegmentationHead`. `tag` names open_clip's pretrained weights: preprocessing and activation
    function follow it, whether or not the weights come from there.
    """

    library: Literal["embedded", "timm", "open_clip"]
    name: str
    image_size: int | None = None
    head: Head | SegmentationHead | Literal["own"] | None = None
    pruned: Dimensions | None = None  # None: of the library's own size
    tag: str | None = None

    def json(self) -> Json:
        """Return the form that artefacts store."""
        return dataclasses.asdict(self)

    @staticmethod
    def of(value: Mapping[str, Json]) -> Architecture:
        """Read back what `json` wrote."""
        head = value["head"]
        if isinstance(head, dict):
            segments = "blocks" in head
            head = SegmentationHead(**head) if segments else Head(**head)
        cut = value["pruned"]
        pruned = None if cut is None else Dimensions(**cut)
        return Architecture(
            value["library"], value["name"], value["image_size"], head, pruned, value["tag"]
        )


class VisionModel(nn.Module):
    """A backbone with its preprocessing and, perhaps, a head for images or for pixels.

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
        self.head: ClassifierHead | LinearSegmenter | DptSegmenter | None = None
        if not isinstance(architecture.head, str | None):
            self.head = make_head(trunk, architecture.head, preprocess.size[0])

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, in order.

        Raises:
            Incompatible: the model is not a sequence of transformer blocks.

        """
        if self.trunk.blocks is None:
            raise Incompatible(
                f"expected a sequence of transformer blocks, got {self.architecture.name}, "
                "whose blocks, if any, are no plain sequence; choose a plain vision transformer"
            )
        return cast(nn.ModuleList, self.trunk.blocks)

    @property
    def classes(self) -> int:
        """Classes that the model sorts images into, 0 where it has no classifier in use."""
        if isinstance(self.architecture.head, Head):
            return self.architecture.head.classes
        if self.architecture.head != "own" or isinstance(self.trunk, OpenClipViT):
            return 0
        net = self.trunk.net if isinstance(self.trunk, OtherTrunk) else self.trunk.vit
        return int(cast(int, net.num_classes))

    @property
    def classifier_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters of a classifier that the library keeps within the backbone."""
        if self.architecture.head != "own" or isinstance(self.trunk, OpenClipViT):
            return ()
        net = self.trunk.net if isinstance(self.trunk, OtherTrunk) else self.trunk.vit
        return tuple(cast(nn.Module, cast(Any, net).get_classifier()).parameters())

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
            tokens = _call(block, tokens)
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
        if isinstance(self.head, ClassifierHead):
            return cast(Tensor, self.head(self.pooled(tokens)))
        if self.architecture.head != "own":
            raise Incompatible(f"{self.architecture.name} has no classification head")
        return cast("TimmViT | OtherTrunk", self.trunk).own_logits(tokens)

    def segment(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to class scores of their pixels (b, k, h, w).

        Raises:
            Incompatible: the model has no segmentation head.

        """
        described = self.architecture.head
        if self.head is None or not isinstance(described, SegmentationHead):
            raise Incompatible(f"{self.architecture.name} has no segmentation head")
        tokens, done = self.embed(images), 0
        maps, first = list[Tensor](), list[Tensor | None]()
        for block in described.blocks:
            tokens, done = self.run_blocks(tokens, done, block + 1), block + 1
            found = self.finish(tokens)
            patches = found[:, self.prefix :].mT  # (b, d, n)
            grid = cast("TimmViT | OpenClipViT", self.trunk).grid
            maps.append(patches.reshape(*patches.shape[:2], *grid))  # (b, d, h, w)
            first.append(found[:, : self.prefix] if self.prefix else None)
        scores = self.head(maps, first)
        return F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits where there is a head, of pixels or images, else the output embedding."""
        if isinstance(self.architecture.head, SegmentationHead):
            return self.segment(images)
        tokens = self.forward_features(images)
        has_head = self.architecture.head is not None
        return self.forward_head(tokens) if has_head else self.embedding(tokens)


def _plain(block: nn.Module, tokens: Tensor) -> Tensor:
    return cast(Tensor, block(tokens))


_call: Callable[[nn.Module, Tensor], Tensor] = _plain
"""How tokens are sent through a block: as it is written, or compiled."""

GRAPHS = 64
"""Versions of a compiled block that are kept: shapes, precisions, trained or not, models."""


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Have `torch.compile` run the transformer blocks of all models in this process, or not.

    It is the call that is compiled, with the block as an argument: blocks that are alike share a
    graph, and models, their copies and the names of their weights stay as they are.
    """
    global _call
    before = _call
    with contextlib.ExitStack() as limits:
        if wanted:
            limits.enter_context(
                torch._dynamo.config.patch(
                    recompile_limit=GRAPHS,
                    skip_nnmodule_hook_guards=False,  # a plug-in may put its hooks on later
                )
            )
        _call = _compiled() if wanted else _plain
        try:
            yield
        finally:
            _call = before


@functools.cache
def _compiled() -> Callable[[nn.Module, Tensor], Tensor]:
    return torch.compile(_plain)


def refuse_no_compiler(device: torch.device) -> None:
    """Compile something small.

    Raises:
        UserError: it cannot be done on this device.

    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception as error:  # dynamo and its backends have many families of errors
        raise UserError(
            f"--compile: expected a compiler that PyTorch can use ({_first_line(error)}); install "
            "g++ (on a GPU: Triton, too), or leave --compile out"
        ) from None


def clone(model: VisionModel) -> VisionModel:
    """Copy a model, its notes left out; the copy is in eval mode and trainable throughout."""
    made = copy.deepcopy(model).eval().requires_grad_(True)
    made.notes = {}
    return made


def with_head(
    model: VisionModel, head: Head | SegmentationHead, rng: torch.Generator
) -> VisionModel:
    """Copy a model and give the copy a fresh head drawn from `rng`."""
    made = clone(model)
    if made.architecture.head == "own":  # `build` makes no own classifier beside another head
        trunk = made.trunk
        net = trunk.net if isinstance(trunk, OtherTrunk) else cast(TimmViT, trunk).vit
        net.reset_classifier(0)  # type: ignore[operator]
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


def build(
    architecture: Architecture, pretrained: bool = False, revision: str | None = None
) -> VisionModel:
    """Make a model of this architecture, untrained unless `pretrained` asks the model hub.

    From open_clip's hub come the weights that `architecture.tag` names. `revision` is a commit of
    the hub, by default the latest.

    Raises:
        UserError: the library does not know the name, or keeps no revisions of its weights.

    """
    makers = {"embedded": _embedded, "timm": _timm, "open_clip": _open_clip}
    # The libraries draw first weights on the global generator: it is put back where it was.
    with torch.random.fork_rng(devices=[]), _quietly():
        make, pruned = makers[architecture.library], architecture.pruned
        if pruned is None:
            return make(architecture, pretrained, revision).eval()
        own: Literal["own"] | None = "own" if architecture.head == "own" else None
        model = make(dataclasses.replace(architecture, head=own), pretrained, revision)
        for part, left in dataclasses.asdict(pruned).items():
            narrow(model, cast(Part, part), left)
        # A head of ours comes last: it is as wide as what is left.
        model.architecture = architecture
        if not isinstance(architecture.head, str | None):
            model.head = make_head(model.trunk, architecture.head, model.preprocess.size[0])
        return model.eval()


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


def _embedded(architecture: Architecture, pretrained: bool, revision: str | None) -> VisionModel:
    from timm.models.vision_transformer import VisionTransformer

    changes = SHAPES.get(architecture.name)
    if changes is None:
        known = ", ".join(SHAPES)
        raise UserError(f"expected an embedded model of {known}, got '{architecture.name}'")
    half = (0.5, 0.5, 0.5)
    trunk = TimmViT(VisionTransformer(**{**MINI, **changes}))
    return VisionModel(architecture, trunk, Preprocess((32, 32)), half, half)


def _timm(architecture: Architecture, pretrained: bool, revision: str | None) -> VisionModel:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    size = architecture.image_size
    extra: dict[str, Any] = {} if size is None else {"img_size": size}
    if architecture.head != "own":
        extra["num_classes"] = 0
    if pretrained and revision:
        hub = getattr(timm.get_pretrained_cfg(architecture.name), "hf_hub_id", None)
        extra["pretrained_cfg_overlay"] = {"hf_hub_id": _pinned(architecture, hub, revision)}
    try:
        net = timm.create_model(architecture.name, pretrained=pretrained, **extra)
    except TypeError as error:  # a convolutional model takes no img_size
        raise UserError(f"timm model {architecture.name}: {_first_line(error)}") from error
    trunk = TimmViT(net) if isinstance(net, VisionTransformer) else OtherTrunk(net)
    config = timm.data.resolve_model_data_config(net)  # type: ignore[attr-defined, no-untyped-call]
    side = config["input_size"][-2:] if size is None else (size, size)
    preprocess = Preprocess(
        (int(side[0]), int(side[1])),
        float(config["crop_pct"]),
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        "squash" if config["crop_mode"] == "squash" else "center",
    )
    return VisionModel(architecture, trunk, preprocess, config["mean"], config["std"])


def _pinned(architecture: Architecture, hub: str | None, revision: str) -> str:
    """Name a place on the hub at one commit, as timm writes it."""
    if not hub:
        raise UserError(
            f"{architecture.library} {architecture.name}: revision: expected none, the library "
            "keeps these weights elsewhere than on the hub; leave it out, or give their `digest`"
        )
    return f"{hub}@{revision}"


def _open_clip(architecture: Architecture, pretrained: bool, revision: str | None) -> VisionModel:
    import open_clip
    from timm.models.vision_transformer import VisionTransformer

    tag, size = architecture.tag, architecture.image_size
    published = open_clip.get_pretrained_cfg(architecture.name, tag) if tag else {}
    weights = tag if pretrained else None
    if pretrained and revision:
        # open_clip takes no revision, but a file that it fetched itself.
        hub, _, file = published.get("hf_hub", "").rpartition("/")
        _pinned(architecture, hub, revision)
        weights = open_clip.pretrained.download_pretrained_from_hf(hub, file or None, revision)
    model = open_clip.create_model(
        architecture.name,
        pretrained=weights,
        device=torch.get_default_device(),
        force_image_size=size,
        force_quick_gelu=bool(published.get("quick_gelu")),
    )
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
    config = {**open_clip.get_model_preprocess_cfg(model), **published}
    preprocess = Preprocess(
        size2,
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        mode="squash" if config.get("resize_mode") == "squash" else "center",
    )
    return VisionModel(architecture, trunk, preprocess, tuple(config["mean"]), tuple(config["std"]))


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
    model.architecture = dataclasses.replace(model.architecture, pruned=dimensions(model))


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
    return Dimensions(first.mlp.fc1.out_features, first.attn.num_heads, model.width)


def _traced(model: VisionModel) -> Callable[..., Any]:
    """Trace a pass and return what finds the group of weights that goes with given channels."""
    import torch_pruning as tp

    def answer(model: VisionModel, images: Tensor) -> Tensor:
        # A head of ours is left out: it reads every channel twice, which the trace overlooks.
        return model(images) if model.head is None else model.features(images)

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
    if vit.attn_pool is not None or not layer_norms or not isinstance(head, Head | str | None):
        raise UserError(
            f"expected a transformer with layer norms, without attention pooling or a head for "
            f"masks, to change its width, got {model.architecture.name}; cut 'mlp' or 'heads'"
        )


def _narrow_ends(model: VisionModel, left: int, gone: list[int]) -> None:
    """Bring what the trace of the trunk does not reach to the new width."""
    import torch_pruning as tp

    vit: Any = cast(TimmViT, model.trunk).vit
    before = model.width
    vit.embed_dim = vit.num_features = vit.head_hidden_size = model.trunk.width = left
    if isinstance(model.head, ClassifierHead):
        both = gone + [before + channel for channel in gone]  # of [CLS; mean patch]
        tp.prune_layernorm_out_channels(model.head.norm, both)
        tp.prune_linear_in_channels(model.head.linear, both)


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
    """A suspect as its verifier sees it: no more than the access declared, every query counted.

    `head` maps the suspect's final tokens (b, n, d) to class scores (b, k), as its own would.
    """

    def __init__(
        self, model: VisionModel, access: Access, head: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self._model = clone(model).requires_grad_(False)
        self._head = head or self._model.forward_head
        self._access = access
        self.queries = 0

    def labels(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to predicted classes (b,)."""
        return self._asked(Access.LABELS, self._logits, images).argmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to class scores (b, k)."""
        return self._asked(Access.LOGITS, self._logits, images)

    def features(self, images: Tensor) -> Tensor:
        """Map (b, 3, h, w) to pooled features (b, d)."""
        return self._asked(Access.FEATURES, self._model.features, images)

    @property
    def network(self) -> VisionModel:
        """Return the network itself, in eval mode and frozen."""
        self._refuse(Access.WEIGHTS)
        return self._model

    def _logits(self, images: Tensor) -> Tensor:
        return self._head(self._model.forward_features(images))

    @torch.no_grad()
    def _asked(self, wanted: Access, ask: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        self._refuse(wanted)
        found = ask(images)
        self.queries += len(images)  # only now: what ran out of memory is asked again, in parts
        measure.count(queries=len(images))
        return found

    def _refuse(self, wanted: Access) -> None:
        if wanted not in self._access:
            raise PermissionError(
                f"expected use of {self._access.text or 'nothing'} only, as declared in `needs`, "
                f"got a request for {wanted.text}"
            )
