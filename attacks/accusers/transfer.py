"""False claims by examples that transfer: labels that models agree on though nobody stole any.

J. Liu, R. Zhang, S. Szyller, K. Ren, N. Asokan, "False claims against model ownership resolution",
USENIX Security 2024, https://arxiv.org/abs/2304.06607: an accuser replaces the fingerprint of his
model by adversarial examples that fool independent models alike, made on an ensemble of public
ones, and commits to them before the suspect exists.

The examples are made by momentum iterative sign steps (Y. Dong et al., CVPR 2018,
https://arxiv.org/abs/1710.06081), with random resizing (C. Xie et al., CVPR 2019,
https://arxiv.org/abs/1803.06978), gradients smoothed as if images were shifted (Y. Dong et al.,
CVPR 2019, https://arxiv.org/abs/1904.02884), and the target's logit for a loss (Z. Zhao et al.,
NeurIPS 2021, https://arxiv.org/abs/2012.11207). What the first paper leaves open is a setting.

Nothing of the kind was seen yet on small models: strangers of `mini` outside the ensemble gave 0.00
to 0.08 of the labels at epsilon = 16 / 255, and 0.08 to 0.21 at 32 / 255, where ten classes make it
0.1 by chance (2 surrogates, 30 iterations, heads fitted anew). The ensemble itself gave 0.54 to
0.75, and 0.63 to 0.96.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.registry import accuser
from bench.training import MicroBatches, answers, classifier
from bench.types import (
    Case,
    Context,
    Count,
    Method,
    NotNegative,
    Passes,
    Positive,
    PositiveShare,
    Protected,
    Share,
    Sizes,
    StoppedBy,
    TakesQueries,
)

Scores = Callable[[Tensor], Tensor]
"""Maps images (b, 3, h, w) in [0, 1] to class scores (b, k)."""

SMALLEST = 0.8
"""Of an image's side: how small the random resizing makes it (299 of 330 pixels is 0.9)."""


@accuser("transfer")
@dataclass(frozen=True, slots=True)
class Transfer:
    """Claim with adversarial examples that his own model and public ones answer alike.

    * `surrogates`: public models beside his own; their logits' losses are added.
    * `epsilon`: how far a pixel may move, of [0, 1]; 8 / 255 or 16 / 255 are usual.
    * `iterations`, `step`: how often, and how far a pixel moves each time.
    * `momentum`: of the gradient, which is first divided by its mean size.
    * `diversity`: the chance that an iteration sees the images smaller and padded.
    * `kernel`: side of the Gaussian that gradients are smoothed with, in pixels; 1 does nothing.
    * `batch`: images in one pass.
    """

    accuses: ClassVar[Literal["stranger", "owner"]] = "stranger"
    post_hoc: ClassVar[bool] = False
    stopped_by: ClassVar[StoppedBy] = "replay"

    surrogates: Count = 3
    epsilon: PositiveShare = 16 / 255
    iterations: Positive = 300
    step: PositiveShare = 2 / 255
    momentum: NotNegative = 1.0
    diversity: Share = 0.5
    kernel: Positive = 5
    batch: Positive = 64

    def accuse(self, case: Case, ctx: Context) -> Protected:
        """Return the examples as the method's secret; the notes say how many of the ensemble agree.

        Raises:
            UserError: the accuser's model has no classifier.

        """
        assert isinstance(case.method, TakesQueries), "nobody asks who is unsuited"
        model, count = classifier(case.own, ctx.device), case.method.asked()
        start = _images(ctx, count)  # (n, 3, h, w)
        first = answers(model.logits, start, self.batch, ctx.device)  # (n, k)
        others = torch.randint(1, first.shape[1], (count,), generator=ctx.rng)
        target = (first.argmax(1) + others) % first.shape[1]
        ensemble = (model.logits, *case.surrogates)
        found = self.optimised(ensemble, start, target, ctx)
        agree = [
            float((answers(ask, found, self.batch, ctx.device).argmax(1) == target).double().mean())
            for ask in ensemble
        ]
        notes = {"own_agreement": agree[0], "surrogates_agreement": agree[1:]}
        return Protected(case.own, case.method.of_queries(found, target), notes)

    def optimised(
        self, ensemble: Sequence[Scores], start: Tensor, target: Tensor, ctx: Context
    ) -> Tensor:
        """Move images (n, 3, h, w) within `epsilon` until all models say `target` (n,).

        They come back on the CPU.
        """
        start, goals = start.to(ctx.device), target.to(ctx.device)
        found, speed = start.clone(), torch.zeros_like(start)
        kernel = _gaussian(self.kernel).to(start)
        micro = MicroBatches(self.batch)
        for _ in range(self.iterations):
            smaller = bool(torch.rand((), generator=ctx.rng) < self.diversity)
            side = _smaller(start.shape[-1], ctx.rng) if smaller else start.shape[-1]
            gradient = _smoothed(_gradients(ensemble, found, goals, side, micro), kernel)
            size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
            speed = self.momentum * speed + gradient / size
            moved = (found + self.step * speed.sign()).clamp(0, 1)
            found = torch.minimum(torch.maximum(moved, start - self.epsilon), start + self.epsilon)
        return found.cpu()

    def unsuited(self, method: Method) -> str:
        """Say that the method takes no images of anybody's choice."""
        taken = isinstance(method, TakesQueries)
        return "" if taken else "its secret is no list of images and labels"

    def passes(self, method: Method, sizes: Sizes) -> Passes | None:
        """Count the iterations there and back through every model of the ensemble, and its labels.

        The accuser's own labels of the start come on top.
        """
        if not isinstance(method, TakesQueries):
            return None
        count, models = method.asked(), 1 + self.surrogates
        there = self.iterations * count * models
        return Passes(there + count * (1 + models), there, frozen=True)


