"""Train a model on a party's images: one loop, learning rates by step and by depth."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from bench.models.vision import VisionModel
from bench.records.nouns import Precision as Precision
from bench.training.microbatch import MicroBatches

Schedule = Literal["constant", "cosine", "linear"]

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
"""Parameters, or groups of them with settings of their own, as `torch.optim` takes them."""


class TrainingSettings(Protocol):
    """What `fit` asks of its settings: a plug-in that has fields of these names passes itself."""

    @property
    def epochs(self) -> int:
        """How often every image is seen."""

    @property
    def batch(self) -> int:
        """Images of one step."""

    @property
    def lr(self) -> float:
        """The peak learning rate, of parameters whose group has none of its own."""

    @property
    def schedule(self) -> Schedule:
        """How the learning rate falls from its peak."""

    @property
    def warmup(self) -> float:
        """Share of the steps, the first ones, in which it rises to the peak."""

    @property
    def weight_decay(self) -> float:
        """AdamW's."""

    @property
    def precision(self) -> Precision:
        """Of the passes."""


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of a training for those who have none of their own to pass."""

    epochs: int
    batch: int
    lr: float
    schedule: Schedule = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.01
    precision: Precision = "float32"


@dataclass(frozen=True, slots=True)
class Fit:
    """What a training run did: optimiser steps, and the mean loss per image of each epoch."""

    steps: int
    losses: tuple[float, ...]


def schedule(kind: Schedule, step: int, total: int, warmup: int = 0) -> float:
    """Return the share of the peak learning rate, in [0, 1], at `step` of 0 .. total - 1.

    The first `warmup` steps rise linearly to 1; cosine and linear fall to 0 over the others.
    """
    if step < warmup:
        return (step + 1) / warmup  # a first step at rate 0 would be wasted
    progress = (step - warmup) / max(total - warmup, 1)
    if kind == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - progress if kind == "linear" else 1.0


def by_depth(model: VisionModel, lr: float, decay: float) -> list[dict[str, Any]]:
    """Group trainable parameters by depth: block i of n learns at lr * decay ** (n - i).

    What comes after the blocks learns at `lr`, what comes before them at lr * decay ** (n + 1).

    Raises:
        Incompatible: the model is not a sequence of transformer blocks.

    """
    blocks = [[p for p in b.parameters() if p.requires_grad] for b in model.blocks]
    inner = {id(p) for block in blocks for p in block}
    outer = [p for p in model.parameters() if p.requires_grad and id(p) not in inner]
    stem = _reached(model, outer)
    early = {id(p) for p in stem}
    top = [p for p in outer if id(p) not in early]
    layers = [top, *reversed(blocks), stem]
    return [{"params": ps, "lr": lr * decay**i} for i, ps in enumerate(layers) if ps]


def _reached(model: VisionModel, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Pick the parameters that embedding an image depends on, whatever a library calls them."""
    blank = torch.zeros(1, 3, *model.preprocess.size, device=model.mean.device)
    with torch.enable_grad():
        tokens = model.embed(blank)
    if not tokens.requires_grad:
        return []
    found = torch.autograd.grad(tokens.sum(), parameters, allow_unused=True)
    return [p for p, grad in zip(parameters, found, strict=True) if grad is not None]


def fit(
    parameters: Parameters,
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    how: TrainingSettings,
    rng: torch.Generator,
    counted: Tensor | None = None,
) -> Fit:
    """Minimise `loss_of` with AdamW over shuffled batches of the indices 0 .. count - 1.

    `loss_of` maps indices (b,), on the CPU, to the batch's mean loss. Order and dropout are drawn
    from `rng`; global generators are left as they were. Where memory is short, a batch's gradients
    add up over parts of it (`MicroBatches.accumulate`). `counted` (count,), on the CPU, says of how
    much in each image the mean is taken, such as pixels; without it all count alike.

    Raises:
        FloatingPointError: the loss of an epoch is not finite.

    """
    optimiser = torch.optim.AdamW(parameters, lr=how.lr, weight_decay=how.weight_decay, fused=True)
    peaks = [float(group["lr"]) for group in optimiser.param_groups]
    steps = how.epochs * math.ceil(count / how.batch)
    warmup = round(how.warmup * steps)
    factors = iter([schedule(how.schedule, step, steps, warmup) for step in range(steps)])
    device = optimiser.param_groups[0]["params"][0].device
    losses: list[float] = []
    micro = MicroBatches(how.batch)

    def clear() -> None:
        optimiser.zero_grad(set_to_none=True)

    def mean_loss(chosen: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        with passes(device, how.precision):
            loss = loss_of(chosen[part])
        return loss, loss.detach()

    def share(chosen: Tensor, part: slice) -> float:
        if counted is None:
            return len(chosen[part]) / len(chosen)
        return float(counted[chosen[part]].sum()) / max(float(counted[chosen].sum()), 1.0)

    with _seeded(device, rng):
        for epoch in range(how.epochs):
            total = torch.zeros((), device=device)
            for chosen in torch.split(torch.randperm(count, generator=rng), how.batch):
                factor = next(factors)
                for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                step = functools.partial(mean_loss, chosen)
                parts = functools.partial(share, chosen)
                loss = micro.accumulate(len(chosen), step, clear, device, rng, share_of=parts)
                optimiser.step()
                clear()
                total += loss * len(chosen)
            losses.append(float(total) / count)  # the epoch's only wait for the device
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"diverged: loss is not finite at epoch {epoch + 1}; lower lr"
                )
    return Fit(steps, tuple(losses))


def passes(device: torch.device, precision: Precision) -> torch.autocast:
    """Run the passes of a block in `precision`; gradients may be taken outside it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def _seeded(device: torch.device, rng: torch.Generator) -> Iterator[None]:
    """Lend the global generators a seed drawn from `rng`: nn.Dropout knows no other."""
    seed = int(torch.randint(2**62, (), generator=rng))
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
