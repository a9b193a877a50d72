"""Hide a stolen model's basis from an owner who looks for it in the embedding of patches.

An owner who aligns a suspect before reading it compares static weights: filters of patches, tokens
and positions. These thieves know that. They give the copy others, which do the same, and then a
rotation, which the owner has nothing left to undo by. Without it they would hide nothing: the
blocks would still speak in the owner's basis.

The attacks are this bench's own, against an answer of its own (`bench.models.symmetry.align`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import training
from bench.data import sent
from bench.models import SegmentationHead, VisionModel, clone, reshape, symmetry
from bench.registry import attack
from bench.training import in_batches
from bench.types import (
    Access,
    Change,
    Context,
    NotNegative,
    PartialShare,
    Passes,
    Positive,
    Sizes,
    UserError,
)

TEACHER_BATCH = 64
"""Images the victim answers for at a time; no answer depends on it."""

KNOWS = "align"
"""What these thieves know: that the owner writes a suspect in its own basis before reading it."""


@attack("disguise.embeddings")
@dataclass(frozen=True, slots=True)
class Embeddings:
    """Learn patch embedding, tokens and positions anew, to the victim's features; then rotate.

    They are drawn with the spread of the victim's. All else stays as it is while they learn to give
    the victim's final tokens: the loss is 1 - cosine + mean squared error.

    * `data`: the data set whose images the thief learns on; none: the probe's.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises. At a rate of 0 nothing is learnt, and so nothing is drawn or rotated.
    * `weight_decay`: AdamW's.
    * `rotated`: whether the stream is rotated at last, or permuted where it starts from a norm.
    * `precision`: of the passes.
    """

    data: str | None = None
    epochs: Positive = 3
    lr: NotNegative = 5e-3
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.0
    rotated: bool = True
    precision: training.Precision = "float32"

    change: ClassVar[Change] = "finetuning"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    adaptive: ClassVar[str] = KNOWS

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, and every epoch there and back."""
        seen = self.epochs * sizes.images
        return Passes(sizes.images + seen, seen)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy, heads and all; notes say the last epoch's loss."""
        made = clone(victim).to(ctx.device)
        learnt = _embeddings(made)
        made.requires_grad_(False)
        for parameter in learnt:
            parameter.requires_grad_(True)
            if self.lr:  # or the copy would be worth nothing
                _redraw(parameter, ctx.rng)
        teacher = clone(victim).to(ctx.device)

        @torch.no_grad()
        def answer(part: slice) -> Tensor:
            return teacher.forward_features(ctx.images.batch(part, ctx.device)).cpu()

        wanted = torch.cat(list(in_batches(len(ctx.images), TEACHER_BATCH, answer)))  # (n, t, d)

        def loss_of(chosen: Tensor) -> Tensor:
            found = made.forward_features(ctx.images.batch(chosen, ctx.device))  # (b, t, d)
            target = sent(wanted[chosen], ctx.device)
            cosine = F.cosine_similarity(found, target, dim=-1).mean()
            return 1 - cosine + F.mse_loss(found, target)

        fit = training.fit(learnt, loss_of, len(ctx.images), self, ctx.rng)
        made = _rotated(made, ctx.rng) if self.rotated and self.lr else made
        made.notes = {"final_loss": fit.losses[-1], "steps": fit.steps}
        return made.eval().requires_grad_(True)


@attack("disguise.patch")
@dataclass(frozen=True, slots=True)
class Patch:
    """Cut images into patches of another size; filters are resampled to answer alike; then rotate.

    There are as many patches as before, of larger or smaller images.

    Source of the resampling: L. Beyer et al., "FlexiViT: one model for all patch sizes",
    arXiv:2212.08013, section 3.4.

    * `size`: the side of a patch in pixels; none: a quarter more than the victim's.
    * `rotated`: whether the stream is rotated at last, or permuted where it starts from a norm.
    """

    size: Positive | None = None
    rotated: bool = True

    change: ClassVar[Change] = "other"
    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    adaptive: ClassVar[str] = KNOWS

    def passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy, heads and all."""
        _embeddings(victim)  # refuses what has none
        patch, head = victim.trunk.patch, victim.architecture.head
        if patch is None or patch[0] != patch[1] or isinstance(head, SegmentationHead):
            raise UserError(
                "disguise.patch: expected square patches and a head for images, if any, got "
                f"{victim.architecture.name}; choose another attack"
            )
        size = self.size or patch[0] + max(1, patch[0] // 4)
        made = clone(victim).to(ctx.device)
        reshape(made, dataclasses.replace(made.architecture, patch=size))
        return _rotated(made, ctx.rng) if self.rotated else made


def _embeddings(model: VisionModel) -> list[nn.Parameter]:
    """List what an image and a place are embedded with."""
    body = symmetry.read(model)
    linear = [p for each in body.embeddings for p in (each.weight, each.bias) if p is not None]
    return [*linear, *body.tokens]


@torch.no_grad()
def _redraw(parameter: nn.Parameter, rng: torch.Generator) -> None:
    drawn = torch.randn(parameter.shape, generator=rng)  # on the CPU, equal everywhere
    parameter.copy_(drawn * parameter.std(correction=0).cpu())


def _rotated(model: VisionModel, rng: torch.Generator) -> VisionModel:
    starts_from_a_norm = symmetry.read(model).entry is not None
    turn = (
        symmetry.permutation(model.width, 1.0, rng)
        if starts_from_a_norm
        else symmetry.rotation(model.width, None, rng)
    )
    return symmetry.map_stream(model, turn)
