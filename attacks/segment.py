"""Fine-tune a stolen model to say what every pixel shows.

Source: A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual foundation models via
massive activations", arXiv:2510.04966, section 4.2 (all layers, AdamW, 10 epochs, no schedule; on
FoodSeg103).

The paper does not describe its segmentation head. Here it is a LayerNorm and a 1x1 convolution on
the last block's patch tokens, resized bilinearly to the image (no batch norm: a head would carry
statistics of its victim from the first step on), or the decoder of a DPT. Rates as in
`finetune.classify`: the paper gives none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from bench import training
from bench.data import IGNORE, sent
from bench.models import VisionModel, segmentation_head, with_head
from bench.registry import attack
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


@attack("finetune.segment")
@dataclass(frozen=True, slots=True)
class FinetuneSegment:
    """Fine-tune all layers and a fresh segmentation head on the thief's images with masks.

    Images are taken as they are: there is no augmentation.

    * `data`: the data set that the thief trains on; the suspect keeps its head.
    * `decoder`: a LayerNorm and a 1x1 convolution, or the decoder of a DPT.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises.
    * `weight_decay`: AdamW's.
    * `precision`: of the passes.
    """

    data: str = "digit-scenes"
    decoder: Literal["linear", "dpt"] = "linear"
    epochs: Positive = 10
    lr: NotNegative = 1e-4
    batch: Positive = 16
    schedule: training.Schedule = "constant"
    warmup: PartialShare = 0.0
    weight_decay: NotNegative = 0.01
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ENCODER  # the head answers pixel by pixel
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"
    labelled: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count every epoch there and back."""
        return Passes(self.epochs * sizes.images, self.epochs * sizes.images)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the fine-tuned copy with its head; notes say the last epoch's loss."""
        images, masks = ctx.images, ctx.images.masks
        if masks is None:
            raise UserError(
                f"finetune.segment: expected images with masks, got '{self.data}' without; "
                "give `data` a data set of the loader masks or digit-scenes"
            )
        counted = (masks != IGNORE).flatten(1).sum(1)  # (n,), pixels of each image
        if not counted.any():
            raise UserError(
                f"finetune.segment: expected masks with pixels that count, got '{self.data}' with "
                "none; look at its `ignore_index`"
            )
        # The head is drawn before anything else: a twin, with the same seed, gets the same one.
        head = segmentation_head(victim, self.decoder, images.classes)
        model = with_head(victim, head, ctx.rng).to(ctx.device)

        def loss_of(chosen: Tensor) -> Tensor:
            scores = model.segment(images.batch(chosen, ctx.device))  # (b, k, h, w)
            shown = sent(masks[chosen], ctx.device).long()  # (b, h, w)
            total = F.cross_entropy(scores, shown, ignore_index=IGNORE, reduction="sum")
            return total / (shown != IGNORE).sum().clamp_min(1)  # a batch may show nothing at all

        # A DPT's dropout and batch norms sit in the head; a backbone keeps the victim's mode.
        assert model.head is not None
        model.head.train()
        fit = training.fit(model.parameters(), loss_of, len(images), self, ctx.rng, counted)
        model.notes = {"final_loss": fit.losses[-1], "steps": fit.steps}
        return model.eval()
