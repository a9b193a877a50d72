"""Take the smallest weights out of a stolen model, one by one or by whole units.

Source: A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual foundation models via
massive activations", arXiv:2510.04966, section 4.2 (unstructured l1-norm pruning of the entire
model, 20 % and 40 %, no retraining).

The paper does not say whether magnitudes are ranked over the model or within a layer, nor which
tensors count as weights. Here `scope` chooses the first, and the second are the weights of linear
and convolution modules, as in PyTorch's own pruning. Biases, norms, tokens, positions and
parameters of other modules (the packed queries, keys and values of open_clip's attention) are left
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bench import models
from bench.models import VisionModel, clone
from bench.registry import attack
from bench.types import Access, Change, Context, OpenShare, PartialShare, Passes, Sizes, UserError


@attack("prune.l1", version=2)
@dataclass(frozen=True, slots=True)
class L1Prune:
    """Zero the share `amount` of a model's weights that is smallest in magnitude.

    * `amount`: the share of the weights.
    * `scope`: whether magnitudes are ranked over all that is pruned, or within each layer.
    * `what`: the transformer blocks, or the "entire model", as in the paper. Departure: the default
      leaves the embedding of patches alone, whose small weights a common ranking takes first. Of
      DeiT-Tiny's it zeroes 61 % at an amount of 20 %, which leaves a third of its accuracy.

    By default the library's own classifier is left alone, as any head is; an entire model has all
    its heads pruned.
    """

    amount: PartialShare = 0.2
    scope: Literal["global", "layer"] = "global"
    what: Literal["blocks", "entire model"] = "blocks"

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "compression"

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the pruned copy; notes say the sparsity reached."""
        model = clone(victim)
        weights = [layer.weight for layer in model.layers(entire=self.what == "entire model")]
        with torch.no_grad():
            for ranked in [weights] if self.scope == "global" else [[w] for w in weights]:
                _zero_smallest(ranked, self.amount)
        model.notes = {"sparsity": _sparsity(weights)}
        return model


@attack("prune.structured", version=2)
@dataclass(frozen=True, slots=True)
class StructuredPrune:
    """Cut the weakest share `amount` of a transformer's units out, none of them zeroed but gone.

    A unit is worth the sum of squares of all weights that go with it, biases apart.

    Source: G. Fang et al., "DepGraph: towards any structural pruning", arXiv:2301.12900, with group
    magnitudes (l2). To recover, chain it with finetune.classify.

    * `what`: the MLP neurons ("mlp") or the attention heads ("heads") of every block, ranked block
      by block, which leaves the residual stream as wide as it was; or the channels of that stream
      ("width").
    * `amount`: the share of the units; one at least goes, and one at least stays.

    The library's own classifier is left alone, as any head is: it has no say in what a unit is
    worth, and loses no more than what it read of channels that are gone.
    """

    what: models.Part = "mlp"
    amount: OpenShare = 0.2

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "compression"

    def passes(self, sizes: Sizes) -> Passes:
        """Count the one blank image that shows how layers hang together."""
        return Passes(1)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the smaller copy; notes say how many units (of each block) are left."""
        import torch_pruning as tp

        units = getattr(models.dimensions(victim), self.what)
        if units < 2:
            raise UserError(f"prune.structured: expected 2 or more {self.what} to cut, got {units}")
        # At least one goes, however small the share, and at least one stays.
        left = min(max(units - round(self.amount * units), 1), units - 1)
        model = clone(victim)
        models.narrow(model, self.what, left, tp.importance.GroupMagnitudeImportance(p=2))
        model.notes = {"units": units, "left": left}
        return model


def _sparsity(weights: Iterable[Tensor]) -> float:
    zeros, total = map(sum, zip(*((int((w == 0).sum()), w.numel()) for w in weights), strict=True))
    return zeros / total


def _zero_smallest(weights: Sequence[Tensor], amount: float) -> None:
    """Zero the smallest magnitudes of all `weights` together.

    Which of equal ones go, PyTorch's topk leaves open; here the first do.
    """
    magnitudes = torch.cat([weight.abs().flatten() for weight in weights]).float()  # (n,)
    left = round(amount * len(magnitudes))
    if not left:
        return
    # A selection: over fifty times as fast as PyTorch's topk on the 300 million of a ViT-L.
    limit = float(np.partition(magnitudes.cpu().numpy(), left - 1)[left - 1])
    left -= int((magnitudes < limit).sum())
    for weight in weights:
        magnitude = weight.abs().flatten()
        equal = (magnitude == limit).nonzero()[:left, 0]
        smallest = (magnitude < limit).index_fill(0, equal, True)
        weight.masked_fill_(smallest.view_as(weight), 0.0)  # +0: a factor of 0 would leave -0
        left -= len(equal)
