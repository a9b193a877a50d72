"""Train e, d and some blocks of q until the message arrives and the output stays (eq. 2)."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data import Images, sent
from bench.models import Ideal, VisionModel, clone, timed
from bench.training import MicroBatches, Schedule, in_batches, passes
from bench.training import schedule as schedule_factor
from bench.types import Context, Json
from methods.activemark.channel import Channel, Codec, Link

CACHE_BYTES = 8 * 2**30
"""Frozen activations are kept up to this size and recomputed step by step beyond it."""

TIMED_ROUNDS = 15
"""Steps timed beside the fewest passes they need, spread over the training."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The loss, what learns by it, and how fast; `ActiveMark` explains the settings."""

    fidelity_norm: Literal["l2", "l2_squared", "mse"]
    fidelity_under: Literal["injection", "plain"]
    message_norm: Literal["l1", "mse", "bce"]
    weight: float
    trained: Literal["tail", "inner", "none"]
    steps: int
    batch: int
    lr: float
    codec_lr: float
    schedule: Schedule
    warmup: float
    weight_decay: float
    augment: bool


class Embedded(NamedTuple):
    """A marked model, and how its training went."""

    model: VisionModel
    notes: dict[str, Json]
    ideal_seconds: float


class Clean(NamedTuple):
    """What the clean model does to a batch; nothing in it is ever trained."""

    source: Tensor  # what e sees: the token (b, d), or the channel of all tokens (b, n)
    after: Tensor  # (b, n, d) output of block b
    target: Tensor  # what fidelity compares with: (b, d') or (b, n, d)

    def part(self, which: slice | Tensor) -> Clean:
        """Return those of some images."""
        return Clean(*(value[which] for value in self))


def embed(
    how: Embedding,
    channel: Channel,
    base: VisionModel,
    images: Images,
    messages: Tensor | None,
    ctx: Context,
) -> Embedded:
    """Train a copy of `base`, and the channel's e and d in place.

    Each image has its message (n, bits); without `messages` every step draws its own.
    """
    marked = clone(base)
    base.requires_grad_(False)
    optimiser = _optimiser(how, channel.codec, _learning(how, marked, channel.link), ctx.device)
    rates = [group["lr"] for group in optimiser.param_groups]
    # Every draw but augmentation's is made before the loop, which then does not wait for them.
    order = _order(len(images), how.steps * how.batch, ctx.rng).view(how.steps, how.batch)
    bits = channel.codec.bits
    sought = draw_bits((*order.shape, bits), ctx.rng) if messages is None else messages[order]
    frozen = Frozen(how, channel, base, images, ctx)
    warmup = round(how.warmup * how.steps)
    losses = torch.zeros(how.steps, 2, device=ctx.device)
    micro = MicroBatches(how.batch)

    def clear() -> None:
        optimiser.zero_grad(set_to_none=True)

    def step(number: int) -> None:
        message, clean = sent(sought[number], ctx.device), frozen(order[number])

        def loss_of(part: slice) -> tuple[Tensor, Tensor]:
            return _loss(how, channel, marked, clean.part(part), message[part])

        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * schedule_factor(how.schedule, number, how.steps, warmup)
        clear()
        losses[number] = micro.accumulate(len(message), loss_of, clear, ctx.device)
        optimiser.step()

    def bare(number: int) -> None:
        bounce = functools.partial(_there_and_back, how, channel, marked, frozen(order[number]))
        for _ in micro.over(how.batch, bounce):
            pass
        clear()

    ideal = Ideal(ctx.device, set(_spread(how.steps, TIMED_ROUNDS)))
    ratio = _repeat(step, bare, how.steps, ideal, ctx.rng)
    notes: dict[str, Json] = {
        **_arrived(how, losses),
        "step_ratio_to_ideal": ratio,
        "frozen_cached": frozen.cached,
    }
    return Embedded(marked, notes, ideal.median * how.steps)


class Frozen:
    """The clean model's activations on demand; computed once where nothing changes them."""

    def __init__(
        self, how: Embedding, channel: Channel, base: VisionModel, images: Images, ctx: Context
    ) -> None:
        self._channel, self._base, self._images = channel, base, images
        self._augment, self._device, self._rng = how.augment, ctx.device, ctx.rng
        self._micro = MicroBatches(how.batch)
        each = self._compute(torch.arange(min(1, len(images))))
        size = sum(part.nbytes for part in each) * len(images)
        self.cached = not how.augment and size <= CACHE_BYTES
        self._kept = self._all() if self.cached else None

    def __call__(self, indices: Tensor) -> Clean:
        """Return the activations of the images at `indices` (b,)."""
        if self._kept is None:
            return self._compute(indices)
        return self._kept.part(sent(indices, self._device))

    def _all(self, batch: int = 64) -> Clean:
        first = self._compute(torch.arange(1))
        # Written in place: joining the chunks would hold all of them twice.
        kept = Clean(*(part.new_empty(len(self._images), *part.shape[1:]) for part in first))

        def fill(chunk: slice) -> None:
            images = self._images.batch(chunk, self._device)
            for whole, part in zip(kept, self._seen(images), strict=True):
                whole[chunk] = part

        for _ in in_batches(len(self._images), batch, fill):
            pass
        return kept

    def _compute(self, indices: Tensor) -> Clean:
        images = self._images.batch(indices, self._device)
        if self._augment:  # as one batch, whatever the memory: its draws are in that order
            images = _augmented(images, self._rng)
        parts = [*self._micro.over(len(images), lambda part: self._seen(images[part]))]
        return parts[0] if len(parts) == 1 else Clean(*map(torch.cat, zip(*parts, strict=True)))

    @torch.no_grad()
    def _seen(self, images: Tensor) -> Clean:
        with passes(self._device, self._channel.wiring.precision):
            source, after = self._channel.up_to_b(self._base, images)
            target, _ = self._channel.beyond_b(self._base, after)
        # Cloned: a view would keep the whole stream before block b alive.
        return Clean(source.clone(), after, target)


