"""Make a stolen model robust, which moves the boundaries that fingerprints are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.matching import answers
from bench import training
from bench.data import sent
from bench.models import VisionModel, clone
from bench.registry import attack
from bench.types import (
    Access,
    Change,
    Context,
    NotNegative,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    Sizes,
)


@attack("finetune.adversarial")
@dataclass(frozen=True, slots=True)
class FeatureAdversarial:
    """Train a copy to have the victim's embedding of an image on the worst images near it.

    No label is needed. The worst image within `eps` is looked for by signed gradient steps, from a
    random one.

    Source: C. Schlarmann, N. D. Singh, F. Croce, M. Hein, "Robust CLIP: unsupervised adversarial
    fine-tuning of vision embeddings for robust large vision-language models", arXiv:2402.12336,
    eq. 3 (FARE): two epochs over ImageNet at 1e-5, eps of 2/255 or 4/255, ten steps.

    * `data`: the data set whose images the thief learns on; none: the probe's.
    * `eps`: how far a pixel in [0, 1] may move; the axis of a sweep.
    * `attack_steps`, `attack_lr`: signed steps to the worst image, and how far one goes.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises. 1e-5 is the paper's, for a ViT-L; a model 48 wide takes ten times that.
    * `weight_decay`: AdamW's.
    * `precision`: of the passes.
    """

    data: str | None = None
    eps: PositiveFloat = 4 / 255
    attack_steps: Positive = 10
    attack_lr: PositiveFloat = 1 / 255
    epochs: Positive = 2
    lr: NotNegative = 1e-4
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.07
    weight_decay: NotNegative = 1e-4
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, and every epoch with all its steps there and back."""
        seen = self.epochs * sizes.images * (1 + self.attack_steps)
        return Passes(sizes.images + seen, seen)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy, heads and all; notes say the last epoch's loss."""
        model = clone(victim).to(ctx.device)
        wanted = answers(victim, ctx.images, VisionModel.features, ctx.device)  # (n, d)

        def loss_of(chosen: Tensor) -> Tensor:
            target = sent(wanted[chosen], ctx.device)
            worst = self._worst(model, ctx.images.batch(chosen, ctx.device), target, ctx.rng)
            return _apart(model, worst, target)

        fit = training.fit(model.parameters(), loss_of, len(ctx.images), self, ctx.rng)
        model.notes = {"final_loss": fit.losses[-1], "steps": fit.steps}
        return model.eval()

    def _worst(
        self, model: VisionModel, images: Tensor, wanted: Tensor, rng: torch.Generator
    ) -> Tensor:
        """Return images (b, 3, h, w) within `eps` that are farthest from features (b, d)."""
        low, high = (images - self.eps).clamp_min(0), (images + self.eps).clamp_max(1)
        start = torch.rand(images.shape, generator=rng).to(images)
        worst = torch.lerp(low, high, start)
        for _ in range(self.attack_steps):
            worst.requires_grad_(True)
            (slope,) = torch.autograd.grad(_apart(model, worst, wanted), worst)
            stepped = worst.detach() + self.attack_lr * slope.sign()
            worst = torch.minimum(torch.maximum(stepped, low), high)
        return worst


def _apart(model: VisionModel, images: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared length between features of images and those wanted (b, d)."""
    return (model.features(images) - wanted).square().sum(1).mean()
