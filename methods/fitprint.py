"""FIT-Print: a fingerprint whose bits the owner chooses before it looks for the samples.

S. Shao et al., "FIT-Print: towards false-claim-resistant model ownership verification via targeted
fingerprint", 2025, https://arxiv.org/abs/2501.15509; here its bit-wise form, FIT-ModelDiff.

Target bits are drawn first, one for each pair of images. Then the second image of each pair is
moved until the owner spells them: the cosine distance of its answers to a pair lies above the mean
of all pairs for a 1, and below for a 0. A suspect is judged by how many bits it spells. To claim a
model falsely, an accuser has to make it spell bits that he named before.

Written from the abstract and second-hand descriptions: sizes and the margin are settings, and ours.
Departures: the paper's augmented copies are finetuned and pruned ones. Here they are pruned and
noised, which needs no training. In each step the mean is that of the step before, so that pairs
need not be in memory together.

Bits that were drawn fairly are coins to a model of which the samples tell nothing. They do tell of
models trained on the same data, for adversarial samples transfer. On `mini`, at the defaults, four
strangers spell 0.58 to 0.69 of the bits by scores, and 0.72 to 0.78 by features. So no chance is
declared, and strangers have to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import MicroBatches, answers, classifier, matches
from bench.types import (
    Access,
    Context,
    Count,
    Evidence,
    Facts,
    Json,
    NotNegative,
    Paper,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    PositiveShare,
    Protected,
    Reading,
    Readout,
    Sizes,
    Suspect,
    UserError,
)
from methods.perturb import Ball, ideal_seconds, rounded, uphill

Bits = Annotated[int, Field(ge=2)]
"""How many: a distance is compared with the mean of all."""

Ask = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _TargetedDistances:
    """What both readings share: target bits, and pairs of images that spell them."""

    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="bit",
        paper=Paper(2025, "Shao et al.", "arXiv:2501.15509"),
        departures=(
            "Sizes and the margin are ours: the paper was not at hand.",
            "Augmented copies are pruned and noised, not finetuned.",
            "In each step the mean distance is that of the step before.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "margin": (0.01, 0.03, 0.1, 0.3),
        "radius": (0.03, 0.06, 0.1),
    }

    bits: Bits = 64
    radius: PositiveShare = 0.06
    step: PositiveShare = 0.01
    steps: Positive = 20
    margin: PositiveFloat = 0.1
    copies: Count = 2
    pruned: PartialShare = 0.3
    noise: NotNegative = 0.05
    batch: Reading[Positive] = 64

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Draw the bits and find pairs that spell them; the notes say how many the owner spells.

        Raises:
            UserError: the owner has no images, or lacks a classifier.

        """
        target = torch.randint(2, (self.bits,), generator=ctx.rng)
        first = self._drawn(ctx)
        models = [self._copied(owner, ctx.device), *self._augmented(owner, ctx)]
        centre = (first.to(ctx.device) / 255).to(models[0].mean.dtype)
        ball = Ball(self.radius, self.step)
        # From the seed itself there is no way up: the distance is at its least there.
        images, micro = ball.drawn(centre, ctx.rng), MicroBatches(self.batch)
        signs = (2 * target - 1).to(images)
        goals = [Spelling(self._ask(m), first, signs, self.margin, self.batch) for m in models]
        for goal in goals:
            goal.look(images)
        for _ in range(self.steps):
            gradient = torch.stack([uphill(goal.gain, images, micro) for goal in goals]).mean(0)
            images = ball.moved(images, gradient, centre)
            for goal in goals:
                goal.settle()
        secret = {"first": first, "second": rounded(images), "bits": target}
        spelt = self._spelt(goals[0].ask, secret, ctx)
        notes: dict[str, Json] = {"bits": self.bits, "spelt": int((spelt == target).sum())}
        ideal = ideal_seconds(goals[0].ask, centre, self._spent(), micro)
        return Protected(clone(owner).cpu(), secret, notes, ideal)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask about both images of every pair; one query is one bit."""
        return matches(self._spelt(self._ask(suspect), secret, ctx), secret["bits"], "bit")

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count every step of each model there and back, its looks before, the owner's after."""
        return self._spent()

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count both images of each pair."""
        return Passes(2 * self.bits)

    def _spent(self) -> Passes:
        models = 1 + self.copies
        steps = self.bits * self.steps * models
        return Passes(steps + 2 * self.bits * (models + 1), steps, frozen=True)

    def _drawn(self, ctx: Context) -> Tensor:
        """Draw the first images of the pairs, bytes; each as often as any other, or once more."""
        known = len(ctx.images)
        if not known:
            raise UserError("expected images of the owner's, got none; give the data set more")
        rounds = -(-self.bits // known)
        order = [torch.randperm(known, generator=ctx.rng) for _ in range(rounds)]
        return ctx.images.pixels[torch.cat(order)[: self.bits]]

    def _augmented(self, owner: VisionModel, ctx: Context) -> list[VisionModel]:
        """Make copies, pruned and noised in turns, from a little to as much as is said."""
        made = list[VisionModel]()
        for number in range(self.copies):
            model = self._copied(owner, ctx.device)
            strength = (number // 2 + 1) / -(-self.copies // 2)  # in (0, 1]
            for weight in model.parameters():
                if number % 2:
                    _add_noise(weight, strength * self.noise, ctx.rng)
                else:
                    _prune(weight, strength * self.pruned)
            made.append(model)
        return made

    def _spelt(self, ask: Ask, secret: Mapping[str, Tensor], ctx: Context) -> Tensor:
        """Return the bits (n,) that a model spells."""
        first, second = (
            answers(ask, secret[name], self.batch, ctx.device).double()
            for name in ("first", "second")
        )
        distances = 1 - F.cosine_similarity(first, second)
        return (distances > distances.mean()).long()

    def _copied(self, owner: VisionModel, device: torch.device) -> VisionModel:
        """Return a frozen copy of the owner that can be asked."""
        return clone(owner).to(device).requires_grad_(False)

    def _ask(self, model: VisionModel | Suspect) -> Ask:
        """Return what asks a model."""
        raise NotImplementedError


class Spelling:
    """How near one model is to spelling the target: what the pairs' second images are moved by."""

    def __init__(self, ask: Ask, first: Tensor, signs: Tensor, margin: float, batch: int) -> None:
        self.ask = ask
        self._signs, self._margin, self._batch = signs, margin, batch
        self._anchors = answers(ask, first, batch, signs.device).to(signs)  # (n, d)
        self._found = torch.zeros_like(signs)
        self._level = 0.0

    def look(self, images: Tensor) -> None:
        """Take the mean distance of these second images."""
        outputs = answers(self.ask, images, self._batch, images.device).to(images)
        self._found = self._apart(outputs, slice(None))
        self.settle()

    def gain(self, images: Tensor, part: slice) -> Tensor:
        """Return minus the hinge of each bit, (b,): 0 where it is spelt by the margin."""
        distances = self._apart(self.ask(images), part)
        self._found[part] = distances.detach()
        return -(self._margin - self._signs[part] * (distances - self._level)).relu()

    def settle(self) -> None:
        """Let the mean distance of the last look be what the next is compared with."""
        self._level = float(self._found.mean())

    def _apart(self, outputs: Tensor, part: slice) -> Tensor:
        return 1 - F.cosine_similarity(outputs, self._anchors[part])


