"""DeepJudge: recognise a classifier by what it makes of the owner's adversarial examples.

J. Chen et al., "Copy, right? A testing framework for copyright protection of deep learning models",
S&P 2022, https://arxiv.org/abs/2112.05588, and the authors' code.

Seeds are the images of which the owner is right and most certain. Each is moved against the owner,
and kept if that misleads it. RobD is how much more often a suspect is right on those than the
owner. JSD is how far the suspect's probabilities lie from the owner's, by Jensen and Shannon.

Departures: of the black-box metrics these two are here, on examples by projected gradients alone.
The white-box ones are left out: they look at neurons by number, and a permutation hides those.
Examples are rounded to bytes before it is seen whether they mislead. The paper votes over metrics,
with thresholds from innocent models. That is left to the verdict; the thresholds here are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import MicroBatches, answers, classifier
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Json,
    Paper,
    Passes,
    Positive,
    PositiveShare,
    Protected,
    Reading,
    Readout,
    Rule,
    Sizes,
    Suspect,
    UserError,
)
from methods.perturb import Ball, climb, ideal_seconds, rounded

LARGEST = log(2)
"""The divergence of two distributions that have no class in common, in nats."""


class Tests(NamedTuple):
    """Examples that mislead the owner (n, 3, h, w), their true labels (n,), its scores (n, k)."""

    pixels: Tensor
    labels: Tensor
    logits: Tensor
    notes: dict[str, Json]
    ideal_seconds: float


@dataclass(frozen=True)
class _AdversarialTests:
    """What both metrics share: seeds, and the adversarial examples made of them."""

    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="example",
        paper=Paper(2022, "Chen et al., S&P", "arXiv:2112.05588"),
        departures=(
            "Of the black-box metrics RobD and JSD are here, and none of the white-box ones.",
            "Examples are rounded to bytes before it is seen whether they mislead.",
            "The thresholds are ours; the paper votes over metrics.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "radius": (0.01, 0.03, 0.06, 0.1),  # around the code's README
    }

    seeds: Positive = 1000
    certain: Literal["most", "least"] = "most"
    radius: PositiveShare = 0.03
    iterations: Positive = 10
    projected: bool = True
    batch: Reading[Positive] = 64
    readout: Reading[Readout] = "graft"

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count a look at the held-out images, all steps, and a look at what came of them."""
        # Images of which the owner is wrong are no seeds.
        return self._spent(sizes.held_out, min(self.seeds, sizes.held_out))

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the examples: fewer, where some do not mislead the owner."""
        return Passes(min(self.seeds, sizes.held_out), bound="at most")

    def _spent(self, known: int, seeds: int) -> Passes:
        steps = seeds * self.iterations
        return Passes(known + steps + seeds, steps, frozen=True, bound="at most")

    def _tests(self, owner: VisionModel, ctx: Context) -> Tests:
        """Make the examples; the notes count the seeds and those that were moved far enough.

        Raises:
            UserError: images lack labels of the owner's classes, or no example misleads the owner.

        """
        model = classifier(owner, ctx.device)
        truth = _truth(ctx, model.classes)
        logits = answers(model.logits, ctx.held_out.pixels, self.batch, ctx.device)
        chosen = self._chosen(logits, truth)
        labels = truth[chosen]
        seeds = (ctx.held_out.pixels[chosen].to(ctx.device) / 255).to(model.mean.dtype)
        # The code goes radius / iterations in a step, from anywhere in the ball. It never turns
        # back at the ball's edge, so that it ends up to twice as far: `projected: false`.
        step = self.radius / self.iterations
        start = Ball(self.radius, step).drawn(seeds, ctx.rng)
        ball = Ball(self.radius if self.projected else 1.0, step)
        known = labels.to(ctx.device)

        def loss(pixels: Tensor, part: slice) -> Tensor:
            return F.cross_entropy(model.logits(pixels), known[part], reduction="none")

        micro = MicroBatches(self.batch)
        moved = climb(loss, seeds, start, ball, self.iterations, micro)
        pixels = rounded(moved)
        found = answers(model.logits, pixels, self.batch, ctx.device)
        misled = found.argmax(1) != labels
        if not misled.any():
            raise UserError(
                f"radius: expected examples that mislead the owner, got none of {len(labels)} "
                f"within {self.radius:g}; raise it, or give the owner more held-out images"
            )
        notes: dict[str, Json] = {"seeds": len(labels), "tests": int(misled.sum())}
        ideal = ideal_seconds(model.logits, seeds, self._spent(len(truth), len(labels)), micro)
        return Tests(pixels[misled], labels[misled], found[misled], notes, ideal)

    def _chosen(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Return the numbers of the seeds among images with these scores (n, k)."""
        right = (logits.argmax(1) == truth).nonzero().flatten()
        certainty = logits[right].softmax(1).square().sum(1)
        order = certainty.argsort(descending=self.certain == "most", stable=True)
        if not len(right):
            raise UserError(
                f"expected held-out images the owner gets right, got none of {len(truth)}; give it "
                "more images, or a better classifier"
            )
        return right[order[: self.seeds]]


