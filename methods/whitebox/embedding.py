"""Train a copy of the owner with a regulariser that writes bits, and feature matching as its task.

The papers train a classifier with its own loss, or finetune one. An encoder has no labels: here the
task is that final tokens stay those of the clean owner.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data import sent
from bench.models import VisionModel, clone
from bench.training import MicroBatches, Schedule, in_batches, schedule
from bench.types import Context, Json, Passes, Sizes

CLEAN_BATCH = 64
"""Images the clean owner is asked about at a time; no answer depends on it."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """How the copy is trained; the methods explain the settings."""

    steps: int
    batch: int
    lr: float
    schedule: Schedule
    warmup: float
    weight_decay: float


class Seen(NamedTuple):
    """What the copy makes of some images."""

    tokens: Tensor  # (b, n, d)
    regulariser: Tensor  # ()


Look = Callable[[VisionModel, Tensor, Tensor], Seen]
"""Sends images (b, 3, h, w) of the numbers (b,) through a model, and says what bits ask of it."""


def clean_tokens(base: VisionModel, ctx: Context) -> Tensor:
    """Return the clean owner's final tokens of all its images, (m, n, d) on the CPU."""

    def some(part: slice) -> Tensor:
        return base.forward_features(ctx.images.batch(part, ctx.device)).cpu()

    with torch.no_grad():
        return torch.cat([*in_batches(len(ctx.images), CLEAN_BATCH, some)])


def embed(
    how: Embedding,
    base: VisionModel,
    look: Look,
    clean: Tensor,
    ctx: Context,
    beside: Sequence[dict[str, Any]] = (),
) -> tuple[VisionModel, dict[str, Json]]:
    """Train the backbone of a copy of `base`; the notes say where both losses came to.

    `clean` are the owner's tokens (m, n, d), and `beside` groups of other parameters that learn.
    Tokens count by their squared distance from these, in variances of each channel.

    Raises:
        FloatingPointError: the loss is not finite.

    """
    marked = clone(base).to(ctx.device)
    weights = list(marked.trunk.parameters())
    # Departure of all three papers, which train with SGD: here as elsewhere it is AdamW.
    optimiser = torch.optim.AdamW(
        [{"params": weights, "lr": how.lr}, *beside], weight_decay=how.weight_decay, fused=True
    )
    peaks = [float(group["lr"]) for group in optimiser.param_groups]
    order = _order(len(clean), how.steps * how.batch, ctx.rng).view(how.steps, how.batch)
    deviation = clean.flatten(0, 1).std(0).clamp_min(1e-6).to(ctx.device)  # (d,)
    losses = torch.zeros(how.steps, 2, device=ctx.device)
    micro, warmup = MicroBatches(how.batch), round(how.warmup * how.steps)

    def clear() -> None:
        optimiser.zero_grad(set_to_none=True)

    for number, chosen in enumerate(order):

        def loss_of(part: slice, chosen: Tensor = chosen) -> tuple[Tensor, Tensor]:
            some = chosen[part]
            seen = look(marked, ctx.images.batch(some, ctx.device), some)
            moved = (seen.tokens - sent(clean[some], ctx.device)) / deviation
            task = moved.square().mean()
            parts = torch.stack([task.detach(), seen.regulariser.detach()])
            return task + seen.regulariser, parts

        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(how.schedule, number, how.steps, warmup)
        losses[number] = micro.accumulate(how.batch, loss_of, clear, ctx.device)
        optimiser.step()
        clear()
    return marked.eval().requires_grad_(True).cpu(), _arrived(losses, how.lr)


def write(
    how: Embedding,
    owner: VisionModel,
    values: Callable[[VisionModel], Tensor],
    bits: Tensor,
    weight: float,
    ctx: Context,
) -> tuple[VisionModel, dict[str, Json]]:
    """Train a copy until the `values` (T,) of its weights have the signs of `bits` (T,).

    The loss is the task's and `weight` times `bit_loss`: eq. 2 of Uchida et al.
    """
    base, sought = clone(owner).to(ctx.device).requires_grad_(False), bits.to(ctx.device)

    def look(model: VisionModel, images: Tensor, _: Tensor) -> Seen:
        return Seen(model.forward_features(images), weight * bit_loss(values(model), sought))

    return embed(how, base, look, clean_tokens(base, ctx), ctx)


def bit_loss(values: Tensor, bits: Tensor) -> Tensor:
    """Return the cross-entropy of the sigmoid of values with bits, summed over bits.

    Uchida et al., eq. 3: a sum, so that one weight has another effect on more bits.
    """
    return F.binary_cross_entropy_with_logits(values, bits.to(values), reduction="sum")


def embedding_of(settings: Any) -> Embedding:
    """Pick the settings of the training from a method's."""
    names = [field.name for field in dataclasses.fields(Embedding)]
    return Embedding(**{name: getattr(settings, name) for name in names})


def embedding_passes(how: Embedding, sizes: Sizes) -> Passes:
    """Count the clean passes, and the steps there and back."""
    steps = how.steps * how.batch
    return Passes(sizes.images + steps, steps)


def _order(count: int, wanted: int, rng: torch.Generator) -> Tensor:
    """Draw `wanted` indices, every image once before any twice."""
    rounds = -(-wanted // count)
    return torch.cat([torch.randperm(count, generator=rng) for _ in range(rounds)])[:wanted]


def _arrived(losses: Tensor, lr: float) -> dict[str, Json]:
    """Say where the losses (steps, 2) came to, over the last twentieth of the steps."""
    task, regulariser = losses[-max(1, len(losses) // 20) :].mean(0).tolist()
    if not all(map(math.isfinite, (task, regulariser))):
        raise FloatingPointError(f"the embedding diverged: loss {task + regulariser}; lower {lr=}")
    return {"loss_task": task, "loss_regulariser": regulariser}
