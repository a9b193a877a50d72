"""Ask a classifier for labels, in batches: what every fingerprint by labels does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.data.images import sent
from bench.models.vision import VisionModel, clone
from bench.records.nouns import Evidence, Rule, UserError
from bench.training.microbatch import in_batches


def classifier(owner: VisionModel, device: torch.device, least: int = 2) -> VisionModel:
    """Copy the owner, frozen, as something that can be asked for labels.

    Raises:
        UserError: it tells fewer than `least` classes apart, or none.

    """
    if owner.classes < least:
        raise UserError(
            f"expected an owner that tells {least} classes apart or more, got "
            f"{owner.architecture.name} with {owner.classes or 'none'}; give the owner a "
            "`classifier:` in the suite, or take a model with a classifier of its own"
        )
    return clone(owner).to(device).requires_grad_(False)


@torch.no_grad()
def answers(
    ask: Callable[[Tensor], Tensor], queries: Tensor, batch: int, device: torch.device
) -> Tensor:
    """Put queries (n, 3, h, w), bytes or floats in [0, 1], in batches; return all on the CPU."""
    parts = in_batches(len(queries), batch, lambda part: ask(images(queries[part], device)))
    return torch.cat(list(parts)).cpu()


def images(queries: Tensor, device: torch.device) -> Tensor:
    """Bring stored queries to the device as a model takes them: floats in [0, 1]."""
    moved = sent(queries, device)
    return moved.float() / 255 if moved.dtype == torch.uint8 else moved


def matches(found: Tensor, expected: Tensor, unit: str) -> Evidence:
    """Compare labels (n,): 1 where they agree, 0 elsewhere, so that the rate is their share."""
    same = tuple((found == expected).double().tolist())
    # Innocents often follow the owner, or the class it left: only strangers can tell how often.
    return Evidence(same, same, Rule("match", ">=", 1), unit, chance=None)
