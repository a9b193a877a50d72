"""Give a stolen model more parts than it needs: what it computes stays the same, to rounding.

Shapes change, so that methods which compare weights or write to the residual stream may find no
place to look at. As in `reparam`, no image is looked at and nothing is trained.

Source: H. Yan et al., "Rethinking white-box watermarks on deep learning models under neural
structural obfuscation", arXiv:2303.09732, section 4 (dummy neurons); channels, heads and blocks are
its idea carried over to transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from bench.models import VisionModel, symmetry
from bench.registry import attack
from bench.types import Access, Change, Context, Passes, Positive, PositiveFloat, Share, Sizes


@attack("structure.widen")
@dataclass(frozen=True, slots=True)
class Widen:
    """Repeat every channel of the residual stream, and split what reads it among the copies.

    * `times`: how many of each channel there are then. Shares are drawn for each channel.

    Means and variances over channels stay, which norms divide by. open_clip's towers cannot: their
    attention is as wide as their stream.
    """

    times: Annotated[int, Ge(2)] = 2

    change: ClassVar[Change] = "exact"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the wider copy."""
        return symmetry.widen(victim, self.times, ctx.rng)


@attack("structure.identity")
@dataclass(frozen=True, slots=True)
class IdentityBlocks:
    """Put blocks in that add nothing: the owner counts blocks, and finds another one.

    * `blocks`: how many. They are copies of the block in whose place they are put, with what writes
      to the residual stream set to 0.
    * `at`: where, as a share of the depth: 0 is before the first block, 1 behind the last.
    """

    blocks: Positive = 1
    at: Share = 0.0

    change: ClassVar[Change] = "exact"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the deeper copy."""
        place = round(self.at * len(symmetry.read(victim).blocks))
        return symmetry.add_blocks(victim, self.blocks, place)


@attack("structure.neurons")
@dataclass(frozen=True, slots=True)
class DummyNeurons:
    """Give every MLP hidden units that change nothing, hidden among the others.

    * `share`: how many, as a share of those there are.
    * `kind`: "zero" units are read by nothing; the outputs of a "clique" of equal ones cancel;
      "split" copies units and divides what these write.
    """

    share: PositiveFloat = 0.5
    kind: Literal["zero", "clique", "split"] = "clique"

    change: ClassVar[Change] = "exact"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with larger MLPs."""
        return symmetry.add_neurons(victim, self.share, self.kind, ctx.rng)


@attack("structure.heads")
@dataclass(frozen=True, slots=True)
class DummyHeads:
    """Give every attention heads that change nothing, hidden among the others.

    * `count`: how many more; "cancelling" ones come in pairs.
    * `kind`: what "zero" heads find is read by nothing; of two "cancelling" ones one writes what
      the other takes away.

    open_clip's towers cannot: their attention is as wide as their stream.
    """

    count: Positive = 2
    kind: Literal["zero", "cancelling"] = "cancelling"

    change: ClassVar[Change] = "exact"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with more heads."""
        return symmetry.add_heads(victim, self.count, self.kind, ctx.rng)
