"""Add noise to a stolen model's weights.

The noise alone: weight shifting, in which it was proposed, also subtracts each layer's mean filter
and trains on afterwards. Its layers are convolutions; here the linear modules count as well.
As in pruning, both are those of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.models import VisionModel, clone
from bench.registry import attack
from bench.types import Access, Change, Context, NotNegative, Passes, Sizes


@attack("noise.weights", version=2)
@dataclass(frozen=True, slots=True)
class WeightNoise:
    """Add Gaussian noise to the blocks' weights, `sigma` in units of each tensor's deviation.

    Source: N. Lukas, E. Jiang, X. Li, F. Kerschbaum, "SoK: how robust is image classification deep
    neural network watermarking?", arXiv:2108.04974 (weight shifting).

    * `sigma`: how much of it; at 0 none.

    The library's own classifier is left alone, as any head is.
    """

    sigma: NotNegative = 0.05

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "compression"

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the noisy copy."""
        model = clone(victim)
        with torch.no_grad():
            for weight in (layer.weight for layer in model.layers()):
                noise = torch.randn(weight.shape, generator=ctx.rng).to(weight)
                weight.add_(noise * (self.sigma * weight.std(correction=0)))
        return model
