"""Find the basis a model is written in, given another that may be its ancestor.

What is compared are matrices with a row a channel: filters of patches, tokens, positions. No image
is looked at. A `Fit` says which channels of one are which combination of the other's.

Source: P. H. Schoenemann, "A generalized solution of the orthogonal Procrustes problem",
Psychometrika 31 (1966); here one direction is fixed, for a layer norm does not see it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

TINY = 1e-300
"""What a norm of nothing is taken for where something is divided by it."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """How well `scale` * `basis` @ wanted meets what was found, up to a shift of all channels.

    `basis` is (d', d), float64: a wider stream has orthonormal columns, a narrower one orthonormal
    rows. `residual` is the relative distance that is left, `before` the one without any fit; it is
    None between widths, where nothing can be compared.
    """

    basis: Tensor
    scale: float
    residual: float
    before: float | None


def centred(values: Tensor) -> Tensor:
    """Take the mean over channels, the first axis, out of every column."""
    return values - values.mean(0)


def rotated(found: Tensor, wanted: Tensor, fixed: bool = True) -> Fit:
    """Fit a rotation and a scale that bring `wanted` (d, k) to `found` (d', k).

    With `fixed` the all-ones direction goes to the all-ones direction, as a layer norm asks.
    """
    if fixed:
        found, wanted = centred(found), centred(wanted)
    return measured(found, wanted, nearest_turn(found @ wanted.T, fixed))


def nearest_turn(products: Tensor, fixed: bool) -> Tensor:
    """Return the rotation (d', d) nearest to the products of found and wanted columns (d', d).

    With `fixed` columns are centred, so products have nothing in the all-ones direction: what is
    put there goes to itself.
    """
    if fixed:
        products = products + products.norm().clamp(min=TINY) * ones(*products.shape)
    left, _, right = torch.linalg.svd(products, full_matrices=False)
    basis: Tensor = left @ right
    return basis


def permuted(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Fit:
    """Fit a permutation of channels, each matrix of a kind up to a scale and a sign of its own.

    A wider stream may hold each channel several times. The scale that is returned is of all kinds.
    """
    ours, theirs = ([unit(centred(part)) for part in parts] for parts in (wanted, found))
    there, fits = torch.cat(theirs, 1), list[Fit]()
    for signs in itertools.product((1, -1), repeat=len(ours)):
        here = torch.cat([sign * part for sign, part in zip(signs, ours, strict=True)], 1)
        fits.append(measured(there, here, assigned(there @ here.T)))
    best = min(fits, key=lambda fit: fit.residual)
    return dataclasses.replace(best, before=fits[0].before)


def assigned(likeness: Tensor) -> Tensor:
    """Assign channels so that the sum of their likeness (d', d) is largest: the basis (d', d)."""
    rows, columns = likeness.shape
    copies = math.ceil(rows / columns)
    chosen = linear_sum_assignment(likeness.repeat(1, copies).numpy(), maximize=True)
    basis = torch.zeros(rows, columns, dtype=torch.float64)
    row, column = (torch.as_tensor(np.asarray(axis)) for axis in chosen)
    basis[row, column % columns] = 1.0
    if rows > columns:
        basis = basis / basis.sum(0).clamp(min=1).sqrt()
    return basis


def ones(rows: int, columns: int) -> Tensor:
    """Return the (rows, columns) matrix that maps the all-ones direction to itself alone."""
    return torch.full((rows, columns), (rows * columns) ** -0.5, dtype=torch.float64)


def measured(found: Tensor, wanted: Tensor, basis: Tensor) -> Fit:
    """Fit the scale of a basis, and say what is left of centred `found` (d', k)."""
    image = basis @ wanted
    scale = scale_of(found, image)
    same = found.shape == wanted.shape
    before = _distance(found, wanted) if same else None
    return Fit(basis, scale, _distance(found, scale * image), before)


def scale_of(found: Tensor, image: Tensor) -> float:
    """Return the factor of `image` that comes nearest to `found`; 1 where nothing was found."""
    factor = float((found * image).sum() / image.square().sum().clamp(min=TINY))
    return factor if abs(factor) > 1e-12 else 1.0


def _distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / found.norm().clamp(min=TINY))


def unit(values: Tensor) -> Tensor:
    """Give a matrix norm 1; one of zeros is left as it is."""
    size: Tensor = values.norm()
    return values / size.clamp(min=TINY)


def patches_resized(filters: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring filters (d, 3, h, w) to patches of another size, so that they answer alike.

    Source: L. Beyer et al., "FlexiViT: one model for all patch sizes", arXiv:2212.08013, eq. 3.
    """
    before = cast(tuple[int, int], tuple(filters.shape[-2:]))
    if before == size:
        return filters
    resize = torch.kron(_resizing(before[0], size[0]), _resizing(before[1], size[1]))
    undone: Tensor = torch.linalg.pinv(resize)  # (h w, h' w'); as eq. 3 writes it, transposed
    return (filters.flatten(2) @ undone).reshape(*filters.shape[:2], *size)


def _resizing(before: int, after: int) -> Tensor:
    """Return the matrix (after, before) of a bilinear resize along one axis."""
    unit = torch.eye(before, dtype=torch.float64)[:, None]  # (before, 1, before)
    return F.interpolate(unit, after, mode="linear", align_corners=False)[:, 0].T


def positions_resized(positions: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Bring positions (n, d) of one grid of patches to another, as timm and open_clip do."""
    if before == after:
        return positions
    table = positions.T.reshape(1, -1, *before)  # (1, d, h, w)
    made = F.interpolate(table, after, mode="bicubic", antialias=True, align_corners=False)
    return made[0].flatten(1).T


def depths_matched(likeness: Tensor) -> tuple[int | None, ...]:
    """Find for each block wanted (columns) the block found (rows) that stands for it, in order.

    The sum of likeness (found, wanted) is largest; None stands for a block that is missing.
    """
    rows, columns = likeness.shape
    worth = likeness.clamp(min=0).tolist()  # chance is about 0, and no reason to skip a block
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    for i, j in itertools.product(range(rows), range(columns)):
        best[i + 1][j + 1] = max(best[i][j] + worth[i][j], best[i][j + 1], best[i + 1][j])
    found: list[int | None] = [None] * columns
    i, j = rows, columns
    while i and j:
        if best[i][j] == best[i - 1][j - 1] + worth[i - 1][j - 1]:
            found[j - 1] = i - 1
            i, j = i - 1, j - 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            j -= 1
    return tuple(found)
