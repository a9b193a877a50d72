"""Write a stolen model's weights down otherwise: what it computes stays the same, to rounding.

Every attack here moves along a freedom that a transformer has, see `bench.models.symmetry`. It
takes no image, no training and seconds. The thief ships the result as a model of the victim's
features: a linear map behind the final norm takes back what the residual stream went through, where
norms do not do so by themselves. What the owner finds inside has another basis, scale,
place or order.

Weights are computed in float64 and cast once for each transform to the victim's precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from bench.models import VisionModel, symmetry
from bench.registry import attack
from bench.types import (
    Access,
    Change,
    Context,
    NotNegative,
    Passes,
    PositiveFloat,
    PositiveShare,
    Sizes,
    UserError,
)


@attack("reparam.permute")
@dataclass(frozen=True, slots=True)
class Permute:
    """Permute channels of the residual stream.

    Source: H. Yan et al., "Rethinking white-box watermarks on deep learning models under neural
    structural obfuscation", arXiv:2303.09732, which permutes neurons; in a transformer the stream
    has one order for all blocks.

    * `share`: the share of the channels that move, two or more of them, all in one cycle.
    """

    share: PositiveShare = 1.0

    change: ClassVar[Change] = "exact"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with its channels in another order."""
        order = symmetry.permutation(victim.width, self.share, ctx.rng)
        return symmetry.map_stream(victim, order)


@attack("reparam.rotate")
@dataclass(frozen=True, slots=True)
class Rotate:
    """Rotate the residual stream about the all-ones direction, which layer norms take out.

    Source: S. Ashkboos et al., "SliceGPT: compress large language models by deleting rows and
    columns", arXiv:2401.15024, section 3, for RMS norms. With layer norms the direction of equal
    channels must stay, and gains are folded into what reads behind them.

    * `angle`: 1 turns a direction by about 0.7 rad; null is a rotation drawn from all there are.

    A model whose stream starts from a norm (CLIP) cannot be rotated: permute it.
    """

    angle: PositiveFloat | None = None

    change: ClassVar[Change] = "exact"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the rotated copy."""
        turn = symmetry.rotation(victim.width, self.angle, ctx.rng)
        return symmetry.map_stream(victim, turn)


@attack("reparam.scale")
@dataclass(frozen=True, slots=True)
class Scale:
    """Multiply the residual stream by a constant, which every norm takes out.

    The eps of these norms is in the units of the stream, so the thief multiplies it too.

    * `factor`: the constant; a power of 2 leaves weights exact in any precision.
    """

    factor: PositiveFloat = 8.0

    change: ClassVar[Change] = "exact"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with the larger or smaller stream."""
        same = torch.eye(victim.width)
        return symmetry.map_stream(victim, same, scale=self.factor)


@attack("reparam.shift")
@dataclass(frozen=True, slots=True)
class Shift:
    """Add to all channels of the residual stream alike, which every layer norm takes out.

    * `constant`: what every token gets as it enters.
    * `sd`: the deviation of a normal distribution, from which each column of each writer, each
      bias and each token draws what it adds; then the shift differs by token, image and block.

    One of both must be more than 0.
    """

    constant: NotNegative = 10.0
    sd: NotNegative = 0.0

    change: ClassVar[Change] = "exact"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with the shifted stream."""
        if not self.constant and not self.sd:
            raise UserError("reparam.shift: expected a constant or an sd above 0, got none")
        model = victim
        if self.constant:
            same = torch.eye(victim.width)
            model = symmetry.map_stream(model, same, shift=self.constant)
        return symmetry.shift_writers(model, self.sd, ctx.rng) if self.sd else model


Freedom = Literal["all", "norms", "neurons", "gates", "heads", "queries", "values", "biases"]


@attack("reparam.internal")
@dataclass(frozen=True, slots=True)
class Internal:
    """Change blocks inside: the residual stream and all that is added to it stay as they are.

    Sources: H. Yan et al., arXiv:2303.09732 (neurons); B. Zeng et al., "HuRef: human-readable
    fingerprint for large language models", arXiv:2312.04828, section 3 (maps within heads).

    * `what`: "norms" and LayerScale are folded into weights; "neurons" of MLPs, and "heads", are
      permuted; linear units of gated MLPs ("gates") are scaled; "queries" and keys, or "values"
      and what reads them, get random inverse maps in each head; "biases" of keys and values move.
      "all" leaves out what does not exist in a model, and notes it.
    * `sd`: the deviation of what moves biases, and of the logarithms that scale gates.
    """

    what: Freedom = "all"
    sd: PositiveFloat = 0.5

    change: ClassVar[Change] = "exact"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the changed copy; notes say what does not exist in this model."""
        freedoms = self._freedoms(ctx.rng)
        if self.what != "all":
            return freedoms[self.what](victim)
        symmetry.read(victim)  # refuses what has no such blocks at all
        model, absent = victim, list[str]()
        for name, change in freedoms.items():
            try:
                model = change(model)
            except UserError:  # such a freedom is what the model does not have
                absent.append(name)
        model.notes = {"absent": absent}
        return model

    def _freedoms(self, rng: torch.Generator) -> dict[str, Callable[[VisionModel], VisionModel]]:
        return {
            "norms": symmetry.fold,
            "neurons": lambda model: symmetry.permute_neurons(model, rng),
            "gates": lambda model: symmetry.scale_gates(model, self.sd, rng),
            "heads": lambda model: symmetry.permute_heads(model, rng),
            "queries": lambda model: symmetry.mix_queries(model, rng),
            "values": lambda model: symmetry.mix_values(model, rng),
            "biases": lambda model: symmetry.move_biases(model, self.sd, rng),
        }
