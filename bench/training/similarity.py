"""Compare what two models make of the same images, whatever bases and widths they write it in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["unbiased", "biased"]


def cka(x: Tensor, y: Tensor, estimator: Estimator = "unbiased") -> float:
    """Return the linear CKA of features (n, d) and (n, d') of the same n images; 1 is most alike.

    It is the same for any rotation, scale and shift of either side. "unbiased" takes the HSIC of
    L. Song et al., "Feature selection via dependence maximization", JMLR 2012, eq. 4: without it
    independent features of few images in many dimensions look alike. It needs four images, and may
    fall below 0. Features that are the same for all images are like no others: 0.

    Source: S. Kornblith et al., "Similarity of neural network representations revisited", ICML
    2019, https://arxiv.org/abs/1905.00414.
    """
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(f"expected features of the same 4 images or more, got {len(x)}, {len(y)}")
    ours, theirs = (_gram(part, estimator) for part in (x, y))  # (n, n) each
    own = float(ours.square().sum() * theirs.square().sum())
    # A norm that is 0, or not finite, is of features that say nothing.
    return float((ours * theirs).sum()) / own**0.5 if 0 < own < float("inf") else 0.0


def _gram(features: Tensor, estimator: Estimator) -> Tensor:
    """Return inner products (n, n), centred so that their products add up to the HSIC."""
    z = features.double()
    z = z - z.mean(0)
    z = z / z.abs().amax().clamp_min(torch.finfo(z.dtype).tiny)  # squares of squares stay in range
    k = z @ z.mT
    if estimator == "biased":
        return k  # centred, as its features are
    # The U-centring of Székely and Rizzo, 2014: sums of products are Song's three terms.
    n = len(k)
    k = k.fill_diagonal_(0.0)
    rows = k.sum(1) / (n - 2)
    k = k - rows - rows[:, None] + k.sum() / ((n - 1) * (n - 2))
    return k.fill_diagonal_(0.0)