@method("deepjudge.robd", version=1)
@dataclass(frozen=True)
class RobustnessDistance(_AdversarialTests):
    """Count how often a suspect is right where the owner is misled (RobD).

    All examples mislead the owner, so its own robustness is 0. Then RobD is the share on which the
    suspect is right, and each example is a query that agrees where it is wrong, too.

    * `seeds`: how many, at most: of the owner's held-out images those it gets right.
    * `certain`: take the seeds of which the owner is "most" certain, or "least".
    * `radius`, `iterations`: how far a pixel in [0, 1] may move, in how many steps.
    * `projected`: stay within the radius; the code goes up to twice as far.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    * `readout`: how labels are got of a suspect whose classes are not the owner's.
    """

    needs: ClassVar[Access] = Access.LABELS

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Keep the examples and what they truly show; the model stays as it is."""
        tests = self._tests(owner, ctx)
        secret = {"pixels": tests.pixels, "labels": tests.labels}
        return Protected(clone(owner).cpu(), secret, tests.notes, tests.ideal_seconds)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the label of every example; the rate is 1 - RobD."""
        found = answers(suspect.labels, secret["pixels"], self.batch, ctx.device)
        right = (found == secret["labels"]).double()
        agreement, statistic = ((1 - right).tolist(), right.tolist())
        rule = Rule("right", "<=", 0)
        return Evidence(tuple(agreement), tuple(statistic), rule, "example", chance=None)


@method("deepjudge.jsd", version=1)
@dataclass(frozen=True)
class OutputDistance(_AdversarialTests):
    """Measure how far a suspect's probabilities lie from the owner's on its examples (JSD).

    The divergence is in nats, from 0 to log 2, and goes class by class: their order matters.

    * `seeds`: how many, at most: of the owner's held-out images those it gets right.
    * `certain`: take the seeds of which the owner is "most" certain, or "least".
    * `radius`, `iterations`: how far a pixel in [0, 1] may move, in how many steps.
    * `projected`: stay within the radius; the code goes up to twice as far.
    * `threshold`: the divergence up to which an example counts as recognised; ours.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    * `readout`: how scores are got of a suspect whose classes are not the owner's.
    """

    needs: ClassVar[Access] = Access.LOGITS

    threshold: Reading[Annotated[float, Field(ge=0, le=LARGEST)]] = 0.1

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Keep the examples and the owner's scores of them; the model stays as it is."""
        tests = self._tests(owner, ctx)
        secret = {"pixels": tests.pixels, "logits": tests.logits}
        return Protected(clone(owner).cpu(), secret, tests.notes, tests.ideal_seconds)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the scores of every example; one query is one of them."""
        found = answers(suspect.logits, secret["pixels"], self.batch, ctx.device)
        apart = divergence(found, secret["logits"])
        agreement = (1 - apart / LARGEST).clamp(0, 1)
        rule = Rule("JSD", "<=", self.threshold)
        return Evidence(
            tuple(agreement.tolist()), tuple(apart.tolist()), rule, "example", chance=None
        )


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of two scores (n, k), image by image, in nats (n,)."""
    p, q = (scores.double().log_softmax(1) for scores in (one, other))
    middle = torch.logaddexp(p, q) - LARGEST
    both = (F.kl_div(middle, part, reduction="none", log_target=True).sum(1) for part in (p, q))
    return torch.stack(list(both)).mean(0)


def _truth(ctx: Context, classes: int) -> Tensor:
    """Return the labels of the held-out images (n,).

    Raises:
        UserError: there are none, or they are of other classes than the owner's.

    """
    if ctx.held_out.labels is None or ctx.held_out.classes != classes:
        found = ctx.held_out.classes if ctx.held_out.labels is not None else "unlabelled ones"
        raise UserError(
            f"expected images labelled with the owner's {classes} classes, got {found}; name such "
            "a data set as the owner's, or give the owner a `classifier:` trained on this one"
        )
    return ctx.held_out.labels
