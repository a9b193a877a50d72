"""Change a stolen model's weights, by what is asleep or common in them, before it is fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.models import VisionModel, clone, symmetry
from bench.registry import attack
from bench.training import in_batches
from bench.types import (
    Access,
    Change,
    Context,
    NotNegative,
    OpenShare,
    Passes,
    PositiveShare,
    Sizes,
)

BATCH = 64
"""Images per pass; no result depends on it but for rounding."""


@attack("prune.activations")
@dataclass(frozen=True, slots=True)
class FinePruning:
    """Zero the MLP neurons that the thief's images activate least; then fine-tune, by a chain.

    A neuron is worth the mean magnitude of its activation over images and tokens. What a trigger
    alone sets off is asleep on clean images. On `mini`, whose MLPs are as narrow as its stream, no
    neuron is: half of them cost the embedding as much whichever half it is.

    Source: K. Liu, B. Dolan-Gavitt, S. Garg, "Fine-pruning: defending against backdooring attacks
    on deep neural networks", arXiv:1805.12185. There channels of the last convolution go; here
    neurons of the last blocks. As an attack, of 0.6 to 0.95 of a layer and 3 to 10 epochs, in
    N. Lukas et al., "SoK: how robust is image classification deep neural network watermarking?",
    arXiv:2108.04974.

    * `data`: the data set whose images the thief looks at; none: the probe's.
    * `amount`: the share of neurons, ranked block by block.
    * `depth`: the share of the blocks that are pruned, the last ones, rounded up.
    """

    data: str | None = None
    amount: OpenShare = 0.6
    depth: PositiveShare = 1 / 3

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "compression"

    def passes(self, sizes: Sizes) -> Passes:
        """Count one look at every image."""
        return Passes(sizes.images)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the pruned copy; notes say how many neurons of a block are gone, and of which.

        Raises:
            UserError: the victim is no pre-norm transformer of timm's or open_clip's.

        """
        model = clone(victim).to(ctx.device)
        blocks = symmetry.read(model).blocks
        first = len(blocks) - math.ceil(round(self.depth * len(blocks), 6))
        pruned = [mlp for _, mlp in blocks[first:]]
        with torch.no_grad():
            for mlp, worth in zip(pruned, _activity(model, pruned, ctx), strict=True):
                _kill(mlp, worth.argsort(stable=True)[: round(self.amount * mlp.hidden)])
        gone = round(self.amount * pruned[0].hidden)
        model.notes = {"neurons": gone, "first_block": first}
        return model


def _activity(model: VisionModel, mlps: list[symmetry.Mlp], ctx: Context) -> list[Tensor]:
    """Return the mean magnitude of every neuron (m,) of each MLP, over images and tokens."""
    totals = [torch.zeros(mlp.hidden, dtype=torch.float64, device=ctx.device) for mlp in mlps]
    writers = [_module_of(model, mlp.writer.weight) for mlp in mlps]

    def adding(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            total.add_(given[0].abs().double().flatten(0, -2).sum(0))

        return add

    hooks = [
        writer.register_forward_pre_hook(adding(total))
        for writer, total in zip(writers, totals, strict=True)
    ]
    try:
        with torch.inference_mode():
            for _ in in_batches(
                len(ctx.images),
                BATCH,
                lambda part: model.forward_features(ctx.images.batch(part, ctx.device)),
            ):
                pass  # what is wanted passes the hooks
    finally:
        for hook in hooks:
            hook.remove()
    return totals


def _module_of(model: nn.Module, weight: nn.Parameter) -> nn.Module:
    return next(m for m in model.modules() if getattr(m, "weight", None) is weight)


def _kill(mlp: symmetry.Mlp, neurons: Tensor) -> None:
    """Zero what reads for these neurons and what they write, in place."""
    mlp.writer.weight[:, neurons] = 0
    for reader in mlp.readers:
        for packed in range(len(reader.weight) // mlp.hidden):  # a gated one may hold two maps
            reader.weight[packed * mlp.hidden + neurons] = 0
            if reader.bias is not None:
                reader.bias[packed * mlp.hidden + neurons] = 0


@attack("noise.shift")
@dataclass(frozen=True, slots=True)
class WeightShift:
    """Take from every filter the mean of its layer's, times `factor`, and add noise.

    Source: N. Lukas, E. Jiang, X. Li, F. Kerschbaum, "SoK: how robust is image classification deep
    neural network watermarking?", arXiv:2108.04974 (weight shifting), whose layers are
    convolutions and which then fine-tunes for 5 to 10 epochs: chain it with finetune.classify.

    * `factor`: how often the mean is taken away: 1.2 to 1.5 there.
    * `sigma`: the deviation of the noise, in those of each tensor: 0 on ImageNet there, else 1.

    Filters are rows of the blocks' linear layers. The library's own classifier is left alone.
    """

    factor: NotNegative = 1.2
    sigma: NotNegative = 0.0

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "compression"

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the shifted copy."""
        model = clone(victim)
        with torch.no_grad():
            for weight in (layer.weight for layer in model.layers()):
                spread, mean = weight.std(correction=0), weight.mean(0, keepdim=True)
                noise = torch.randn(weight.shape, generator=ctx.rng).to(weight)
                weight.add_(noise * (self.sigma * spread) - self.factor * mean)
        return model