def draw_bits(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw fair bits."""
    return torch.randint(2, shape, generator=rng, dtype=torch.uint8)


def _learning(how: Embedding, model: VisionModel, link: Link) -> list[nn.Parameter]:
    """Freeze the model but for what the settings train, and return that."""
    model.requires_grad_(False)
    last = {"tail": link.depth, "inner": link.depth - 1, "none": 0}[how.trained]
    parts: list[nn.Module] = list(model.blocks)[link.block + 1 : last]
    chosen = [p for part in parts for p in part.parameters()]
    if how.trained == "tail":  # the final norm is part of q
        chosen += [p for n, p in model.trunk.named_parameters() if _after_blocks(n)]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def _after_blocks(name: str) -> bool:
    """Say whether a parameter lies between the last block and the output embedding."""
    return name.startswith(
        (
            *("vit.norm.", "vit.fc_norm.", "vit.attn_pool.", "projection."),
            *("visual.ln_post.", "visual.attn_pool.", "visual.proj"),
        )
    )


def _optimiser(
    how: Embedding, codec: Codec, learning: list[nn.Parameter], device: torch.device
) -> torch.optim.AdamW:
    """Let e and d learn at a rate of their own, the chosen part of the model at another."""
    groups = [{"params": list(codec.parameters()), "lr": how.codec_lr}]
    if learning:
        groups.append({"params": learning, "lr": how.lr})
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, weight_decay=how.weight_decay, fused=fused)


def _loss(
    how: Embedding, channel: Channel, model: VisionModel, clean: Clean, message: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 2 on one batch; returns the loss and its two parts (2,)."""
    with passes(clean.after.device, channel.wiring.precision):
        written = channel.write(clean.source, clean.after, message)
        out, seen = channel.beyond_b(model, written)
        logits = channel.decode(seen)
        if how.fidelity_under == "plain":
            out, _ = channel.beyond_b(model, clean.after)
    fidelity = _fidelity(out.float() - clean.target.float(), how.fidelity_norm)
    arrival = _message_loss(logits.float(), message.float(), how.message_norm)
    parts = torch.stack([fidelity.detach(), arrival.detach()])
    return fidelity + how.weight * arrival, parts


def _fidelity(difference: Tensor, norm: str) -> Tensor:
    if norm == "mse":
        return difference.square().mean()
    if norm == "l2_squared":
        return difference.square().flatten(1).sum(1).mean()
    return cast(Tensor, torch.linalg.vector_norm(difference.flatten(1), dim=1)).mean()


def _message_loss(logits: Tensor, message: Tensor, norm: str) -> Tensor:
    if norm == "bce":
        return F.binary_cross_entropy_with_logits(logits, message)
    soft = logits.sigmoid()
    if norm == "mse":
        return (soft - message).square().mean()
    return (soft - message).abs().sum(1).mean()


def _there_and_back(
    how: Embedding, channel: Channel, model: VisionModel, clean: Clean, part: slice
) -> None:
    """Make the fewest passes that a step needs for some images of its batch."""
    with passes(clean.after.device, channel.wiring.precision):
        tokens = clean.after[part].detach().requires_grad_(True)
        out, seen = channel.beyond_b(model, tokens)
        if how.fidelity_under == "plain":
            out, _ = channel.beyond_b(model, clean.after[part])
        seen.sum().add(out.sum()).backward()  # type: ignore[no-untyped-call]


def _repeat(
    step: Callable[[int], None],
    bare: Callable[[int], None],
    steps: int,
    ideal: Ideal,
    rng: torch.Generator,
) -> float:
    """Take every step; return what some took over what `bare` took beside each of them."""
    real = []
    for number in range(steps):
        if number not in ideal.rounds:
            step(number)
            continue
        real.append(timed(functools.partial(step, number), ideal.device))
        drawn = rng.get_state()  # what is only timed must not move the draws of what counts
        ideal.time(functools.partial(bare, number))
        rng.set_state(drawn)
    return statistics.median(a / b for a, b in zip(real, ideal.seconds, strict=True))


def _arrived(how: Embedding, losses: Tensor) -> dict[str, Json]:
    """Say where the losses (steps, 2) came to, over the last twentieth of the steps."""
    final = losses[-max(1, how.steps // 20) :].mean(0).tolist()
    if not all(map(math.isfinite, final)):
        raise FloatingPointError(
            f"the embedding diverged: loss {final}; lower lr = {how.lr} or "
            f"codec_lr = {how.codec_lr}"
        )
    return {"loss_fidelity": final[0], "loss_message": final[1]}


def _augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """Flip half of the images and zoom into a random part of at least 35 % of the area."""
    count = len(images)
    draws = torch.rand(4, count, generator=rng)
    scale = 0.6 + 0.4 * draws[0]  # side of the part, as a share of the image's
    flip = (draws[1] < 0.5).float() * 2 - 1
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = scale * flip, scale
    matrix[:, :, 2] = (2 * draws[2:].T - 1) * (1 - scale)[:, None]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False).to(images.device)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _order(count: int, wanted: int, rng: torch.Generator) -> Tensor:
    """Draw `wanted` indices, every image once before any twice."""
    rounds = -(-wanted // count)
    return torch.cat([torch.randperm(count, generator=rng) for _ in range(rounds)])[:wanted]


def _spread(steps: int, rounds: int) -> list[int]:
    """Choose rounds of the loop, evenly spread, after the first step's one-off costs."""
    return [min(1 + round(i * (steps - 2) / (rounds - 1)), steps - 1) for i in range(rounds)]
