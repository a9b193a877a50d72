"""Give vision models of every library one vocabulary, and write them down without pickling.

A `VisionModel` takes images in [0, 1] and does its own resizing and normalisation. It is rebuilt
from an `Architecture`, which is JSON, and a state dict, which is safetensors.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data.images import Preprocess
from bench.models import meter
from bench.models.backbones import Backbone
from bench.models.heads import (
    ClassifierHead,
    DptSegmenter,
    Head,
    LinearSegmenter,
    SegmentationHead,
    make_head,
)
from bench.records.nouns import Incompatible, Json, UserError, first_line

Part = Literal["mlp", "heads", "width"]
"""What can be cut out of a transformer: MLP neurons, attention heads, residual channels."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """How large a transformer is: neurons and heads of a block, residual channels, blocks."""

    mlp: int
    heads: int
    width: int
    depth: int


@dataclass(frozen=True, slots=True)
class Served:
    """What a server does between a question and its answer; `bench.models.serving` knows the kinds.

    `amount` is in the kind's own unit. `bound` is what was measured on clean images where a kind
    needs that, and `seed` the server's own number where it draws.
    """

    kind: str
    amount: float = 0.0
    bound: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything but the weights: enough to rebuild a model from a state dict.

    `head` is None (features only), "own" (the library's own classifier), a `Head` or a
    `SegmentationHead`. `tag` names published weights where a library has several of one model:
    preprocessing and activation function follow it, whether or not the weights come from there.
    `dimensions`, `readout`, `eps` and `patch` say where a model is another than its library makes.
    `served` says what stands between the model and who asks it, in the order in which it acts.
    """

    library: str
    name: str
    image_size: int | None = None
    head: Head | SegmentationHead | Literal["own"] | None = None
    dimensions: Dimensions | None = None  # None: of the library's own size
    tag: str | None = None
    readout: int | None = None  # channels out of a linear map behind the final norm; None: no map
    eps: float | None = None  # of the norms that read the residual stream; None: the library's own
    patch: int | None = None  # side of a patch in pixels, on the library's grid; None: its own
    served: tuple[Served, ...] | None = None  # None: nothing
    classes: int | None = None  # of the library's own classifier; None: as many as the library says
    config: str | None = None  # JSON a library makes the model from where a name does not say it

    def json(self) -> Json:
        """Return the form that artefacts store; a model as its library makes it needs no more."""
        found = dataclasses.asdict(self)
        return {k: v for k, v in found.items() if k not in _CHANGED or v is not None}

    @staticmethod
    def of(value: Mapping[str, Json]) -> Architecture:
        """Read back what `json` wrote."""
        head = value["head"]
        if isinstance(head, dict):
            segments = "blocks" in head
            head = SegmentationHead(**head) if segments else Head(**head)
        changed = {name: value.get(name) for name in _CHANGED}
        if changed["dimensions"] is not None:
            changed["dimensions"] = Dimensions(**changed["dimensions"])
        if changed["served"] is not None:
            changed["served"] = tuple(Served(**each) for each in changed["served"])
        return Architecture(
            value["library"], value["name"], value["image_size"], head, tag=value["tag"], **changed
        )


_CHANGED = ("dimensions", "readout", "eps", "patch", "served", "classes", "config")


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
        trunk: Backbone,
        preprocess: Preprocess,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.trunk = trunk
        self.preprocess = preprocess
        self.notes: dict[str, Json] = {}  # what the attack that made this model has to report
        self.secret: dict[str, Tensor] = {}  # what that attack keeps beside it, such as a key
        self.scaling = tuple(mean), tuple(std)  # as numbers: without weights the buffers have none
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
        return self.trunk.classes if self.architecture.head == "own" else 0

    @property
    def classifier_weights(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters of a classifier that the library keeps within the backbone."""
        kept = self.trunk.get_classifier() if self.architecture.head == "own" else None
        return () if kept is None else tuple(kept.parameters())

    def layers(self, entire: bool = False) -> list[nn.Linear | nn.Conv2d]:
        """List the linear and convolution modules that attacks on weights touch.

        They are those of the transformer blocks; where these are no plain sequence, all of the
        backbone. A classifier that the library keeps within the backbone is a head, not one of
        them. `entire` adds what is left out: embedding of patches, pooling, heads.
        """
        inner = self if entire else self.trunk if self.trunk.blocks is None else self.trunk.blocks
        heads = () if entire else self.classifier_weights
        return [
            layer
            for layer in inner.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
            if not any(layer.weight is weight for weight in heads)
        ]

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.trunk.width

    @property
    def num_features(self) -> int:
        """Width d of final tokens: of the residual stream, unless a linear readout follows it."""
        return self.trunk.num_features

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
        meter.count(images=len(images))
        return self.trunk.embed(self.normalise(images))

    def run_blocks(self, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Send the residual stream (b, n, d) through blocks start .. stop - 1."""
        blocks = self.blocks
        chosen = list(blocks)[start:stop]
        share = len(tokens) * len(chosen) / len(blocks)
        meter.count(forward=share)
        for block in chosen:
            tokens = _call(block, tokens)
        if tokens.requires_grad and meter.counting():
            tokens.register_hook(lambda _: meter.count(backward=share))  # type: ignore[no-untyped-call]
        return tokens

    def finish(self, tokens: Tensor) -> Tensor:
        """Apply the final norm to the residual stream (b, n, d), and a readout if there is one."""
        tokens, readout = self.trunk.finish(tokens), self.trunk.readout
        return tokens if readout is None else cast(Tensor, readout(tokens))

    def forward_features(self, images: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to final tokens (b, n, d), or what a model without them has."""
        if self.trunk.blocks is None:
            meter.count(forward=len(images), images=len(images))
            tokens = self.trunk.forward_features(self.normalise(images))
            if tokens.requires_grad and meter.counting():
                tokens.register_hook(  # type: ignore[no-untyped-call]
                    lambda g: meter.count(backward=len(g))
                )
            return tokens
        return self.finish(self.run_blocks(self.embed(images)))

    def embedding(self, tokens: Tensor) -> Tensor:
        """Map final tokens (b, n, d) to the model's own output embedding (b, d')."""
        return self.trunk.embedding(tokens)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Map final tokens (b, n, d) to [CLS; mean patch], (b, 2 d); without CLS the mean twice."""
        tokens = self.trunk.positions(tokens)
        patches = tokens[:, self.prefix :].mean(1)  # (b, d)
        first = tokens[:, 0] if self.trunk.has_class_token else patches
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
        return self.trunk.own_logits(tokens)

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
            maps.append(patches.reshape(*patches.shape[:2], *self.trunk.grid))  # (b, d, h, w)
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
    # Errors of dynamo and of its backends are RuntimeErrors; the others are of the tools they call.
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        raise UserError(
            f"--compile: expected a compiler that PyTorch can use ({first_line(error)}); install "
            "g++ (on a GPU: Triton, too), or leave --compile out"
        ) from None


def clone(model: VisionModel) -> VisionModel:
    """Copy a model, its notes left out; the copy is in eval mode and trainable throughout."""
    made = copy.deepcopy(model).eval().requires_grad_(True)
    made.notes, made.secret = {}, {}
    return made
