"""CutMix: a box of one image in the place of another's.

S. Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable
features", ICCV 2019, https://arxiv.org/abs/1905.04899.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cutmix(images: Tensor, others: Tensor, share: Tensor, rng: torch.Generator) -> Tensor:
    """Paste a box of each other image (n, 3, h, w) into its partner, at the same place.

    `share` (n,) in [0, 1] is the box's part of the area, before the edge cuts it off. The centre is
    uniform, and a pixel belongs to the box if its middle does. One share (1,) makes one box for
    all.
    """
    height, width = images.shape[2:]
    centre, side = torch.rand(len(share), 2, generator=rng), share.sqrt()
    rows, columns = (
        _inside(length, centre[:, axis], side) for axis, length in enumerate((height, width))
    )
    box = rows[:, None, :, None] & columns[:, None, None, :]  # (n, 1, h, w)
    return torch.where(box, others, images)


def _inside(length: int, centre: Tensor, side: Tensor) -> Tensor:
    """Say which of `length` pixels lie within half a side of the centre, (n, length)."""
    middles = (torch.arange(length) + 0.5) / length
    return (middles - centre[:, None]).abs() <= side[:, None] / 2
