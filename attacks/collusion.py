"""Average copies of one model that its owner marked under different keys.

Source: H. Chen, B. D. Rouhani, C. Fu, J. Zhao, F. Koushanfar, "DeepMarks: a secure fingerprinting
framework for digital rights management of deep learning models", arXiv:1804.03648, section 5
(collusion of users who average the weights they were given).

Each copy has a mark of its own; all else they have in common. The thieves need no images, no base
and no other model. Their twin is the average in which the clean owner takes the victim's place. It
has the other keys' marks as the victim's average has, and lacks the claimed one alone. An average
of unmarked copies would say nothing, for they are all one model, the clean owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from bench.models import VisionModel, clone
from bench.registry import attack
from bench.types import Access, Change, Context, Incompatible, Passes, Sizes, UserError


@attack("collusion")
@dataclass(frozen=True, slots=True)
class Collusion:
    """Average the backbones of the victim and of the owner's copies under other keys.

    * `copies`: how many are averaged, the victim among them; each costs the owner a protection.
    """

    copies: Annotated[int, Field(ge=2)] = 2

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "merging"

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the average, with the victim's head; of equal models, their equal."""
        if ctx.copies is None:
            raise UserError(
                "collusion: expected copies under other keys, got none; hand them over as `copies` "
                "in the attack's context, or choose a method that marks"
            )
        model = clone(victim)
        mixed = model.trunk.state_dict()
        # What the others are away from the victim is gathered one by one: no more than three models
        # are in memory, and where all are equal nothing is rounded.
        away = {n: torch.zeros_like(v) for n, v in mixed.items() if v.is_floating_point()}
        for i in range(self.copies - 1):
            other = ctx.copies(i).trunk.state_dict()
            for name, total in away.items():
                if name not in other or other[name].shape != mixed[name].shape:
                    raise Incompatible(
                        f"collusion: expected copies of the victim's shape, got one whose {name} "
                        "is not; put it before attacks that change the architecture"
                    )
                total += other[name].to(total) - mixed[name]
        for name, total in away.items():  # counters stay the victim's
            mixed[name] += total / self.copies
        return model
