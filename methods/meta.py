"""A small classifier that tells what one model makes of images from what another makes of them.

Both verifications by external features end in one (Y. Li et al., https://arxiv.org/abs/2208.02820;
L. Zhu et al., https://arxiv.org/abs/2507.00724).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH, MOMENTUM, DECAY = 128, 0.9, 5e-4
"""How it is trained by SGD, beside its rate (the authors' code of both)."""

Layers = Sequence[tuple[Tensor, Tensor]]
"""Weights (o, i) and biases (o,) of linear maps, in order."""


def fitted(
    rows: Tensor,
    truth: Tensor,
    widths: Sequence[int],
    scores: Callable[[Tensor, Layers], Tensor],
    epochs: int,
    lr: float,
    rng: torch.Generator,
) -> Layers:
    """Train linear maps between `widths` on rows (n, i) and their classes (n,).

    `scores` maps rows and layers to what is compared with classes by cross-entropy.
    """
    layers = [_linear(i, o, rng) for i, o in itertools.pairwise(widths)]
    weights = [part.requires_grad_(True) for layer in layers for part in layer]
    optimiser = torch.optim.SGD(weights, lr=lr, momentum=MOMENTUM, weight_decay=DECAY)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(rows), generator=rng), BATCH):
            optimiser.zero_grad(set_to_none=True)
            loss = F.cross_entropy(scores(rows[chosen], layers), truth[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return [(weight.detach(), bias.detach()) for weight, bias in layers]


def through(rows: Tensor, layers: Layers) -> Tensor:
    """Send rows (n, i) through linear maps with ReLU between, to (n, o)."""
    for weight, bias in layers[:-1]:
        rows = F.linear(rows, weight, bias).relu()
    return F.linear(rows, *layers[-1])


def kept(layers: Layers) -> dict[str, Tensor]:
    """Name the layers as a secret keeps them."""
    parts = ("weight", "bias")
    return {
        f"{number}.{part}": value
        for number, layer in enumerate(layers)
        for part, value in zip(parts, layer, strict=True)
    }


def read(secret: Mapping[str, Tensor], count: int) -> Layers:
    """Return the layers that a secret keeps."""
    return [(secret[f"{n}.weight"], secret[f"{n}.bias"]) for n in range(count)]


def _linear(entering: int, leaving: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a linear map as PyTorch would: uniform within 1 / sqrt(entering)."""
    bound = 1 / math.sqrt(entering)
    weight, bias = (
        (2 * torch.rand(shape, generator=rng) - 1) * bound
        for shape in ((leaving, entering), (leaving,))
    )
    return weight, bias
