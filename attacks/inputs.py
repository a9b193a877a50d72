"""Change images (b, 3, h, w) in [0, 1] before a model sees them, by draws from a generator.

Draws are made on the CPU, and so are equal everywhere.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)
"""Of red, green and blue, as ITU-R BT.601 has it."""

GREY = 0.2
"""The share of views without colour, as in SimCLR."""

JITTER = 0.4
"""How far brightness, contrast and saturation of a view go from 1, as in MoCo v2."""


def noisy(images: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
    """Add Gaussian noise of deviation `sigma`."""
    return (images + sigma * torch.randn(images.shape, generator=rng).to(images)).clamp(0, 1)


def mixing(count: int, alpha: float, rng: torch.Generator) -> tuple[float, Tensor]:
    """Draw the share of an image in its mixture, Beta(alpha, alpha), and its partners (b,).

    Source: H. Zhang et al., "mixup: beyond empirical risk minimization", arXiv:1710.09412.
    """
    seed = int(torch.randint(2**62, (), generator=rng))  # PyTorch's Beta takes no generator
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return share, torch.randperm(count, generator=rng)


def erased(images: Tensor, rng: torch.Generator, least: float = 0.02, most: float = 0.4) -> Tensor:
    """Fill a rectangle of each image, of `least` to `most` of its area, with uniform noise.

    Source: Z. Zhong et al., "Random erasing data augmentation", arXiv:1708.04896; sides are cut
    where they are longer than the image.
    """
    b, _, high, wide = images.shape
    area = _uniform(b, least, most, rng)
    aspect = _uniform(b, math.log(0.3), math.log(1 / 0.3), rng).exp()
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)  # (b, 2)
    start = torch.rand(b, 2, generator=rng) * (1 - size)
    filled = torch.rand(images.shape, generator=rng).to(images)
    rows, columns = (
        ((_centres(n) >= start[:, i, None]) & (_centres(n) < (start + size)[:, i, None]))
        for i, n in enumerate((high, wide))
    )  # (b, h), (b, w)
    inside = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    return torch.where(inside, filled, images)  # (b, 3, h, w)


def view(images: Tensor, rng: torch.Generator, least: float = 0.2) -> Tensor:
    """Crop `least` of each image or more, enlarge that, flip half of them, and jitter colours.

    Source: T. Chen et al., "A simple framework for contrastive learning of visual
    representations", arXiv:2002.05709, appendix A, without blur.
    """
    b = len(images)
    area = _uniform(b, least, 1, rng)
    aspect = _uniform(b, math.log(3 / 4), math.log(4 / 3), rng).exp()
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp(max=1)  # (b, 2)
    centre = (torch.rand(b, 2, generator=rng) * 2 - 1) * (1 - size)  # of a square of side 2
    flip = torch.where(torch.rand(b, generator=rng) < 0.5, -1.0, 1.0)
    where = torch.zeros(b, 2, 3)
    where[:, 0, 0], where[:, 1, 1], where[:, :, 2] = size[:, 0] * flip, size[:, 1], centre
    at = F.affine_grid(where.to(images), list(images.shape), align_corners=False)  # (b, h, w, 2)
    cut = F.grid_sample(images, at, padding_mode="border", align_corners=False)
    return _jittered(cut, rng)


def _jittered(images: Tensor, rng: torch.Generator) -> Tensor:
    b = len(images)
    factors = _uniform(3 * b, 1 - JITTER, 1 + JITTER, rng).view(3, b, 1, 1, 1).to(images)
    brightness, contrast, saturation = factors.unbind()
    grey = (torch.rand(b, generator=rng) < GREY).view(b, 1, 1, 1).to(images.device)
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + contrast * (images - mean)
    weights = torch.tensor(LUMINANCE).view(1, 3, 1, 1).to(images)
    light = (images * weights).sum(1, keepdim=True)  # (b, 1, h, w)
    return (light + saturation.masked_fill(grey, 0.0) * (images - light)).clamp(0, 1)


def _uniform(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng) * (high - low) + low


def _centres(count: int) -> Tensor:
    """Return where pixels lie on a side of length 1."""
    return (torch.arange(count) + 0.5) / count
