"""Images that nobody's data holds, for triggers.

Y. Adi, C. Baum, M. Cisse, B. Pinkas, J. Keshet, "Turning your weakness into a strength", USENIX
Security 2018, took abstract art from the web. Drawn ones need no licence, and no two owners' are
alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COARSE, FINE = 4, 32
"""Cells a side of the two random patterns that an image is made of: its colours, and its grain."""


def patterns(count: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Draw images, half colours and half grain: uint8 (n, 3, h, w)."""
    coarse = torch.rand(count, 3, COARSE, COARSE, generator=rng)
    fine = torch.rand(count, 3, FINE, FINE, generator=rng)
    colours = F.interpolate(coarse, size, mode="bicubic", align_corners=False).clamp(0, 1)
    grain = F.interpolate(fine, size, mode="nearest")
    return ((colours + grain) / 2 * 255).round().to(torch.uint8)
