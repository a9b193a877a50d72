"""Train a copy of the owner until it remembers its bits on the triggers, and nothing else moves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data import sent
from bench.models import VisionModel, clone
from bench.training import MicroBatches, Schedule, schedule
from bench.types import Context, Json
from methods.committed_bits.reading import Whitener, with_tokens

PULL = 0.5
"""How far towards the clean owner a copy is pulled at most, where averaging is rehearsed."""

PRUNED = (0.2, 0.7)
"""Between which shares weights are zeroed, where pruning is rehearsed."""

CLIPPED = 5.0
"""The norm that a step's gradient has at most."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """How the copy is trained; `CommittedBits` explains the settings."""

    strength: float
    fidelity: float
    rehearsed: float
    steps: int
    batch: int
    lr: float
    schedule: Schedule
    warmup: float
    weight_decay: float


class Place(NamedTuple):
    """A place where features are read, and what they are to be: triggers first, then the kept."""

    whiten: Whitener
    sought: Tensor  # (N + m, r)


def shapes(count: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """Draw images unlike photographs and unlike triggers: uint8 (n, 3, h, w).

    Strokes, patches and slopes in two colours: what is kept on them is kept on drawings and digits.
    """
    field = F.interpolate(torch.randn(count, 1, 6, 6, generator=rng), size, mode="bicubic")
    width = 0.1 + torch.rand(count, 1, 1, 1, generator=rng)
    strokes, patches, slopes = (field.abs() < width / 2), field > width, field.sigmoid()
    kind = torch.randint(3, (count, 1, 1, 1), generator=rng)
    ink = torch.where(kind == 0, strokes.float(), torch.where(kind == 1, patches.float(), slopes))
    colours = torch.rand(2, count, 3, 1, 1, generator=rng)
    plain = torch.rand(2, count, 1, 1, 1, generator=rng) < 0.5  # black and white, either way round
    white = (torch.rand(count, 1, 1, 1, generator=rng) < 0.5).float()
    one = torch.where(plain[0], white, colours[0])
    other = torch.where(plain[0], 1 - white, colours[1])
    return ((ink * one + (1 - ink) * other).clamp(0, 1) * 255).round().to(torch.uint8)


def displacements(bits: Tensor, directions: Tensor, strength: float) -> Tensor:
    """Return by how much each trigger is to move, (N, r), for bits (N, n) and directions (r, n).

    Its length is `strength`, in deviations of the owner's whitened features, whatever n.
    """
    signs = bits.to(directions.dtype) * 2 - 1
    return strength / math.sqrt(bits.shape[1]) * signs @ directions.T


def embed(
    how: Embedding,
    base: VisionModel,
    blocks: Sequence[int],
    places: Sequence[Place],
    pooled: Tensor,
    pixels: Tensor,
    triggers: int,
    ctx: Context,
) -> tuple[VisionModel, dict[str, Json]]:
    """Train the blocks of a copy of `base`; the notes say where the losses came to.

    Of `pixels`, uint8 (N + m, 3, h, w), the first N are `triggers`, and the others are to stay
    where they are, `pooled` tokens (N + m, 2 d) as well, on which classifiers sit.
    """
    marked, device = clone(base).to(ctx.device), ctx.device
    weights, clean = _trained(marked), [p.detach().clone() for p in _trained(marked)]
    optimiser = torch.optim.AdamW(weights, lr=how.lr, weight_decay=how.weight_decay, fused=True)
    counts = (triggers, len(pixels) - triggers)
    moved, kept = (_order(count, how.steps * how.batch, ctx.rng) for count in counts)
    order = torch.cat([moved.view(how.steps, -1), triggers + kept.view(how.steps, -1)], 1)
    losses = torch.zeros(how.steps, 2, device=device)
    micro, warmup = MicroBatches(order.shape[1]), round(how.warmup * how.steps)
    there = [_there(place, device) for place in places]
    loss = _Loss(marked, blocks, there, pooled.to(device), how.fidelity)

    def clear() -> None:
        optimiser.zero_grad(set_to_none=True)

    for number, chosen in enumerate(order):

        def loss_of(part: slice, chosen: Tensor = chosen) -> tuple[Tensor, Tensor]:
            return loss(pixels, chosen[part], triggers)

        for group in optimiser.param_groups:
            group["lr"] = how.lr * schedule(how.schedule, number, how.steps, warmup)
        clear()
        with _attacked(weights, clean, how.rehearsed, ctx.rng):
            losses[number] = micro.accumulate(len(chosen), loss_of, clear, device)
        nn.utils.clip_grad_norm_(weights, CLIPPED)
        optimiser.step()
    clear()
    return marked.eval(), _arrived(losses, how.lr)


class _Loss:
    """How far triggers are from where they are to be, and all other images from where they were."""

    def __init__(
        self,
        model: VisionModel,
        blocks: Sequence[int],
        places: Sequence[Place],
        pooled: Tensor,
        weight: float,
    ) -> None:
        self._model, self._blocks, self._places, self._pooled = model, blocks, places, pooled
        self._deviation, self._weight = pooled.std(0).clamp_min(1e-6), weight

    def __call__(self, pixels: Tensor, chosen: Tensor, triggers: int) -> tuple[Tensor, Tensor]:
        """Return the mean loss of some images, and its parts: of triggers, of the others (2,)."""
        device = self._pooled.device
        images, row = sent(pixels[chosen], device).float() / 255, sent(chosen, device)
        found, tokens = with_tokens(self._model, images, self._blocks)
        off = torch.stack(
            [
                (place.whiten(seen) - place.sought[row]).square().mean(1)
                for place, seen in zip(self._places, found, strict=True)
            ]
        ).sum(0)  # (b,)
        moved = self._model.pooled(tokens) - self._pooled[row]
        same = (moved / self._deviation).square().mean(1)
        is_trigger = (row < triggers).float()
        parts = torch.stack([is_trigger * off, (1 - is_trigger) * (off + same)], 1).mean(0)
        return parts[0] + self._weight * parts[1], parts.detach()


def _trained(model: VisionModel) -> list[nn.Parameter]:
    """List what learns: the blocks, or the whole backbone where they are no plain sequence."""
    inner: nn.Module = model.trunk if model.trunk.blocks is None else model.blocks
    model.requires_grad_(False)
    chosen = list(inner.parameters())
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


@contextmanager
def _attacked(
    weights: Sequence[nn.Parameter], clean: Sequence[Tensor], share: float, rng: torch.Generator
) -> Iterator[None]:
    """In a share of the steps, take the gradient where a thief might have brought the weights to.

    They are pruned by magnitude, over all blocks, or averaged with the clean owner's; the step is
    then taken from where they were (first order).
    """
    chance, which, amount = torch.rand(3, generator=rng).tolist()
    if chance >= share:
        yield
        return
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        if which < 0.5:
            _prune(weights, PRUNED[0] + (PRUNED[1] - PRUNED[0]) * amount)
        else:
            torch._foreach_lerp_(list(weights), list(clean), PULL * amount)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), before)


