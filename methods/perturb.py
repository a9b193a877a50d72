"""Images moved a little, in the direction in which a score rises: projected gradient ascent.

A. Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
https://arxiv.org/abs/1706.06083, section 2.1. What one image does depends on no other, so a batch
computes what one image at a time would, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.models import Ideal
from bench.training import MicroBatches
from bench.types import Passes

Gain = Callable[[Tensor, slice], Tensor]
"""Maps images (b, 3, h, w) in [0, 1] to scores (b,); the slice says which of all these are."""


TIMED_ROUNDS = 3
"""Rounds of plain passes that are timed: the median prices all."""


@dataclass(frozen=True, slots=True)
class Ball:
    """How far each pixel may go from where it was, and how far it goes in a step, of 1."""

    radius: float
    step: float

    def drawn(self, centre: Tensor, rng: torch.Generator) -> Tensor:
        """Draw uniformly from the ball, and clip to [0, 1]."""
        noise = 2 * torch.rand(centre.shape, generator=rng) - 1
        return (centre + self.radius * noise.to(centre)).clamp(0, 1)

    def moved(self, images: Tensor, gradient: Tensor, centre: Tensor) -> Tensor:
        """Take one step along the gradient's signs, back into the ball and into [0, 1]."""
        away = images + self.step * gradient.sign() - centre
        return (centre + away.clamp(-self.radius, self.radius)).clamp(0, 1)


def uphill(gain: Gain, images: Tensor, micro: MicroBatches) -> Tensor:
    """Return the gradient of each image's score to its pixels, (n, 3, h, w)."""

    def look(part: slice) -> Tensor:
        pixels = images[part].detach().requires_grad_(True)
        return torch.autograd.grad(gain(pixels, part).sum(), pixels)[0]

    return torch.cat(list(micro.over(len(images), look)))


def climb(
    gain: Gain, centre: Tensor, start: Tensor, ball: Ball, steps: int, micro: MicroBatches
) -> Tensor:
    """Take `steps` steps from `start`, within the ball around `centre`; both (n, 3, h, w)."""
    images = start
    for _ in range(steps):
        images = ball.moved(images, uphill(gain, images, micro), centre)
    return images


def rounded(images: Tensor) -> Tensor:
    """Round floats in [0, 1] to bytes, as images are sent; on the CPU."""
    return (images * 255).round().to(torch.uint8).cpu()


def ideal_seconds(
    ask: Callable[[Tensor], Tensor], images: Tensor, passes: Passes, micro: MicroBatches
) -> float:
    """Price passes by plain ones of some images (b, 3, h, w), which no meter counts.

    `ask` maps images to answers (b, d). What goes back went there before.
    """
    some = images[: micro.size]
    there, back = Ideal(some.device), Ideal(some.device)

    def look() -> None:
        with torch.no_grad():
            ask(some)

    for _ in range(TIMED_ROUNDS):
        there.time(look, len(some))
        back.time(lambda: uphill(lambda x, _: ask(x).sum(1), some, micro), len(some))
    return there.median * (passes.forward - passes.backward) + back.median * passes.backward
