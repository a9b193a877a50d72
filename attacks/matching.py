"""Have a model say of images what a stolen one says of them: what such thieves have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data import Images
from bench.models import VisionModel, clone
from bench.training import in_batches

TEACHER_BATCH = 64
"""Images the victim answers for at a time; no answer depends on it."""


NEAR = 1e-3
"""A squared distance of unit vectors below which no student is asked to come closer."""

Comparison = Literal["mse", "cosine", "infonce", "relational"]


def final_tokens(model: VisionModel, images: Tensor) -> Tensor:
    """Map images (b, 3, h, w) to final tokens (b, t, d); a feature map's positions are tokens."""
    return model.trunk.positions(model.forward_features(images))


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - cosine + mean squared error of vectors (..., d), averaged over them."""
    cosine = F.cosine_similarity(found, wanted, dim=-1).mean()
    return 1 - cosine + F.mse_loss(found, wanted)


def token_distance(found: Tensor, wanted: Tensor, prefix: int) -> Tensor:
    """Add the distance of the first `prefix` tokens of (b, t, d) to that of the patches."""
    loss = distance(found[:, prefix:], wanted[:, prefix:])
    return loss + distance(found[:, :prefix], wanted[:, :prefix]) if prefix else loss


def answers(
    victim: VisionModel,
    images: Images,
    ask: Callable[[VisionModel, Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    """Return the victim's answer to every image, on the CPU: the tokens of a large one are many."""
    teacher = clone(victim).to(device)

    def answer(part: slice) -> Tensor:
        return ask(teacher, images.batch(part, device)).cpu()

    with torch.no_grad():
        return torch.cat(list(in_batches(len(images), TEACHER_BATCH, answer)))


def compare(kind: Comparison, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return how far features (b, d) are from those wanted of the same images.

    "mse" is the mean squared error. "cosine" is 1 - cosine, half the squared distance of unit
    vectors. "infonce" asks which of the batch each one belongs to, among those wanted and, as in
    NT-Xent, among the other ones found. "relational" adds to that -log((1 + cosine) / squared
    distance), of unit vectors.
    """
    if kind == "mse":
        return F.mse_loss(found, wanted)
    ours, theirs = (F.normalize(each.float(), dim=1) for each in (found, wanted))
    cosine = (ours * theirs).sum(1)  # (b,)
    if kind == "cosine":
        return 1 - cosine.mean()
    own = (ours @ ours.mT).fill_diagonal_(float("-inf"))
    logits = torch.cat([ours @ theirs.mT, own], dim=1) / temperature  # (b, 2 b)
    told = F.cross_entropy(logits, torch.arange(len(ours), device=logits.device))
    if kind == "infonce":
        return told
    # Departure: kept finite, for at its target the logarithm falls without end.
    apart = (ours - theirs).square().sum(1) + NEAR
    return told - ((1 + cosine).clamp_min(NEAR) / apart).log().mean()
