"""Move a stolen model's weights back towards the public model it was made from.

Source: M. Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv:2109.01903
(weight-space ensembling).

There the base is the zero-shot model and the other end the fine-tuned one; here they are the public
model and the released one. For DINOv2 or CLIP the thief has the public model anyway: only what the
owner added to it is at stake, and `share` trades that against the mark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from bench.models import VisionModel, clone
from bench.registry import attack
from bench.types import (
    Access,
    Change,
    Context,
    Incompatible,
    Passes,
    PositiveShare,
    Sizes,
    UserError,
)


@attack("interpolate")
@dataclass(frozen=True, slots=True)
class Interpolate:
    """Mix `share` of the released backbone with the rest of the public, unmarked one.

    * `share`: how much of the released model is left; at none it would be the clean owner.
    """

    share: PositiveShare = 0.5

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "merging"
    uses_base: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the mixture, with the victim's head; of two equal models, their equal."""
        if ctx.base is None:
            raise UserError(
                "interpolate: expected the public model, got none; hand it over as `base` in the "
                "attack's context"
            )
        model, base = clone(victim), ctx.base.trunk.state_dict()
        for name, value in model.trunk.state_dict().items():
            if name not in base or base[name].shape != value.shape:
                raise Incompatible(
                    f"interpolate: expected a model of the public model's shape, got one whose "
                    f"{name} is not; put it before attacks that change the architecture"
                )
            if value.is_floating_point():  # counters stay the victim's
                # Not the sum of two products: rounding would move weights that are equal.
                value.copy_(torch.lerp(base[name].to(value), value, self.share))
        return model
