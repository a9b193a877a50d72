"""Fine-tune a stolen model on the thief's own task.

Source: A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual foundation models via
massive activations", arXiv:2510.04966, sections 4.2 (all layers, AdamW, 10 epochs, constant, cosine
or linear learning rate) and 5.1 (the head).

The paper gives no learning rate, batch, weight decay or warm-up. Its authors' earlier code goes
from 1e-6 to 1e-5, which hardly moves the weights: a mark that survives it has proved little. The
default here, 1e-4, is the middle of the range in which fine-tuning of vision transformers is tuned
(1e-5 to 1e-3); suites sweep it.

The modes are those of N. Lukas et al., "SoK: how robust is image classification deep neural network
watermarking?", arXiv:2108.04974 (FTAL, FTLL, RTAL, RTLL), and LoRA, E. Hu et al., arXiv:2106.09685,
merged into the weights. For a foundation model the last layer alone is a linear probe.

What smooths the boundaries between classes is cheap beside adversarial training: smoothed labels,
as an attack in that SoK; mixtures, H. Zhang et al., arXiv:1710.09412; noise; and steps that look at
the worst weights nearby, P. Foret et al., "Sharpness-aware minimization for efficiently improving
generalization", arXiv:2010.01412.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from attacks.inputs import mixing, noisy
from bench import training
from bench.data import Images, sent
from bench.models import Head, VisionModel, clone, with_head
from bench.registry import attack
from bench.training import in_batches
from bench.types import (
    Access,
    Change,
    Context,
    Later,
    NotNegative,
    PartialShare,
    Passes,
    Positive,
    PositiveShare,
    Sizes,
    UserError,
)

LORA_SCALE = 2.0
"""alpha / rank: alpha is twice the rank, whatever the rank."""

BATCH = 256
"""Images per pass through a frozen backbone."""


@attack("finetune.classify")
@dataclass(frozen=True, slots=True)
class FinetuneClassify:
    """Fine-tune a stolen model on the thief's labelled images, all of it or in part.

    Images are taken as they are, unless they are mixed or noise is added.

    * `data`: the data set that the thief trains on; the suspect keeps its head.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises.
    * `weight_decay`: AdamW's.
    * `dropout`: of the head.
    * `mode`: what is trained: all layers with a fresh head ("retrain_all") or with the victim's own
      ("all"), the head alone ("retrain_last", "last"), or a fresh head and low-rank updates of the
      attention's weights ("lora"). A victim that has no head for as many classes, or a distilled
      one's two, gets a fresh one in every mode.
    * `layer_decay`: block i of n learns at lr * layer_decay ** (n - i), what comes before the
      blocks slowest.
    * `rank`, `lora_mlp`: of the low-rank updates, and whether the MLPs get some too.
    * `precision`: of the passes.
    * `label_smoothing`: the share of a label that all classes have in equal parts. The SoK spreads
      0.5 to 0.9 over the three that the victim finds most likely.
    * `mixup`: each image is mixed with another of its batch, by a share from Beta(mixup, mixup);
      0.2 to 0.4 is usual, 0 mixes nothing.
    * `noise`: the deviation of what is added to images in [0, 1]; 0.1 to 0.25 moves boundaries.
    * `sam`: how far away, in the weights' Euclidean norm, the gradient is taken where the loss is
      worst; 0.05 to 0.1 is usual, and takes two passes for one.
    """

    data: str = "digits"
    epochs: Positive = 10
    lr: NotNegative = 1e-4
    batch: Positive = 32
    schedule: training.Schedule = "constant"
    warmup: PartialShare = 0.0
    weight_decay: NotNegative = 0.01
    dropout: PartialShare = 0.1
    mode: Literal["all", "last", "retrain_all", "retrain_last", "lora"] = "retrain_all"
    layer_decay: PositiveShare = 1.0
    rank: Positive = 8
    lora_mlp: bool = False
    precision: training.Precision = "float32"
    label_smoothing: Later[PartialShare] = 0.0
    mixup: Later[NotNegative] = 0.0
    noise: Later[NotNegative] = 0.0
    sam: Later[NotNegative] = 0.0

    offers: ClassVar[Access] = Access.ENCODER  # the head answers in the thief's classes
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"
    labelled: ClassVar[bool] = True

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the fine-tuned copy with its head; notes say the last epoch's loss."""
        images, labels = ctx.images, ctx.images.labels
        if labels is None:
            raise UserError(
                f"finetune.classify: expected labelled images, got '{self.data}' without labels; "
                "give `data` a data set with classes"
            )
        self._refuse_unseen()
        # The head is drawn before anything else, needed or not: a twin, with the same seed, gets
        # the same one, and the same batches.
        model = with_head(victim, Head(images.classes, self.dropout), ctx.rng)
        if self.mode in ("all", "last") and _classes(victim) == images.classes:
            model = clone(victim)
        model = model.to(ctx.device)
        adapted = _adapt(model, self.rank, self.lora_mlp, ctx.rng) if self.mode == "lora" else []
        answer, parameters = self._trained(model, images, ctx)

        def plain(chosen: Tensor, mixed: Mixed | None) -> Tensor:
            found = answer(chosen, mixed)  # (b, k)

            def apart(of: Tensor) -> Tensor:
                wanted = sent(labels[of], ctx.device)
                return F.cross_entropy(found, wanted, label_smoothing=self.label_smoothing)

            if mixed is None:
                return apart(chosen)
            share, partners = mixed
            return share * apart(chosen) + (1 - share) * apart(chosen[partners])

        def loss_of(chosen: Tensor) -> Tensor:
            mixed = mixing(len(chosen), self.mixup, ctx.rng) if self.mixup else None
            if not self.sam:
                return plain(chosen, mixed)
            return _worst_nearby(model, lambda: plain(chosen, mixed), self.sam)

        # Dropout sits in the head alone; a backbone's batch norms keep the victim's statistics.
        if model.head is not None:
            model.head.train()
        fit = training.fit(parameters, loss_of, len(images), self, ctx.rng)
        for layer, name in adapted:
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
        model.notes = {"final_loss": fit.losses[-1], "steps": fit.steps}
        return model.eval().requires_grad_(True)

    def passes(self, sizes: Sizes) -> Passes:
        """Count every epoch there and back, or one look at each image below a frozen backbone."""
        if self.mode in ("last", "retrain_last"):
            return Passes(sizes.images)
        seen = self.epochs * sizes.images * (2 if self.sam else 1)
        return Passes(seen, seen, frozen=self.mode == "lora")

    def _refuse_unseen(self) -> None:
        """Refuse to change images that are looked at once, below a frozen backbone."""
        if self.mode in ("last", "retrain_last") and (self.mixup or self.noise):
            raise UserError(
                f"finetune.classify: mode: expected all, retrain_all or lora with mixup or noise, "
                f"got {self.mode}, where images are looked at once; leave mixup and noise out"
            )

    def _trained(
        self, model: VisionModel, images: Images, ctx: Context
    ) -> tuple[Callable[[Tensor, Mixed | None], Tensor], training.Parameters]:
        """Return what maps indices (b,) to logits (b, k), and the parameters to train."""
        if self.mode in ("last", "retrain_last"):
            read, head = _parts(model)
            known = _computed(lambda x: read(model.forward_features(x)), images, ctx.device)
            return lambda chosen, _: head(known[sent(chosen, ctx.device)]), head.parameters()
        parameters: training.Parameters = [p for p in model.parameters() if p.requires_grad]
        if self.layer_decay < 1:
            parameters = training.by_depth(model, self.lr, self.layer_decay)

        def answer(chosen: Tensor, mixed: Mixed | None) -> Tensor:
            seen = images.batch(chosen, ctx.device)
            if mixed is not None:
                share, partners = mixed
                seen = torch.lerp(seen[sent(partners, ctx.device)], seen, share)
            return model.logits(noisy(seen, self.noise, ctx.rng) if self.noise else seen)

        return answer, parameters


