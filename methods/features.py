"""Read all that others read of a model's features, and train the backbone that makes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.data import Images
from bench.models import VisionModel
from bench.training import in_batches

BATCH = 64
"""Images that are read together; no feature depends on it."""


def learning(model: VisionModel) -> list[nn.Parameter]:
    """Freeze a model but for its backbone, and return that; a head within it stays frozen too."""
    model.requires_grad_(False)
    heads = {id(weight) for weight in model.classifier_weights}
    found = [weight for weight in model.trunk.parameters() if id(weight) not in heads]
    for weight in found:
        weight.requires_grad_(True)
    return found


def seen(model: VisionModel, tokens: Tensor) -> Tensor:
    """Map final tokens (b, n, d) to all that others read of them: embedding and pooled (b, f)."""
    return torch.cat([model.embedding(tokens), model.pooled(tokens)], 1).float()


@torch.no_grad()
def seen_of(model: VisionModel, images: Images, device: torch.device) -> Tensor:
    """Return what others read of all images (n, f)."""

    def ask(part: slice) -> Tensor:
        return seen(model, model.forward_features(images.batch(part, device)))

    return torch.cat([*in_batches(len(images), BATCH, ask)])


@torch.no_grad()
def width_of(model: VisionModel) -> int:
    """Return the width d of the output embedding, at the price of a pass."""
    blank = torch.zeros(1, 3, *model.preprocess.size, device=model.mean.device)
    return model.features(blank).shape[1]


def misfit(wanted: int, found: int) -> str:
    """Say that features are of another width than the owner's; "" where they are not."""
    return (
        "" if wanted == found else f"expected features of the owner's width {wanted}, got {found}"
    )