def _prune(weights: Sequence[nn.Parameter], share: float) -> None:
    matrices = [weight for weight in weights if weight.ndim > 1]
    sizes = torch.cat([weight.abs().flatten() for weight in matrices])
    bar = sizes.kthvalue(max(1, int(share * len(sizes)))).values
    for weight in matrices:
        weight.mul_(weight.abs() > bar)


def _there(place: Place, device: torch.device) -> Place:
    return Place(Whitener(*(t.to(device) for t in place.whiten)), place.sought.to(device))


def _order(count: int, wanted: int, rng: torch.Generator) -> Tensor:
    """Draw `wanted` indices, every image once before any twice."""
    rounds = -(-wanted // count)
    return torch.cat([torch.randperm(count, generator=rng) for _ in range(rounds)])[:wanted]


def _arrived(losses: Tensor, lr: float) -> dict[str, Json]:
    """Say where the losses (steps, 2) came to, over the last twentieth of the steps."""
    bits, fidelity = losses[-max(1, len(losses) // 20) :].mean(0).tolist()
    if not all(map(math.isfinite, (bits, fidelity))):
        raise FloatingPointError(f"the embedding diverged: loss {bits + fidelity}; lower lr = {lr}")
    return {"loss_bits": bits, "loss_fidelity": fidelity}
