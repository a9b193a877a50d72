"""Draw a secret picture, and give other images its colours and its contrasts.

MOVE has a trained network copy the style of a painting by van Gogh or Seurat. None comes with this
package, so styles are computed. Each band of an image's Laplacian pyramid gets the deviation that
the picture's has there, and the coarsest its mean, channel by channel: what X. Huang and S.
Belongie do to the features of a network (https://arxiv.org/abs/1703.06868), done to pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PALETTE, DABS = 6, 256
"""Colours of a picture, and dabs of one colour it is made of, whatever its size."""

LEAST = 2 / 255
"""The least deviation that a band is divided by: grain of a few grey levels is not blown up."""


def picture(size: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw dabs of a few colours: (3, h, w) in [0, 1]. No two keys have the same."""
    height, width = size
    places = torch.rand(DABS, 2, generator=rng)
    colours = torch.rand(PALETTE, 3, generator=rng)
    painted = colours[torch.randint(PALETTE, (DABS,), generator=rng)]  # (dabs, 3)
    rows, columns = ((torch.arange(side) + 0.5) / side for side in (height, width))
    nearest = [torch.cdist(torch.cartesian_prod(row[None], columns), places).argmin(1)
               for row in rows]  # fmt: skip
    return painted[torch.stack(nearest)].movedim(-1, 0)  # (3, h, w)


def styled(pixels: Tensor, style: Tensor, bands: int, strength: float) -> Tensor:
    """Give images uint8 (n, 3, h, w) the style of a picture (3, h, w); return bytes again."""
    plain = pixels.float() / 255
    wanted = _pyramid(style[None], bands)
    made = [
        _matched(band, like, level == len(wanted) - 1)
        for level, (band, like) in enumerate(zip(_pyramid(plain, bands), wanted, strict=True))
    ]
    whole = made.pop()
    while made:
        finer = made.pop()
        whole = finer + _resized(whole, finer)
    mixed = plain + strength * (whole - plain)
    return (mixed.clamp(0, 1) * 255).round().to(torch.uint8)


def _pyramid(images: Tensor, bands: int) -> list[Tensor]:
    """Part images (n, 3, h, w) into bands, finest first; the last is what is left."""
    found = list[Tensor]()
    while len(found) < bands - 1 and min(images.shape[-2:]) > 1:
        half = [max(1, side // 2) for side in images.shape[-2:]]
        coarse = F.interpolate(images, half, mode="area")
        found.append(images - _resized(coarse, images))
        images = coarse
    return [*found, images]


def _resized(images: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(images, like.shape[-2:], mode="bilinear", align_corners=False)


def _matched(band: Tensor, like: Tensor, last: bool) -> Tensor:
    """Give a band (n, 3, h, w) the deviation of another (1, 3, h, w), and the last its mean."""
    spread, wanted = (one.std((-2, -1), correction=0, keepdim=True) for one in (band, like))
    mean = band.mean((-2, -1), keepdim=True)
    centre = like.mean((-2, -1), keepdim=True) if last else mean
    return (band - mean) / spread.clamp_min(LEAST) * wanted + centre
