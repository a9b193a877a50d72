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

from bench.data import Images, sent
from bench.models import VisionModel, clone
from bench.training import MicroBatches, Schedule, in_batches, schedule
from bench.types import Context, Json, Passes, Sizes

KEPT_BYTES = 8 * 2**30
"""The clean owner's tokens are kept up to this size, and asked for step by step beyond it."""

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


@dataclass(frozen=True, slots=True, eq=False)
class CleanTokens:
    """The clean owner's final tokens of its images: kept, or asked for again where too many."""

    base: VisionModel
    images: Images
    deviation: Tensor  # (d,) of every channel
    kept: Tensor | None  # (m, n, d) on the CPU

    def __call__(self, chosen: Tensor, device: torch.device) -> Tensor:
        """Return the tokens (b, n, d) of the images numbered `chosen` (b,), on the device."""
        if self.kept is not None:
            return sent(self.kept[chosen], device)
        with torch.no_grad():
            return self.base.forward_features(self.images.batch(chosen, device))


class Seen(NamedTuple):
    """What the copy makes of some images."""

    tokens: Tensor  # (b, n, d)
    regulariser: Tensor  # ()


Look = Callable[[VisionModel, Tensor, Tensor], Seen]
"""Sends images (b, 3, h, w) of the numbers (b,) through a model, and says what bits ask of it."""


Ask = Callable[[Tensor], Sequence[Tensor]]
"""Maps images (b, 3, h, w) to final tokens (b, n, d), and to whatever else is wanted of each."""


@torch.no_grad()
def look_once(base: VisionModel, ask: Ask, ctx: Context) -> tuple[CleanTokens, list[Tensor]]:
    """Send all the owner's images through it once; return its tokens, and the rest on the CPU."""

    def some(part: slice) -> list[Tensor]:
        return [found.cpu() for found in ask(ctx.images.batch(part, ctx.device))]

    count, done = len(ctx.images), 0
    kept: Tensor | None = None
    scatter, others = Scatter(), list[list[Tensor]]()
    for tokens, *rest in in_batches(count, CLEAN_BATCH, some):
        if not done and fits(count, *tokens.shape[1:]):
            # Written in place: joining the batches would hold all of them twice.
            kept = tokens.new_empty(count, *tokens.shape[1:])
        if kept is not None:
            kept[done : done + len(tokens)] = tokens
        scatter = scatter.joined(tokens.flatten(0, 1).double())
        others.append(rest)
        done += len(tokens)
    clean = CleanTokens(base, ctx.images, scatter.deviation.float(), kept)
    return clean, [torch.cat(parts) for parts in zip(*others, strict=True)]


class Scatter(NamedTuple):
    """How many rows were seen, their mean (d,), and the sum of squared distances from it (d,)."""

    rows: int = 0
    mean: Tensor = torch.zeros(())
    squares: Tensor = torch.zeros(())

    def joined(self, values: Tensor) -> Scatter:
        """Return that of these rows and of `values` (n, d): Chan, Golub, LeVeque, 1983."""
        rows, apart = self.rows + len(values), values.mean(0) - self.mean
        mean = self.mean + apart * len(values) / rows
        within = (values - values.mean(0)).square().sum(0)
        between = apart.square() * self.rows * len(values) / rows
        return Scatter(rows, mean, self.squares + within + between)

    @property
    def deviation(self) -> Tensor:
        """Return the standard deviation of every column, (d,)."""
        return (self.squares / (self.rows - 1)).sqrt()


def fits(images: int, tokens: int, width: int) -> bool:
    """Say whether the tokens of so many images are kept."""
    return 4 * images * tokens * width <= KEPT_BYTES


def embed(
    how: Embedding,
    base: VisionModel,
    look: Look,
    clean: CleanTokens,
    ctx: Context,
    beside: Sequence[dict[str, Any]] = (),
) -> tuple[VisionModel, dict[str, Json]]:
    """Train the backbone of a copy of `base`; the notes say where both losses came to.

    `beside` are groups of other parameters that learn. Tokens count by their squared distance from
    the `clean` ones, in variances of each channel.

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
    order = _order(len(ctx.images), how.steps * how.batch, ctx.rng).view(how.steps, how.batch)
    deviation = clean.deviation.clamp_min(1e-6).to(ctx.device)  # (d,)
    losses = torch.zeros(how.steps, 2, device=ctx.device)
    micro, warmup = MicroBatches(how.batch), round(how.warmup * how.steps)

    def clear() -> None:
        optimiser.zero_grad(set_to_none=True)

    for number, chosen in enumerate(order):

        def loss_of(part: slice, chosen: Tensor = chosen) -> tuple[Tensor, Tensor]:
            some = chosen[part]
            seen = look(marked, ctx.images.batch(some, ctx.device), some)
            moved = (seen.tokens - clean(some, ctx.device)) / deviation
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

    clean, _ = look_once(base, lambda images: [base.forward_features(images)], ctx)
    return embed(how, base, look, clean, ctx)


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
    """Count the clean passes, and the steps there and back.

    Where clean tokens are too many to keep, every step asks for them again.
    """
    steps = how.steps * how.batch
    again = 0 if fits(sizes.images, sizes.tokens, sizes.width) else steps
    return Passes(sizes.images + steps + again, steps)


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
