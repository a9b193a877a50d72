"""Suspects that calibrate the others: the model as it was released, and models that owe it nothing.

Source: A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual foundation models via
massive activations", arXiv:2510.04966, section 5 (independent models as negative suspects).

The paper downloads its independent models; these are trained from scratch on other images, in the
owner's own shape, so that no method can refuse them, or in another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench.models import VisionModel, clone
from bench.registry import attack
from bench.types import Access, Change, Context, Count, Passes, Shape, Sizes, UserError


@attack("control.identity")
@dataclass(frozen=True, slots=True)
class Identity:
    """Hand the released model on as it is."""

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "control"

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return an equal copy."""
        return clone(victim)


@attack("control.stranger")
@dataclass(frozen=True, slots=True)
class Stranger:
    """Put the index-th independently trained model of an embedded shape in the victim's place.

    * `index`: which, counted from 0.
    * `shape`: the owner's own, or one of another depth or width.
    """

    index: Count = 0
    shape: Shape = "mini"

    # A stranger without the owner's label space is found out when it is asked: incompatible.
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = False
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "control"

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the stranger; `victim` is not looked at."""
        if ctx.stranger is None:
            raise UserError(
                "expected independently trained models of this shape, got none; "
                "control.stranger needs an owner that comes with strangers, such as 'mini'"
            )
        found = ctx.stranger(self.index)
        assert found.architecture.name == self.shape, "the bench trains what `shape` names"
        return clone(found).to(ctx.device)
