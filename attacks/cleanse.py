"""Clean a stolen model of what rare inputs set off, with a few of the thief's labelled images.

Two are made against trigger sets and backdoors, one against all that is fitted closely. As
elsewhere in the bench the optimiser is AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.inputs import erased
from bench import training
from bench.data import Images, sent
from bench.models import Head, VisionModel, clone, with_head
from bench.registry import attack
from bench.training import in_batches
from bench.types import (
    Access,
    Change,
    Context,
    Incompatible,
    NotNegative,
    OpenShare,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    PositiveShare,
    Sizes,
    UserError,
)

BATCH = 64
"""Images per pass where nothing is learnt; no result depends on it."""


@attack("finetune.regularise")
@dataclass(frozen=True, slots=True)
class Regularise:
    """Fine-tune under a heavy penalty on weights or features, then without.

    Source: N. Lukas et al., "SoK: how robust is image classification deep neural network
    watermarking?", arXiv:2108.04974 (regularization, feature regularization).

    * `data`: the data set that the thief trains on; the suspect keeps its fresh head.
    * `decay`: weight decay of the first epochs. There it is 0.01 to 0.1, with SGD at 0.01 to 0.1.
      AdamW takes lr * decay of each weight in a step, so at smaller rates it is larger.
    * `feature_decay`: of the mean square of final tokens, in the first epochs: 0.1 there, or none.
    * `decay_epochs`, `epochs`: how many are penalised (3 or 5 there), and how many follow.
    * `batch`: images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate of either part, how it goes on, and the
      share of its steps in which it rises.
    * `weight_decay`: AdamW's, of the epochs that follow.
    * `dropout`: of the head.
    * `precision`: of the passes.
    """

    data: str = "digits"
    decay: NotNegative = 10.0
    feature_decay: NotNegative = 0.0
    decay_epochs: Positive = 3
    epochs: Positive = 5
    lr: NotNegative = 1e-3
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.0
    weight_decay: NotNegative = 0.01
    dropout: PartialShare = 0.1
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ENCODER
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"
    labelled: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count every epoch of both parts there and back."""
        seen = (self.decay_epochs + self.epochs) * sizes.images
        return Passes(seen, seen)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with its head; notes say the last loss of either part."""
        images, labels = ctx.images, _labels(ctx.images, "finetune.regularise", self.data)
        model = with_head(victim, Head(images.classes, self.dropout), ctx.rng).to(ctx.device)
        assert model.head is not None
        model.head.train()
        fits = []
        for epochs, decay, penalty in (
            (self.decay_epochs, self.decay, self.feature_decay),
            (self.epochs, self.weight_decay, 0.0),
        ):

            def loss_of(chosen: Tensor, penalty: float = penalty) -> Tensor:
                tokens = model.forward_features(images.batch(chosen, ctx.device))
                wanted = sent(labels[chosen], ctx.device)
                loss = F.cross_entropy(model.forward_head(tokens), wanted)
                return loss + penalty * tokens.square().mean() if penalty else loss

            how = training.Training(
                *(epochs, self.batch, self.lr, self.schedule, self.warmup, decay, self.precision)
            )
            fits.append(training.fit(model.parameters(), loss_of, len(images), how, ctx.rng))
        first, last = fits
        model.notes = {
            **{"penalised_loss": first.losses[-1], "final_loss": last.losses[-1]},
            **{"steps": first.steps + last.steps},
        }
        return model.eval()


def _labels(images: Images, who: str, data: str) -> Tensor:
    if images.labels is None:
        raise UserError(
            f"{who}: expected labelled images, got '{data}' without labels; "
            "give `data` a data set with classes"
        )
    return images.labels


def _some(share: float, images: int) -> int:
    return max(1, round(share * images))


@attack("finetune.wild")
@dataclass(frozen=True, slots=True)
class Wild:
    """Fine-tune on a few images, clean and with a part erased, and align what both look like.

    Source: X. Liu, F. Li, B. Wen, Q. Li, "Removing backdoor-based watermarks in neural networks
    with limited data" (WILD), arXiv:2008.00407. How features are aligned is open to us: here by
    mean and deviation of each channel of [CLS; mean patch] over the batch.

    * `data`: the data set that the thief trains on; the suspect keeps its fresh head.
    * `share`: of the thief's images, 0.1 to 0.3.
    * `least`, `most`: of an image's area that is erased.
    * `weight`: of the alignment.
    * `epochs`, `batch`: passes over these images, and images in a step; each is seen twice.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises.
    * `weight_decay`: AdamW's.
    * `dropout`: of the head.
    * `precision`: of the passes.
    """

    data: str = "digits"
    share: PositiveShare = 0.2
    least: OpenShare = 0.02
    most: PositiveShare = 0.4
    weight: NotNegative = 1.0
    epochs: Positive = 15
    lr: NotNegative = 1e-3
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.0
    weight_decay: NotNegative = 0.01
    dropout: PartialShare = 0.1
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ENCODER
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"
    labelled: ClassVar[bool] = True
    adaptive: ClassVar[str] = "that there may be triggers"

    def looks_at(self, images: int) -> int:
        """Count the share that it trains on."""
        return _some(self.share, images)

    def passes(self, sizes: Sizes) -> Passes:
        """Count every epoch there and back, of each image twice."""
        seen = 2 * self.epochs * self.looks_at(sizes.images)
        return Passes(seen, seen)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with its head; notes say the last epoch's loss."""
        _labels(ctx.images, "finetune.wild", self.data)
        model = with_head(victim, Head(ctx.images.classes, self.dropout), ctx.rng).to(ctx.device)
        assert model.head is not None
        model.head.train()
        chosen = torch.randperm(len(ctx.images), generator=ctx.rng)
        images = ctx.images.subset(chosen[: self.looks_at(len(ctx.images))].tolist())
        labels = _labels(images, "finetune.wild", self.data)

        def loss_of(chosen: Tensor) -> Tensor:
            clean = images.batch(chosen, ctx.device)
            both = torch.cat([clean, erased(clean, ctx.rng, self.least, self.most)])
            tokens = model.forward_features(both)  # (2 b, t, d)
            wanted = sent(labels[chosen], ctx.device).repeat(2)
            # Twice the mean over both is the sum of the two means.
            told = 2 * F.cross_entropy(model.forward_head(tokens), wanted)
            one, other = model.pooled(tokens).chunk(2)  # (b, 2 d) each
            return told + self.weight * _apart(one, other)

        fit = training.fit(model.parameters(), loss_of, len(images), self, ctx.rng)
        model.notes = {"final_loss": fit.losses[-1], "steps": fit.steps, "images": len(images)}
        return model.eval()


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Return how far mean and deviation of features (b, d) are apart, squared, by channel."""
    means = F.mse_loss(one.mean(0), other.mean(0))
    # A square root has no slope at 0, where a batch is one image.
    first, second = ((each.var(0, correction=0) + 1e-6).sqrt() for each in (one, other))
    return means + F.mse_loss(first, second)


@attack("finetune.wrk")
@dataclass(frozen=True, slots=True)
class Wrk:
    """Move boundaries near clean images by wrong labels there, and turn a fresh head from the old.

    A few images take one signed step towards a random class, and get the label of another random
    class. With some clean ones they train the model and a fresh head, which is kept from pointing
    where the victim's points.

    Source: Y. Xiao et al., "Class-feature watermark: a resilient black-box watermark against model
    extraction attacks" (WRK), arXiv:2511.07947; sizes are those of its code, which trains with SGD
    at 1e-4 to 1e-3.

    * `data`: the data set that the thief trains on, with as many classes as the victim.
    * `perturbed`: images that take the step.
    * `step`: its length in normalised pixels, 1 to 3; pixels stay in [0, 1].
    * `share`: of the thief's images that are trained on clean.
    * `alpha`: of the sum of products of new and old weights of the head, 0.01 to 0.1.
    * `epochs`, `batch`: passes over all these, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises.
    * `weight_decay`: AdamW's.
    * `precision`: of the passes.
    """

    data: str = "digits"
    perturbed: Positive = 100
    step: PositiveFloat = 2.0
    share: PositiveShare = 0.05
    alpha: NotNegative = 0.05
    epochs: Positive = 10
    lr: NotNegative = 1e-3
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.0
    weight_decay: NotNegative = 0.01
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ENCODER
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "finetuning"
    labelled: ClassVar[bool] = True
    uses_head: ClassVar[bool] = True
    adaptive: ClassVar[str] = "that there may be triggers"

    def looks_at(self, images: int) -> int:
        """Count the images that it draws: clean ones and those that take the step may be one."""
        return max(_some(self.share, images), min(self.perturbed, images))

    def passes(self, sizes: Sizes) -> Passes:
        """Count the step there and back, and every epoch of clean and perturbed images."""
        taken = min(self.perturbed, sizes.images)
        seen = taken + self.epochs * (taken + _some(self.share, sizes.images))
        return Passes(seen, seen)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the copy with its fresh head; notes say the last epoch's loss.

        Raises:
            Incompatible: the victim has no classifier that ends in one linear layer.
            UserError: it tells another number of classes apart than the thief's images.

        """
        labels = _labels(ctx.images, "finetune.wrk", self.data)
        old = _last(victim).weight.detach().clone().to(ctx.device)  # (k, d)
        if len(old) != ctx.images.classes:
            raise UserError(
                f"finetune.wrk: data: expected images of {len(old)} classes like the victim's, "
                f"got '{self.data}' of {ctx.images.classes}"
            )
        model = _with_fresh_head(victim, ctx.rng).to(ctx.device)
        chosen = torch.randperm(len(ctx.images), generator=ctx.rng)
        clean = chosen[: _some(self.share, len(chosen))]
        moved, wrong = self._moved(victim, chosen[: self.perturbed], labels, ctx)
        pixels = torch.cat([ctx.images.pixels[clean], moved])  # (n, 3, h, w)
        wanted = torch.cat([labels[clean], wrong])
        images = Images(pixels, wanted, ctx.images.classes, ("",) * len(pixels))
        layer = _last(model)

        def loss_of(chosen: Tensor) -> Tensor:
            found = model.logits(images.batch(chosen, ctx.device))
            told = F.cross_entropy(found, sent(wanted[chosen], ctx.device))
            return told + self.alpha * (layer.weight * old).sum()

        fit = training.fit(model.parameters(), loss_of, len(images), self, ctx.rng)
        model.notes = {"final_loss": fit.losses[-1], "steps": fit.steps, "images": len(images)}
        return model.eval()

    def _moved(
        self, victim: VisionModel, chosen: Tensor, labels: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor]:
        """Return images as bytes (n, 3, h, w), a step towards one class, and another class (n,)."""
        teacher, classes = clone(victim).to(ctx.device).requires_grad_(False), ctx.images.classes
        # Two classes that are neither the image's own nor one another, where there are three.
        first = torch.randint(1, max(classes, 2), (len(chosen),), generator=ctx.rng)
        then = torch.randint(1, max(classes - 1, 2), (len(chosen),), generator=ctx.rng)
        second = torch.where(then < first, then, then + 1) if classes > 2 else first
        towards = (labels[chosen] + first) % classes

        def step(part: slice) -> Tensor:
            images = ctx.images.batch(chosen[part], ctx.device).requires_grad_(True)
            found = teacher.logits(images)
            aim = F.cross_entropy(found, sent(towards[part], ctx.device), reduction="sum")
            (slope,) = torch.autograd.grad(aim, images)
            stepped = images.detach() - self.step * teacher.std * slope.sign()
            # Rounded to bytes, as images are: a step is some fifty times a rounding.
            return (stepped.clamp(0, 1) * 255).round().byte().cpu()

        moved = torch.cat(list(in_batches(len(chosen), BATCH, step)))
        return moved, (labels[chosen] + second) % classes


def _last(model: VisionModel) -> nn.Linear:
    """Return the last layer of a model's classifier."""
    if model.head is not None and isinstance(model.architecture.head, Head):
        found: object = model.head.linear
    else:
        found = model.trunk.get_classifier() if model.architecture.head == "own" else None
    if not isinstance(found, nn.Linear):
        raise Incompatible(
            "finetune.wrk: expected a victim whose classifier ends in one linear layer, got "
            f"{model.architecture.name}; put finetune.classify before it"
        )
    return found


def _with_fresh_head(victim: VisionModel, rng: torch.Generator) -> VisionModel:
    """Copy a model with its classifier drawn anew, as `with_head` draws one."""
    head = victim.architecture.head
    if isinstance(head, Head):
        return with_head(victim, head, rng)
    made = clone(victim)
    with torch.no_grad():
        layer = _last(made)
        drawn = torch.empty(layer.weight.shape).normal_(std=0.02, generator=rng)
        layer.weight.copy_(drawn)
        layer.bias.zero_()
    return made
