"""Bring a suspect's features into the owner's space, and say how far triggers lie from the owner's.

Nothing here knows the bits. What is fitted is fitted on public images, none of them a trigger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.data import sent
from bench.models import VisionModel
from bench.training import in_batches

RIDGES = tuple(10.0**k for k in range(-6, 1))
"""Penalties tried, in variances of a standardised feature; the best at images left out is taken."""

SHRINKAGE = 0.1
"""How far the noise's covariance is drawn to that of a ball: images are few beside its entries."""

CLIP = 2.5
"""Root mean squares beyond which a bit counts no more: no trigger decides alone."""

READ_BATCH = 128


class Whitener(NamedTuple):
    """The affine map to the leading components of the owner's features, each of variance 1."""

    mean: Tensor  # (d,)
    scale: Tensor  # (d, r)

    def __call__(self, features: Tensor) -> Tensor:
        """Map features (m, d) to whitened ones (m, r)."""
        return (features - self.mean) @ self.scale


def whitener(features: Tensor, rank: int) -> Whitener:
    """Fit the map on features (m, d); components below 1e-3 of the first are noise, left out."""
    mean = features.mean(0)
    _, values, right = torch.linalg.svd(features - mean, full_matrices=False)
    kept = min(rank, int((values > 1e-3 * values[0]).sum()))
    deviations = values[:kept] / (len(features) - 1) ** 0.5
    leading = right[:kept]  # (r, d)
    # Which way a component points is the processor's choice: here its largest entry is positive.
    largest = leading.gather(1, leading.abs().argmax(1, keepdim=True))
    return Whitener(mean, (leading * largest.sign()).T / deviations)


def features_at(model: VisionModel, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """Return the mean token (b, d) after each of some blocks, in order, and the output (b, d')."""
    return with_tokens(model, images, blocks)[0]


def with_tokens(
    model: VisionModel, images: Tensor, blocks: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Return what `features_at` does, and the final tokens (b, n, d)."""
    if not blocks:
        tokens = model.forward_features(images)
        return [model.embedding(tokens)], tokens
    tokens, done, found = model.embed(images), 0, list[Tensor]()
    for block in blocks:
        tokens, done = model.run_blocks(tokens, done, block + 1), block + 1
        found.append(tokens.mean(1))
    tokens = model.finish(model.run_blocks(tokens, done))
    return [*found, model.embedding(tokens)], tokens


Ask = Callable[[Tensor], Sequence[Tensor]]
"""Maps images (b, 3, h, w) to features at every place that is read, (b, d) each."""


def all_features(ask: Ask, pixels: Tensor, device: torch.device) -> list[Tensor]:
    """Return the features of all images, uint8 (m, 3, h, w): (m, d) on the CPU for each place."""

    def some(part: slice) -> list[Tensor]:
        return [f.float().cpu() for f in ask(sent(pixels[part], device).float() / 255)]

    with torch.no_grad():
        parts = [*in_batches(len(pixels), READ_BATCH, some)]
    return [torch.cat(place) for place in zip(*parts, strict=True)]


def displaced(
    public: Tensor, asked: Tensor, wanted: Tensor, clean: Tensor, directions: Tensor
) -> Tensor:
    """Return how plainly each trigger is displaced along each direction, (N, n) float64.

    `public` (m, d) and `asked` (N, d) are the suspect's features on public images and triggers,
    `wanted` (m, r) and `clean` (N, r) the owner's whitened ones, `directions` (r, n). What the map
    gets wrong on public images, each left out in its turn, is the noise; against it displacements
    are weighed, as a matched filter does (Fisher's discriminant).
    """
    found, noise = _mapped(*(t.double() for t in (public, asked, wanted)))
    shift = found - clean.double()  # (N, r)
    shift = shift - shift.mean(0)  # what all triggers share says nothing of any
    spread = noise.T @ noise / len(noise)
    ball = torch.eye(len(spread), dtype=torch.float64) * spread.diagonal().mean()
    spread = (1 - SHRINKAGE) * spread + SHRINKAGE * ball + 1e-9 * torch.eye(len(spread))
    weighed: Tensor = torch.linalg.solve(spread, shift.T).T
    return weighed @ directions.double()


def in_steps(displacement: Tensor, levels: int) -> Tensor:
    """Round displacements (N, n) to whole steps, -levels .. levels, whatever their scale."""
    scale = displacement.square().mean().sqrt().clamp_min(1e-30) * CLIP
    return (displacement / scale).clamp(-1, 1).mul(levels).round()


def _mapped(seen: Tensor, asked: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a ridge regression of `wanted` (m, r) on `seen` (m, d).

    Returns what it makes of `asked` (N, r), and what it misses of each image left out (m, r).
    """
    centre, scale = seen.mean(0), seen.std(0).clamp_min(1e-12)
    left, values, right = torch.linalg.svd((seen - centre) / scale, full_matrices=False)
    middle = wanted.mean(0)
    inside = left.T @ (wanted - middle)  # (k, r)
    best: tuple[float, Tensor, Tensor] | None = None
    for ridge in RIDGES:
        kept = values.square() / (values.square() + ridge * len(seen))  # (k,)
        leverage = left.square() @ kept + 1 / len(seen)
        residual = wanted - middle - left @ (kept[:, None] * inside)
        missed = residual / (1 - leverage).clamp_min(1e-6)[:, None]
        loss = float(missed.square().sum())
        if best is None or loss < best[0]:
            weights = right.T @ ((kept / values.clamp_min(1e-12))[:, None] * inside)
            best = loss, weights, missed
    assert best is not None
    return (asked - centre) / scale @ best[1] + middle, best[2]
