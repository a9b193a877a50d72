"""Fine-tune a stolen model on the thief's own task.

Source: A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual foundation models via
massive activations", arXiv:2510.04966, sections 4.2 (all layers, AdamW, 10 epochs, constant, cosine
or linear learning rate) and 5.1 (the head).

The paper gives no learning rate, batch, weight decay or warm-up. Its authors' earlier code goes
from 1e-6 to 1e-5, which hardly moves the weights: a mark that survives it has proved little. The
default here, 1e-4, is the middle of the range in which fine-tuning of vision transformers is tuned
(1e-5 to 1e-3); suites sweep it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from bench import training
from bench.models import Head, VisionModel, with_head
from bench.registry import attack
from bench.types import Access, Context, UserError


@attack("finetune.classify")
@dataclass(frozen=True, slots=True)
class FinetuneClassify:
    """Fine-tune all layers and a fresh head on the thief's labelled images.

    `data` names the suite's data set that the thief trains on; the suspect keeps its head.
    `warmup` is a share of the steps, `lr` the peak learning rate.
    """

    data: str = "digits"
    epochs: int = 10
    lr: float = 1e-4
    batch: int = 32
    schedule: training.Schedule = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.01
    dropout: float = 0.1

    offers: ClassVar[Access] = Access.ENCODER  # the head answers in the thief's classes
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("lr", 0), ("weight_decay", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        for name in ("warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}")

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the fine-tuned copy with its head; notes say the last epoch's loss."""
        images, labels = ctx.images, ctx.images.labels
        if labels is None:
            raise UserError(
                f"finetune.classify: expected labelled images, got '{self.data}' without labels; "
                "give `data` a data set with classes"
            )
        # The head is drawn before anything else: a twin, with the same seed, gets the same one.
        model = with_head(victim, Head(images.classes, self.dropout), ctx.rng).to(ctx.device)

        def loss_of(chosen: Tensor) -> Tensor:
            logits = model.logits(images.batch(chosen, ctx.device))  # (b, k)
            return F.cross_entropy(logits, labels[chosen].to(ctx.device, non_blocking=True))

        # Dropout sits in the head alone; a backbone's batch norms keep the victim's statistics.
        assert model.head is not None
        model.head.train()
        fit = training.fit(
            model.parameters(),
            loss_of,
            len(images),
            epochs=self.epochs,
            batch=self.batch,
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup=self.warmup,
            rng=ctx.rng,
        )
        model.notes = {"final_loss": fit.losses[-1], "steps": fit.steps}
        return model.eval()
