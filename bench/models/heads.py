"""Put a head on a backbone: a classifier of images, or of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from bench.models.backbones import Backbone
from bench.records.nouns import Incompatible


@dataclass(frozen=True, slots=True)
class Head:
    """A classifier on [CLS; mean patch]: LayerNorm, dropout, linear (ActiveMark, section 5.1)."""

    classes: int
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class SegmentationHead:
    """A classifier of pixels on the patch tokens that `blocks` put out, after the final norm.

    "linear" is a LayerNorm and a 1x1 convolution on one block; "dpt" fuses four (R. Ranftl, A.
    Bochkovskiy, V. Koltun, "Vision transformers for dense prediction", arXiv:2103.13413).
    """

    classes: int
    kind: Literal["linear", "dpt"]
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))  # JSON has lists only


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


class LinearSegmenter(nn.Module):
    """LayerNorm and a 1x1 convolution: every patch token is classified on its own."""

    def __init__(self, trunk: Backbone, head: SegmentationHead) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(trunk.num_features)
        self.convolution = nn.Conv2d(trunk.num_features, head.classes, 1)

    def forward(self, maps: list[Tensor], first: list[Tensor | None]) -> Tensor:
        """Map patch tokens (b, d, h, w) to class scores (b, k, h, w)."""
        normed = self.norm(maps[-1].movedim(1, -1)).movedim(-1, 1)
        return cast(Tensor, self.convolution(normed))


class LoneBatchNorm(nn.BatchNorm2d):
    """A batch norm that takes what it knows where a batch has one value a channel, and no spread.

    One image whose coarsest map is one pixel is such a batch; PyTorch's own refuses it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, d, h, w) to the same shape."""
        if not self.training or x.numel() > x.shape[1]:
            return super().forward(x)
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)


class DptSegmenter(nn.Module):
    """segmentation-models-pytorch's DPT decoder and segmentation head, as wide as the backbone."""

    def __init__(self, trunk: Backbone, head: SegmentationHead, stride: int) -> None:
        from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead

        super().__init__()
        count, width = len(head.blocks), trunk.num_features
        self.decoder = DPTDecoder(
            encoder_out_channels=[width] * count,
            encoder_output_strides=[stride] * count,
            encoder_has_prefix_tokens=trunk.prefix > 0,
            intermediate_channels=[width] * count,
            fusion_channels=width,
        )
        self.head = DPTSegmentationHead(width, head.classes)
        for parent in list(self.modules()):
            for name, norm in parent.named_children():
                if type(norm) is nn.BatchNorm2d:
                    setattr(parent, name, LoneBatchNorm(norm.num_features, norm.eps, norm.momentum))

    def forward(self, maps: list[Tensor], first: list[Tensor | None]) -> Tensor:
        """Map four maps (b, d, h, w) and their prefix tokens (b, p, d) to class scores."""
        return cast(Tensor, self.head(self.decoder(maps, first)))


def make_head(
    trunk: Backbone, head: Head | SegmentationHead, side: int
) -> ClassifierHead | LinearSegmenter | DptSegmenter:
    """Make the head described for a backbone on images of `side` pixels, PyTorch's first weights.

    Raises:
        Incompatible: the backbone has no patch tokens, or not as many as a DPT decoder can halve.

    """
    if isinstance(head, Head):
        return ClassifierHead(2 * trunk.num_features, head)
    if trunk.blocks is None:
        raise Incompatible(
            "expected a sequence of transformer blocks to segment with, got a backbone without one"
        )
    if head.kind == "linear":
        return LinearSegmenter(trunk, head)
    # The decoder halves and doubles: 14-pixel patches are taken for 16, and the output resized.
    stride = 2 ** round(math.log2(side / trunk.grid[0]))
    if any(side * stride % 32 for side in trunk.grid):  # its coarsest map has a pixel for every 32
        raise Incompatible(
            f"expected patches a side in multiples of {32 // stride} for a DPT decoder, got "
            f"{trunk.grid[0]} x {trunk.grid[1]}; choose the linear one"
        )
    return DptSegmenter(trunk, head, stride)