Mixed = tuple[float, Tensor]
"""The share of an image in its mixture, and its partner in the batch, by image (b,)."""


class _Loss(nn.Module):
    """A loss as a module, so that PyTorch can put other weights into the model it is of."""

    def __init__(self, model: nn.Module, loss: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self) -> Tensor:
        """Return the loss."""
        return self._loss()


def _worst_nearby(model: nn.Module, loss: Callable[[], Tensor], radius: float) -> Tensor:
    """Return the loss at the weights within `radius` where it is worst, to first order.

    Its gradient is taken as that of the weights themselves: how far the worst ones are moves with
    them. Where memory is short each part of a batch has its own.
    """
    whole = _Loss(model, loss)
    learnt = {name: p for name, p in whole.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(loss(), list(learnt.values()), allow_unused=True)
    used = {n: (p, g) for (n, p), g in zip(learnt.items(), slopes, strict=True) if g is not None}
    length = torch.stack([g.norm() for _, g in used.values()]).norm().clamp_min(1e-12)
    moved = {name: p + radius / length * g for name, (p, g) in used.items()}
    return functional_call(whole, moved, ())  # type: ignore[no-any-return]


def _classes(model: VisionModel) -> int:
    """Count the classes that a model's one head tells apart: 0 where it does not end in a layer."""
    head = model.architecture.head
    if isinstance(head, Head):
        return head.classes
    last = _parts(model)[1] if head == "own" else None
    return last.out_features if isinstance(last, nn.Linear) else 0


def _parts(model: VisionModel) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """Return what a model pools its final tokens with, and the head that reads the result."""
    if model.head is not None:
        return model.pooled, model.head
    kept = model.trunk.get_classifier()
    assert kept is not None, "whoever asks made sure that there is a head"
    return model.embedding, kept


def _computed(ask: Callable[[Tensor], Tensor], images: Images, device: torch.device) -> Tensor:
    """Compute once what a frozen backbone says of every image: (n, d)."""
    with torch.no_grad():
        parts = in_batches(len(images), BATCH, lambda part: ask(images.batch(part, device)))
        return torch.cat(list(parts))


class LowRank(nn.Module):
    """Add a learnt update of rank r to a weight (d', d), at first none."""

    def __init__(self, weight: Tensor, rank: int, rng: torch.Generator) -> None:
        super().__init__()
        bound = weight.shape[1] ** -0.5  # the authors' code draws as nn.Linear does
        down = torch.empty(rank, weight.shape[1]).uniform_(-bound, bound, generator=rng)
        self.down = nn.Parameter(down.to(weight))  # (r, d)
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))  # (d', r)

    def forward(self, weight: Tensor) -> Tensor:
        """Map a weight (d', d) to the one in use."""
        return weight + LORA_SCALE * self.up @ self.down


def _adapt(
    model: VisionModel, rank: int, mlp: bool, rng: torch.Generator
) -> list[tuple[nn.Module, str]]:
    """Freeze the backbone and put a low-rank update on the matrices of its blocks."""
    model.trunk.requires_grad_(False)
    blocks: list[Any] = list(model.blocks)
    parts = [part for b in blocks for part in ((b.attn, b.mlp) if mlp else (b.attn,))]
    found = [
        (layer, name, weight)
        for part in parts
        for layer in part.modules()
        for name, weight in layer.named_parameters(recurse=False)
        if weight.ndim == 2  # open_clip's attention packs its matrices in no layer of their own
    ]
    for layer, name, weight in found:
        parametrize.register_parametrization(layer, name, LowRank(weight, rank, rng))
    return [(layer, name) for layer, name, _ in found]