@method("fitprint", version=1)
@dataclass(frozen=True)
class TargetedScores(_TargetedDistances):
    """Spell bits drawn beforehand, by how far class scores move between the images of a pair.

    * `bits`: how many, each with a pair of images of its own. The defaults are for a small model
      on a processor. For a ViT-L on a GPU take 256 bits, 50 steps and 10 copies, which are ours.
    * `radius`, `step`, `steps`: how far a pixel in [0, 1] may move, how far in one step, and how
      many steps. The first two are ModelDiff's.
    * `margin`: by how much a cosine distance is to lie off the mean of all pairs.
    * `copies`: changed copies that have to spell the bits as well, each as much as the owner.
    * `pruned`, `noise`: the largest share of each weight matrix that is set to 0, the smallest
      entries, in every other copy, and the largest noise in the others, in deviations of the
      matrix. The first two copies get the least of it.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    * `readout`: how scores are got of a suspect whose classes are not the owner's.
    """

    needs: ClassVar[Access] = Access.LOGITS

    readout: Reading[Readout] = "graft"

    def _copied(self, owner: VisionModel, device: torch.device) -> VisionModel:
        return classifier(owner, device)

    def _ask(self, model: VisionModel | Suspect) -> Ask:
        return model.logits


@method("fitprint.features", version=1)
@dataclass(frozen=True)
class TargetedFeatures(_TargetedDistances):
    """Spell bits drawn beforehand, by how far an encoder's features move between a pair's images.

    * `bits`: how many, each with a pair of images of its own. The defaults are for a small model
      on a processor. For a ViT-L on a GPU take 256 bits, 50 steps and 10 copies, which are ours.
    * `radius`, `step`, `steps`: how far a pixel in [0, 1] may move, how far in one step, and how
      many steps. The first two are ModelDiff's.
    * `margin`: by how much a cosine distance is to lie off the mean of all pairs.
    * `copies`: changed copies that have to spell the bits as well, each as much as the owner.
    * `pruned`, `noise`: the largest share of each weight matrix that is set to 0, the smallest
      entries, in every other copy, and the largest noise in the others, in deviations of the
      matrix. The first two copies get the least of it.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    """

    needs: ClassVar[Access] = Access.FEATURES

    def _ask(self, model: VisionModel | Suspect) -> Ask:
        return model.features


@torch.no_grad()
def _prune(weight: Tensor, share: float) -> None:
    """Set the smallest entries of a matrix to 0; biases and gains stay."""
    count = round(share * weight.numel())
    if weight.ndim < 2 or not count:
        return
    least = weight.abs().flatten().argsort()[:count]
    weight.view(-1)[least] = 0


@torch.no_grad()
def _add_noise(weight: Tensor, size: float, rng: torch.Generator) -> None:
    """Add normal noise of this many of a matrix's deviations; biases and gains stay."""
    if weight.ndim < 2:
        return
    noise = torch.randn(weight.shape, generator=rng)
    weight.add_(size * weight.std(correction=0) * noise.to(weight))