def _images(ctx: Context, count: int) -> Tensor:
    """Draw images (n, 3, h, w) of the accuser's own, each as often as the others."""
    rounds = -(-count // len(ctx.images))
    drawn = [torch.randperm(len(ctx.images), generator=ctx.rng) for _ in range(rounds)]
    return ctx.images.batch(torch.cat(drawn)[:count], torch.device("cpu"))


def _gradients(
    ensemble: Sequence[Scores], images: Tensor, goals: Tensor, side: int, micro: MicroBatches
) -> Tensor:
    def uphill(part: slice) -> Tensor:
        return _gradient(ensemble, images[part], goals[part], side)

    return torch.cat([*micro.over(len(images), uphill)])


@torch.enable_grad()
def _gradient(ensemble: Sequence[Scores], images: Tensor, goals: Tensor, side: int) -> Tensor:
    """Return the gradient (b, 3, h, w) of the goals' logits, added over the ensemble."""
    images = images.detach().requires_grad_(True)
    seen = _padded(images, side)
    logits = sum(ask(seen).gather(1, goals[:, None]).sum() for ask in ensemble)
    assert isinstance(logits, Tensor)
    return torch.autograd.grad(logits, images)[0]


def _smaller(side: int, rng: torch.Generator) -> int:
    least = max(1, round(SMALLEST * side))
    return int(torch.randint(least, side + 1, (), generator=rng))


def _padded(images: Tensor, side: int) -> Tensor:
    """Make images (b, 3, h, w) smaller and pad them to what they were."""
    high, wide = images.shape[-2:]
    if side >= wide:
        return images
    size = (max(1, round(high * side / wide)), side)
    small = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    down, right = high - size[0], wide - size[1]
    return F.pad(small, (right // 2, right - right // 2, down // 2, down - down // 2))


def _gaussian(side: int) -> Tensor:
    """Return a kernel (side, side) of sum 1, three deviations to its edge."""
    deviation = max(side / 6, 1e-3)
    offsets = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    line = (-(offsets**2) / (2 * deviation**2)).exp()
    line = line / line.sum()
    return line[:, None] * line[None, :]


def _smoothed(gradient: Tensor, kernel: Tensor) -> Tensor:
    """Smooth gradients (n, 3, h, w) channel by channel."""
    if kernel.shape[0] == 1:
        return gradient
    channels = gradient.shape[1]
    weight = kernel[None, None].expand(channels, 1, *kernel.shape)
    return F.conv2d(gradient, weight, padding="same", groups=channels)
