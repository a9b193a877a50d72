"""Extract a stolen model by its answers alone, as published attacks do: named settings, and labels.

These thieves hold no weights: each image that the victim answers for is a query, and is counted.
The three on encoders are `distill.features` under their papers' settings. Their optimisers are SGD
and Adam; here as elsewhere in the bench it is AdamW, which is Adam where nothing decays.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from attacks.distill import DistilFeatures, asked_about, classifier_of, student_of, taught
from attacks.matching import answers
from bench import training
from bench.data import sent
from bench.models import Head, VisionModel
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


@dataclass(frozen=True, slots=True)
class _Preset(ABC):
    """What a paper's attack is: `distill.features` under settings of its own."""

    offers: ClassVar[Access] = Access.ENCODER
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "extraction"

    def looks_at(self, images: int) -> int:
        """Count the images that the victim is asked about."""
        return self._in_words().looks_at(images)

    def victim_queries(self, images: int) -> int:
        """Count the victim's answers, of every view one."""
        return self._in_words().victim_queries(images)

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, and every epoch of the student there and back."""
        return self._in_words().passes(sizes)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the student, which has no head; notes say the last epoch's loss."""
        made = self._in_words().run(victim, ctx)
        made.notes["queries"] = self.victim_queries(len(ctx.images))
        return made

    @abstractmethod
    def _in_words(self) -> DistilFeatures:
        """Return the same attack in the words of `distill.features`."""

    def _settings(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@attack("distill.stolen_encoder")
@dataclass(frozen=True, slots=True)
class StolenEncoder(_Preset):
    """Match the direction of the victim's embedding, from each image and from a crop of it.

    The victim is asked once for each image: the student's crops have the same target.

    Source: Y. Liu, J. Jia, H. Liu, N. Z. Gong, "StolenEncoder: stealing pre-trained encoders in
    self-supervised learning", arXiv:2201.05889, section 4. Its distance is the squared one of unit
    vectors: twice 1 - cosine.

    * `data`: the data set whose images the thief asks about; none: the probe's.
    * `queries`: how many answers he asks for, at most; none: one for every image. The authors' sets
      have 50,000 to 105,000.
    * `weight`: of the crops beside the images (lambda): 20 for CLIP's encoder.
    * `student`, `student_size`: as in `distill.features`.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`: the learning rate and how it goes on.
    * `weight_decay`: AdamW's.
    * `precision`: of the student's passes.
    """

    data: str | None = None
    queries: Positive | None = None
    weight: PositiveFloat = 20.0
    student: str | None = None
    student_size: Positive | None = None
    epochs: Positive = 100
    batch: Positive = 64
    lr: NotNegative = 1e-3
    schedule: training.Schedule = "constant"
    weight_decay: NotNegative = 5e-4
    precision: training.Precision = "float32"

    def _in_words(self) -> DistilFeatures:
        own = self._settings()
        weight = own.pop("weight")
        return DistilFeatures(
            loss="cosine", augment="beside", augment_weight=weight, warmup=0.0, **own
        )


@attack("distill.cont_steal")
@dataclass(frozen=True, slots=True)
class ContSteal(_Preset):
    """Have a student's crops find the victim's crops of the same image among those of a batch.

    Source: Z. Sha, X. He, N. Yu, M. Backes, Y. Zhang, "Can't steal? Cont-Steal! Contrastive
    stealing attacks against image encoders", arXiv:2201.07513, section 4. Departure: the victim
    answers for two crops of each image, once, where the authors ask about a new one in every epoch.

    * `data`: the data set whose images the thief asks about; none: the probe's.
    * `queries`: how many answers he asks for, at most; none: one for every view of every image.
    * `views`: crops of each image that the victim is asked about.
    * `temperature`: of the scores.
    * `student`, `student_size`: as in `distill.features`.
    * `epochs`, `batch`: passes over the thief's images, and images in a step; a large model is
      stolen with 256.
    * `lr`, `schedule`: the learning rate and how it goes on.
    * `weight_decay`: AdamW's.
    * `precision`: of the student's passes.
    """

    data: str | None = None
    queries: Positive | None = None
    views: Positive = 2
    temperature: PositiveFloat = 0.5
    student: str | None = None
    student_size: Positive | None = None
    epochs: Positive = 100
    batch: Positive = 32
    lr: NotNegative = 3e-4
    schedule: training.Schedule = "constant"
    weight_decay: NotNegative = 0.0
    precision: training.Precision = "float32"

    def _in_words(self) -> DistilFeatures:
        return DistilFeatures(loss="infonce", augment="student", warmup=0.0, **self._settings())


@attack("distill.rda")
@dataclass(frozen=True, slots=True)
class Rda(_Preset):
    """Have a student's crops find the victim's prototype of their image, and lie as close to it.

    A prototype is the mean direction of the victim's embeddings of a few crops, asked for once.

    Source: S. Wu et al., "RDA: refine, discriminate and align: stealing encoders via sample-wise
    prototypes and multi-relational extraction", arXiv:2312.00855; what relates a crop to its
    prototype is written as in the authors' code.

    * `data`: the data set whose images the thief asks about; none: the probe's.
    * `queries`: how many answers he asks for, at most; none: one for every view of every image. The
      authors have 2,500 to 60,000 images.
    * `views`: crops of each image that the victim is asked about.
    * `temperature`: of the scores.
    * `student`, `student_size`: as in `distill.features`.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`: the learning rate and how it goes on.
    * `weight_decay`: AdamW's.
    * `precision`: of the student's passes.
    """

    data: str | None = None
    queries: Positive | None = None
    views: Positive = 5
    temperature: PositiveFloat = 0.07
    student: str | None = None
    student_size: Positive | None = None
    epochs: Positive = 100
    batch: Positive = 100
    lr: NotNegative = 1e-3
    schedule: training.Schedule = "constant"
    weight_decay: NotNegative = 0.0
    precision: training.Precision = "float32"

    def _in_words(self) -> DistilFeatures:
        return DistilFeatures(loss="relational", augment="student", warmup=0.0, **self._settings())


@attack("distill.labels")
@dataclass(frozen=True, slots=True)
class DistilLabels:
    """Train a student on the class that the victim gives to each image, and nothing more.

    Source: T. Orekondy, B. Schiele, M. Fritz, "Knockoff nets: stealing functionality of black-box
    models", arXiv:1812.02766, with the random strategy and answers cut down to the first class. As
    an attack on ownership, for 60 epochs, in N. Lukas et al., "SoK: how robust is image
    classification deep neural network watermarking?", arXiv:2108.04974.

    * `data`: the data set whose images the thief asks about; none: the probe's.
    * `queries`: how many answers he asks for, at most; none: one for every image.
    * `student`, `student_size`: as in `distill.features`.
    * `dropout`: of the student's head.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises.
    * `weight_decay`: AdamW's.
    * `precision`: of the student's passes.
    """

    data: str | None = None
    queries: Positive | None = None
    student: str | None = None
    student_size: Positive | None = None
    dropout: PartialShare = 0.0
    epochs: Positive = 60
    lr: NotNegative = 1e-3
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.05
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "extraction"
    uses_head: ClassVar[bool] = True

    def looks_at(self, images: int) -> int:
        """Count the images that the victim is asked about."""
        return images if self.queries is None else min(images, self.queries)

    def victim_queries(self, images: int) -> int:
        """Count the victim's answers, one an image."""
        return self.looks_at(images)

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, and every epoch of the student there and back."""
        asked = self.looks_at(sizes.images)
        return Passes(asked * (1 + self.epochs), asked * self.epochs)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the student with its head; notes say the last epoch's loss, and the queries.

        Raises:
            Incompatible: the victim has no classifier.

        """
        classifier_of(victim, "distill.labels")
        head = Head(victim.classes, self.dropout)
        student = student_of(victim, head, ctx, self.student, self.student_size)
        images = asked_about(ctx, self.queries, views=0)
        labels = answers(victim, images, _first_class, ctx.device)  # (n,)

        def loss_of(chosen: Tensor) -> Tensor:
            found = student.logits(images.batch(chosen, ctx.device))  # (b, k)
            return F.cross_entropy(found, sent(labels[chosen], ctx.device))

        made = taught(student, [*student.parameters()], loss_of, len(images), self, ctx)
        made.notes["queries"] = len(images)
        return made


def _first_class(model: VisionModel, images: Tensor) -> Tensor:
    return model.logits(images).argmax(1)
