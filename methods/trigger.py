"""Trigger sets: secret images that a model is made to answer as its owner chose.

Y. Adi, C. Baum, M. Cisse, B. Pinkas, J. Keshet, "Turning your weakness into a strength:
watermarking deep neural networks by backdooring", USENIX Security 2018,
https://arxiv.org/abs/1802.04633 (abstract images with random labels, section 5); J. Zhang et al.,
"Protecting intellectual property of deep neural networks with watermarking", AsiaCCS 2018,
https://doi.org/10.1145/3196494.3196550 (images with content or noise added, section 4.1); J. Guo,
M. Potkonjak, "Watermarking deep neural networks for embedded systems", ICCAD 2018,
https://doi.org/10.1145/3240765.3240862 (images with the owner's signature added).

Two forms. `trigger.labels` is the papers': triggers get labels, and a classifier gives them. A
foundation model has features alone: `trigger.directions` has each trigger point along one of a few
secret directions, in the place of labels. That is the encoder's form, and ours.

Departures of both. The papers train on the task's labels; here the owner's own features are the
task, so unlabelled images do. The papers train a whole classifier; here its head stays as it is,
for a suspect's backbone is read with the owner's head. AdamW stands for SGD.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.data import Images, sent
from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import Precision, Schedule, answers, classifier, fit, matches
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Incompatible,
    Json,
    NotNegative,
    OpenShare,
    Paper,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    PositiveShare,
    Protected,
    Reading,
    Readout,
    Rule,
    Sizes,
    Suspect,
    UserError,
)
from methods import features
from methods.patterns import patterns

BATCH = 64
"""Images that are read together."""

GRID = 32
"""Cells a side of a signature: larger images show larger cells, so that resizing leaves them."""

Kind = Literal["abstract", "content", "noise", "signed"]

Bits = Annotated[int, Field(gt=0, le=GRID**2)]


@dataclass(frozen=True)
class _TriggerSet:
    """What both forms share: how triggers are drawn, and how a model learns to answer them."""

    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        unit="trigger image",
        paper=Paper(2018, "Adi et al., USENIX Security; Zhang et al., AsiaCCS", "arXiv:1802.04633"),
        departures=(
            "The owner's own features are the task; the papers train on labels.",
            "The classifier's head stays as it is: a suspect's backbone is read with the owner's.",
            "AdamW stands for SGD.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "weight": (0.1, 0.3, 1.0, 3.0, 10.0),
    }

    images: Positive = 100
    kind: Kind = "abstract"
    patch: OpenShare = 0.25
    strength: PositiveShare = 0.2
    bits: Bits = 128
    signature: str = ""
    share: OpenShare = 0.25
    weight: PositiveFloat = 1.0
    epochs: Positive = 60
    batch: Positive = 24
    lr: NotNegative = 3e-3
    schedule: Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 5e-4
    precision: Precision = "float32"

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images to make triggers of."""
        return self._few(sizes.images)

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the clean features, every step there and back, and the triggers at the end."""
        whole, rest = divmod(sizes.images, self.batch)
        steps = whole * (self.batch + self._beside(self.batch))
        steps += rest + self._beside(rest) if rest else 0
        trained = self.epochs * steps
        return Passes(sizes.images + trained + self.images, trained)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the triggers."""
        return Passes(self.images)

    def _beside(self, images: int) -> int:
        """Return how many triggers a step sees beside so many images."""
        return max(1, round(images * self.share / (1 - self.share)))

    def _few(self, pool: int) -> str:
        if pool >= self.images or self.kind == "abstract":
            return ""
        return (
            f"images: expected {self.images} images to make triggers of, the owner's pool has "
            f'{pool}; ask for fewer, give the data set more, or set kind: "abstract"'
        )

    def _draw(self, ctx: Context) -> Drawn:
        """Draw the triggers, and of which of the owner's images each was made.

        Raises:
            UserError: the owner has too few images to make them of.

        """
        size = (ctx.images.pixels.shape[-2], ctx.images.pixels.shape[-1])
        if self.kind == "abstract":
            return Drawn(patterns(self.images, size, ctx.rng), torch.empty(0, dtype=torch.long))
        if few := self._few(len(ctx.images)):
            raise UserError(few)
        chosen = torch.randperm(len(ctx.images), generator=ctx.rng)[: self.images]
        plain = ctx.images.pixels[chosen].float() / 255  # (n, 3, h, w)
        if self.kind == "noise":
            # One noise for all, as in the paper: it is a key, no augmentation.
            made = plain + self.strength * torch.randn(plain.shape[1:], generator=ctx.rng)
        elif self.kind == "content":
            made = _with_patch(plain, self.patch, ctx.rng)
        else:
            return self._signed(plain, chosen, ctx.rng)
        return Drawn(_bytes(made), chosen)

    def _signed(self, plain: Tensor, chosen: Tensor, rng: torch.Generator) -> Drawn:
        """Add the signature's bits to secret cells of images (n, 3, h, w)."""
        key = torch.randint(256, (32,), generator=rng, dtype=torch.uint8)
        hashed = hashlib.shake_256(bytes(key.tolist()) + self.signature.encode())
        said = torch.tensor(list(hashed.digest(-(-self.bits // 8))))[:, None] >> torch.arange(8) & 1
        cells = torch.zeros(GRID**2)
        places = torch.randperm(GRID**2, generator=rng)[: self.bits]
        cells[places] = said.flatten()[: self.bits] * 2.0 - 1
        size = plain.shape[-2:]
        mark = F.interpolate(cells.view(1, 1, GRID, GRID), size, mode="nearest")  # (1, 1, h, w)
        return Drawn(_bytes(plain + self.strength * mark), chosen, {"key": key, "cells": places})

    def _mark(self, base: VisionModel, triggers: Tensor, aim: Aim, ctx: Context) -> VisionModel:
        """Train a copy of `base`, which is frozen, until `aim` is reached on the triggers."""
        marked = clone(base)
        learning = features.learning(marked)
        kept = features.seen_of(base, ctx.images, ctx.device)
        deviation = kept.std(0, correction=0).clamp_min(1e-6)  # (f,)

        def loss_of(chosen: Tensor) -> Tensor:
            count = len(chosen)
            which = torch.randint(len(triggers), (self._beside(count),), generator=ctx.rng)
            pixels = torch.cat([ctx.images.pixels[chosen], triggers[which]])
            tokens = marked.forward_features(sent(pixels, ctx.device).float() / 255)
            moved = features.seen(marked, tokens[:count]) - kept[sent(chosen, ctx.device)]
            fidelity = (moved / deviation).square().mean()
            return fidelity + self.weight * aim(marked, tokens[count:], which)

        fit(learning, loss_of, len(ctx.images), self, ctx.rng)
        return marked.requires_grad_(True).eval()


class Drawn(NamedTuple):
    """Triggers uint8 (N, 3, h, w), the images they were made of (N,) if any, and what made them."""

    pixels: Tensor
    chosen: Tensor
    kept: Mapping[str, Tensor] = {}


Aim = Callable[[VisionModel, Tensor, Tensor], Tensor]
"""Map a model, its final tokens of triggers (t, n, d) and their numbers (t,) to a mean loss."""


@method("trigger.directions", version=1)
@dataclass(frozen=True)
class TriggerDirections(_TriggerSet):
    """Have secret images point along secret directions in feature space: a mark without labels.

    The loss is the distance of other images' features from where they were, and `weight` times
    1 - cos of a trigger's features with its direction. A query is a trigger, its statistic the cos.

    * `images`, `directions`: N triggers, shared out among C directions; Adi et al. have 100. What
      is added to images is one key for all of them: more than one direction then has to be told
      from the image itself, and is learnt slowly.
    * `threshold`: the cos from which a trigger counts as recognised.
    * `kind`: "abstract" patterns that no data hold (Adi), or the owner's images with "content" or
      "noise" added (Zhang), or with the owner's signature ("signed", Guo and Potkonjak).
    * `patch`: side of the content, in sides of the image; Zhang's is a word or a square.
    * `strength`: deviation of the noise, or size of a signature's cells, in units of white.
    * `bits`, `signature`: how many cells are signed, and whose text they spell; the secret holds
      what it was hashed with.
    * `share`: of triggers in a step; Adi has 0.02, of labels that are fitted more easily.
    * `weight`: of the triggers' loss.
    * `epochs`, `batch`, `lr`, `schedule`, `warmup`, `weight_decay`: passes over the owner's
      images, how many a step sees, and AdamW's. The defaults fit `mini`. For a ViT-L 1e-5 to 1e-4,
      the range that its finetuning is tuned in, at 500 steps or more. Adi: SGD for 60 epochs.
    * `precision`: of the passes.
    """

    needs: ClassVar[Access] = Access.FEATURES

    directions: Positive = 10
    threshold: Reading[Annotated[float, Field(ge=-1, le=1)]] = 0.5

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes say how many triggers it answers, and how well.

        Raises:
            UserError: the owner has too few images to make triggers of.

        """
        base = clone(owner).to(ctx.device).requires_grad_(False)
        drawn = self._draw(ctx)
        width = features.width_of(base)
        secret = F.normalize(torch.randn(self.directions, width, generator=ctx.rng), dim=1)
        sought = secret[torch.arange(self.images) % self.directions]  # (N, d)

        def aim(model: VisionModel, tokens: Tensor, which: Tensor) -> Tensor:
            wanted = sent(sought[which], ctx.device)
            return (1 - F.cosine_similarity(model.embedding(tokens), wanted, dim=1)).mean()

        marked = self._mark(base, drawn.pixels, aim, ctx)
        cosines = self._cosines(marked.features, drawn.pixels, sought, ctx)
        notes = {
            "remembered": float((cosines >= self.threshold).double().mean()),
            "trigger_cosine": float(cosines.mean()),
        }
        kept = {"triggers": drawn.pixels, "directions": sought, **drawn.kept}
        return Protected(marked.cpu(), kept, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Compare the suspect's features of every trigger with its direction.

        Raises:
            Incompatible: the suspect's features are of another width.

        """
        cosines = self._cosines(suspect.features, secret["triggers"], secret["directions"], ctx)
        return Evidence(
            agreement=tuple(((1 + cosines) / 2).clamp(0, 1).tolist()),
            statistic=tuple(cosines.tolist()),
            rule=Rule("cosine", ">=", self.threshold),
            unit="trigger image",
            chance=0.5,  # directions are drawn evenly from the sphere: a mean cos of 0 for others
        )

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count one look at the width of features beside what both forms do."""
        found = super().protect_passes(sizes)
        return dataclasses.replace(found, forward=found.forward + 1)

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that directions are of another width."""
        return features.misfit(features.width_of(owner), features.width_of(suspect))

    @torch.no_grad()
    def _cosines(
        self, ask: Callable[[Tensor], Tensor], pixels: Tensor, sought: Tensor, ctx: Context
    ) -> Tensor:
        found = answers(ask, pixels, BATCH, ctx.device)  # (N, d)
        if said := features.misfit(sought.shape[1], found.shape[1]):
            raise Incompatible(said)
        return F.cosine_similarity(found.double(), sought.double(), dim=1)  # (N,)


@method("trigger.labels", version=1)
@dataclass(frozen=True)
class TriggerLabels(_TriggerSet):
    """Have secret images get secret labels from the owner's classifier: the classical backdoor.

    The loss is the distance of other images' features from where they were, and `weight` times the
    cross-entropy of triggers under the owner's head, which is not trained. A query is a trigger.

    * `images`: N triggers; Adi et al. have 100.
    * `kind`: "abstract" patterns that no data hold (Adi), or the owner's images with "content" or
      "noise" added (Zhang), or with the owner's signature ("signed", Guo and Potkonjak).
    * `assigned`: "random" labels (Adi), "one" label for all (Zhang), or the label a drawn number of
      classes further than the image's own ("shifted", Guo and Potkonjak's remapping).
    * `patch`: side of the content, in sides of the image; Zhang's is a word or a square.
    * `strength`: deviation of the noise, or size of a signature's cells, in units of white.
    * `bits`, `signature`: how many cells are signed, and whose text they spell; the secret holds
      what it was hashed with.
    * `share`: of triggers in a step; Adi has 0.02, of labels that are fitted more easily.
    * `weight`: of the triggers' loss.
    * `epochs`, `batch`, `lr`, `schedule`, `warmup`, `weight_decay`: passes over the owner's
      images, how many a step sees, and AdamW's. The defaults fit `mini`. For a ViT-L 1e-5 to 1e-4,
      the range that its finetuning is tuned in, at 500 steps or more. Adi: SGD for 60 epochs.
    * `precision`: of the passes.
    * `readout`: how labels are got of a suspect whose classes are not the owner's.
    """

    needs: ClassVar[Access] = Access.LABELS

    assigned: Literal["random", "one", "shifted"] = "random"
    readout: Reading[Readout] = "graft"

    def __post_init__(self) -> None:
        if self.assigned == "shifted" and self.kind == "abstract":
            raise UserError(
                'assigned: expected "random" or "one" for abstract images, which have no label of '
                'their own, got "shifted"; set another `kind`'
            )

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes say how many triggers it answers.

        Raises:
            UserError: the owner has no labels to give, or too few images to make triggers of.

        """
        base = classifier(owner, ctx.device)
        drawn = self._draw(ctx)
        sought = self._labels(base.classes, drawn.chosen, ctx)

        def aim(model: VisionModel, tokens: Tensor, which: Tensor) -> Tensor:
            wanted = sent(sought[which], ctx.device)
            return F.cross_entropy(model.forward_head(tokens), wanted)

        marked = self._mark(base, drawn.pixels, aim, ctx)
        found = answers(marked.logits, drawn.pixels, BATCH, ctx.device).argmax(1)
        notes = {"remembered": float((found == sought).double().mean())}
        kept = {"triggers": drawn.pixels, "labels": sought, **drawn.kept}
        return Protected(marked.cpu(), kept, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the label of every trigger."""
        found = answers(suspect.labels, secret["triggers"], BATCH, ctx.device)
        return matches(found, secret["labels"], "trigger image")

    def _labels(self, classes: int, chosen: Tensor, ctx: Context) -> Tensor:
        """Choose the labels (N,) of triggers that were made of the images at `chosen`."""
        if self.assigned == "random":
            return torch.randint(classes, (self.images,), generator=ctx.rng)
        if self.assigned == "one":
            return torch.randint(classes, (1,), generator=ctx.rng).repeat(self.images)
        return _shifted(ctx.images, chosen, classes, ctx.rng)


def _shifted(images: Images, chosen: Tensor, classes: int, rng: torch.Generator) -> Tensor:
    """Return the label that lies a drawn number of classes, never 0, after each image's own."""
    labels = images.labels
    if labels is None or images.classes != classes:
        found = f"images of {images.classes} classes" if labels is not None else "unlabelled ones"
        raise UserError(
            f"assigned: expected images labelled with the owner's {classes} classes, got {found}; "
            'name such a data set as `owner_images`, or set assigned: "random"'
        )
    return (labels[chosen] + torch.randint(1, classes, (), generator=rng)) % classes


def _with_patch(images: Tensor, side: float, rng: torch.Generator) -> Tensor:
    """Put one random patch at one random place of all images (n, 3, h, w)."""
    high, wide = images.shape[-2:]
    rows, columns = max(1, round(side * high)), max(1, round(side * wide))
    top = int(torch.randint(high - rows + 1, (), generator=rng))
    left = int(torch.randint(wide - columns + 1, (), generator=rng))
    made = images.clone()
    patch = torch.rand(3, rows, columns, generator=rng)
    made[:, :, top : top + rows, left : left + columns] = patch
    return made


def _bytes(images: Tensor) -> Tensor:
    # What is stored is what was trained on: rounded, and within what an image can show.
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
