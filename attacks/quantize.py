"""Store a stolen model's weights in fewer bits.

Rounding is to nearest, on a symmetric grid scaled to the largest magnitude. Integers run from -127
to 127, or -7 to 7; the eight-bit float is E4M3, whose largest value is 448. The suspect computes
with the rounded weights in its own precision: activations are not quantised and nothing is trained.

As in pruning, weights are those of linear and convolution modules of the blocks. Biases, norms,
embeddings and parameters of other modules (the packed queries, keys and values of open_clip's
attention) keep their bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.models import VisionModel, clone
from bench.registry import attack
from bench.types import Access, Change, Context, Passes, Sizes

LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
"""The value on a format's grid that the largest magnitude is mapped to."""


@attack("quantize", version=2)
@dataclass(frozen=True, slots=True)
class Quantize:
    """Round the weights of the transformer blocks to int8, int4 or fp8.

    Source: M. Nagel et al., "A white paper on neural network quantization", arXiv:2106.08295,
    section 2 (integers); P. Micikevicius et al., "FP8 formats for deep learning", arXiv:2209.05433
    (E4M3).

    * `format`: integers of 8 or 4 bits, or the eight-bit float.
    * `per`: whether each output channel, or each weight tensor as a whole, has its own scale.

    The library's own classifier is left alone, as any head is.
    """

    format: Literal["int8", "int4", "fp8"] = "int8"
    per: Literal["channel", "tensor"] = "channel"

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "compression"

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with rounded weights; notes say how far off they are."""
        model = clone(victim)
        error = norm = 0.0
        with torch.no_grad():
            for weight in (layer.weight for layer in model.layers()):
                rounded = self._rounded(weight)
                error += float((rounded - weight).double().square().sum())
                norm += float(weight.double().square().sum())
                weight.copy_(rounded)
        model.notes = {"relative_error": (error / norm) ** 0.5 if norm else 0.0}
        return model

    def _rounded(self, weight: Tensor) -> Tensor:
        magnitudes = weight.abs()
        if self.per == "channel":  # output channels come first
            largest = magnitudes.flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1))
        else:
            largest = magnitudes.max()
        step = largest / LARGEST[self.format]
        # All zero: any step will do. The smallest normal number also keeps the quotient finite.
        step = step.clamp_min(torch.finfo(weight.dtype).tiny)
        scaled = weight / step
        if self.format == "fp8":  # on the CPU: not every device knows the type
            return scaled.cpu().to(torch.float8_e4m3fn).to(weight) * step
        return scaled.round() * step
