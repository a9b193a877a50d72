"""IPGuard: points just across the owner's decision boundaries, and the labels it gives them.

X. Cao, J. Jia, N. Z. Gong, "IPGuard: protecting intellectual property of deep neural networks via
fingerprinting the classification boundary", AsiaCCS 2021, https://arxiv.org/abs/1910.12903.

From a starting point that the owner calls i, Adam moves x until Z_j >= Z_i + k and no third class
is above Z_i (Z are logits, j is a target class): a point just past the boundary of i and j. A
suspect that shares the boundary gives such points the same labels.

Written after two public re-implementations whose objectives agree, in DeepJudge and in RemovalNet;
k = 10, 100 points and 1000 iterations are the paper's from memory, the learning rate DeepJudge's.
Both go point by point, with four forward passes or more an iteration. Here all points descend
together, with one forward and one backward pass each, which changes nothing but rounding: Adam
works element by element, the loss is a sum over points, and a model in eval mode treats every image
on its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from bench.models import Ideal, VisionModel, clone
from bench.registry import method
from bench.training import MicroBatches, answers, classifier, matches
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Json,
    NotNegative,
    Paper,
    Passes,
    Positive,
    PositiveFloat,
    Protected,
    Reading,
    Readout,
    Sizes,
    Suspect,
    UserError,
)

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's constants, PyTorch's defaults."""

TIMED_EVERY = 16
"""Iterations between two that are timed beside the passes they cannot do without."""


@method("ipguard", version=1)
@dataclass(frozen=True)
class IPGuard:
    """Fingerprint a classifier by points just across its decision boundaries.

    * `points`: how many, each from a starting point of its own.
    * `initialisation`: "data" starts at the owner's images, "noise" at uniformly random pixels.
    * `target`: j, the class the owner finds least likely at the start, or a random other one.
    * `k`, `k_unit`: the margin by which j wins, in logits or in the owner's median margin between
      its first and second class on its own images. Logits have no natural scale: DeepJudge takes 5,
      RemovalNet 0.01. The notes give both units.
    * `iterations`, `lr`, `tolerance`: Adam's; a point stops once its loss is at most `tolerance`.
      RemovalNet: tolerance 1e-5, and lr 1e-2 of normalised pixels, which are some 4.4 times ours:
      lr 2.3e-3 here. "target" stops a point as soon as the owner calls it j, however narrowly.
    * `adam_reset`: forget Adam's moments after every iteration, as RemovalNet does, which makes a
      new optimiser each time; every step is then lr * sign(gradient). (DeepJudge also forgets the
      moments but goes on counting steps, which amounts to a learning rate up to 3.2 times larger.)
    * `clamp`: keep the points within [0, 1], as images sent to a service must be; neither
      implementation does.
    * `batch`: points that descend together, and that are read together; fewer take less memory.
    * `readout`: how labels are got of a suspect whose classes are not the owner's.
    """

    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="point",
        paper=Paper(2021, "Cao, Jia, Gong, AsiaCCS", "arXiv:1910.12903"),
        departures=(
            "`clamp` keeps points within [0, 1]; neither re-implementation does.",
            "`adam_reset` is off; both re-implementations forget Adam's moments at each step.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "k": (0.01, 0.1, 1.0, 5.0, 10.0, 20.0),  # RemovalNet takes 0.01, DeepJudge 5
        "lr": (3e-4, 1e-3, 2.3e-3, 1e-2),
    }

    points: Positive = 100
    initialisation: Literal["data", "noise"] = "data"
    target: Literal["least_likely", "random"] = "least_likely"
    k: NotNegative = 10.0
    k_unit: Literal["logits", "median margin"] = "logits"
    iterations: Positive = 1000
    lr: PositiveFloat = 1e-3
    tolerance: NotNegative | Literal["target"] = 0.0
    adam_reset: bool = False
    clamp: bool = True
    batch: Reading[Positive] = 100
    readout: Reading[Readout] = "graft"

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Find the points; the notes say how many came to their end (`zero_loss`), and how soon."""
        model = classifier(owner, ctx.device)
        start = images = self._images(ctx).to(model.mean.dtype)
        first = clean = answers(model.logits, images, self.batch, ctx.device)  # (n, classes)
        if self.initialisation == "noise":
            start = torch.rand(images.shape, generator=ctx.rng).to(images)
            first = answers(model.logits, start, self.batch, ctx.device)
        margin = float(clean.topk(2).values.diff().abs().median())
        k = self.k * (margin if self.k_unit == "median margin" else 1.0)
        source, target = first.argmax(1), self._targets(first, ctx.rng)
        found = self.descend(model.logits, start, source, target, k, ctx.device)
        # Kept as they are, unrounded: a byte's step can be wider than the margin. Labelled in the
        # batches they are read in, so that the owner agrees with itself to the last point.
        final = answers(model.logits, found.points, self.batch, ctx.device)
        missed = ~self._arrived(final, boundary_loss(final, source, target, k), target)
        missed &= found.steps == self.iterations
        notes: dict[str, Json] = {
            "points": self.points,
            "zero_loss": self.points - int(missed.sum()),
            "median_steps": float(found.steps.double().quantile(0.5)),
            "k_logits": k,
            "median_margin": margin,
            "k_median_margins": k / margin if margin else None,
        }
        secret = {"points": found.points, "labels": final.argmax(1)}
        return Protected(clone(owner).cpu(), secret, notes, found.ideal_seconds)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the label of every point; the rate is the paper's matching rate."""
        found = answers(suspect.labels, secret["points"], self.batch, ctx.device)
        return matches(found, secret["labels"], "point")

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images."""
        return self._few(sizes.images)

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count all iterations: a point whose loss is zero sooner takes fewer."""
        seen = self.points * self.iterations
        starts = self.points * (2 if self.initialisation == "noise" else 1)
        return Passes(starts + seen + self.points, seen, frozen=True, bound="at most")

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the points."""
        return Passes(self.points)

    def asked(self) -> int:
        """Count the points."""
        return self.points

    def of_queries(self, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Return the secret as if images (n, 3, h, w) in [0, 1] were the points."""
        return {"points": images, "labels": labels}

    def descend(
        self,
        logits: Callable[[Tensor], Tensor],
        start: Tensor,
        source: Tensor,
        target: Tensor,
        k: NotNegative,
        device: torch.device,
    ) -> Descent:
        """Move points (n, 3, h, w) in [0, 1] from their `source` class (n,) to k past `target`.

        `logits` maps images to class scores (b, classes); the points come back on the CPU.
        """
        parts, micro = [], MicroBatches(self.batch)
        for first in range(0, len(start), self.batch):
            chunk = slice(first, first + self.batch)
            x, i, j = (part[chunk].to(device) for part in (start, source, target))
            parts.append(self._descend_together(logits, x, i, j, k, micro))
        points, steps, ideal = zip(*parts, strict=True)
        return Descent(torch.cat(points), torch.cat(steps), sum(ideal))

    def _few(self, pool: int) -> str:
        if pool >= self.points:
            return ""
        return (
            f"points: expected at least as many images, the owner has {pool} for {self.points} "
            "points; ask for fewer or give the data set more"
        )

    def _images(self, ctx: Context) -> Tensor:
        """Draw as many of the owner's images as there are points, as floats (n, 3, h, w)."""
        if few := self._few(len(ctx.images)):
            raise UserError(few)
        chosen = torch.randperm(len(ctx.images), generator=ctx.rng)[: self.points]
        return ctx.images.batch(chosen, torch.device("cpu"))

    def _targets(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        """Choose j for every starting point from its logits (n, classes)."""
        if self.target == "least_likely":
            return logits.argmin(1)
        count, classes = logits.shape
        others = torch.randint(1, classes, (count,), generator=rng)
        return (logits.argmax(1) + others) % classes

    def _descend_together(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        source: Tensor,
        target: Tensor,
        k: NotNegative,
        micro: MicroBatches,
    ) -> Descent:
        """Descend with one batch; a point at zero loss is set aside as it was tested."""
        points, steps = torch.empty_like(x), torch.full((len(x),), self.iterations)
        rows = torch.arange(len(x), device=x.device)
        first, second = torch.zeros_like(x), torch.zeros_like(x)  # Adam's moments
        seconds = 0.0
        ideal = Ideal(x.device, range(0, self.iterations, TIMED_EVERY))
        for number in range(self.iterations):
            if number in ideal.rounds:
                ideal.time(functools.partial(_there_and_back, logits, x, micro), len(x))
            seconds += ideal.seconds[-1] * len(x)
            done, gradient, finished = self._looked_at(logits, x, source, target, k, micro)
            if finished:
                points[rows[done]], steps[rows[done].cpu()] = x[done], number
            if finished == len(x):
                return Descent(points.cpu(), steps, seconds)
            if finished:
                x, gradient, first, second, rows, source, target = (
                    part[~done] for part in (x, gradient, first, second, rows, source, target)
                )
            x, first, second = self._adam(x, gradient, first, second, number)
        points[rows] = x
        return Descent(points.cpu(), steps, seconds)

    def _looked_at(
        self,
        logits: Callable[[Tensor], Tensor],
        x: Tensor,
        source: Tensor,
        target: Tensor,
        k: NotNegative,
        micro: MicroBatches,
    ) -> tuple[Tensor, Tensor, int]:
        """Return which points (b,) are at zero loss, the gradient (b, 3, h, w), and how many."""

        def look(part: slice) -> tuple[Tensor, Tensor, int]:
            pixels = x[part].detach().requires_grad_(True)
            scores = logits(pixels)
            loss = boundary_loss(scores, source[part], target[part], k)
            done = self._arrived(scores.detach(), loss.detach(), target[part])
            finished = int(done.sum())  # the one wait for the device in an iteration
            if finished == len(pixels):  # none of them goes on
                return done, torch.zeros_like(pixels), finished
            return done, torch.autograd.grad(loss.sum(), pixels)[0], finished

        done, gradient, finished = zip(*micro.over(len(x), look), strict=True)
        return torch.cat(done), torch.cat(gradient), sum(finished)

    def _arrived(self, logits: Tensor, loss: Tensor, target: Tensor) -> Tensor:
        """Say of which points (b,), with scores (b, classes), nothing more is asked."""
        if self.tolerance == "target":
            return logits.argmax(1) == target
        return loss <= self.tolerance

    def _adam(
        self, x: Tensor, gradient: Tensor, first: Tensor, second: Tensor, number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take Adam's step; return the points and both moments."""
        if self.adam_reset:
            first, second, number = torch.zeros_like(first), torch.zeros_like(second), 0
        first = first.lerp(gradient, 1 - BETAS[0])
        second = second.lerp(gradient.square(), 1 - BETAS[1])
        # Points of a batch start together: one count of steps corrects the moments of all.
        mean, square = (
            moment / (1 - beta ** (number + 1))
            for moment, beta in zip((first, second), BETAS, strict=True)
        )
        x = x - self.lr * mean / (square.sqrt() + EPSILON)
        return (x.clamp(0, 1) if self.clamp else x), first, second


@method("ipguard.qurd", version=1)
@dataclass(frozen=True)
class QurdIPGuard(IPGuard):
    """IPGuard with the settings of QuRD, whose points stop just across the boundary.

    A. Godinot et al., "Queries, representation & detection: the next 100 model fingerprinting
    schemes", AAAI 2025, https://arxiv.org/abs/2412.13021, and the authors' code.

    Departures: that code takes one more step once the target is reached, and its random target may
    be the source itself. Among the other classes' scores it counts those of i and j as 0.

    * `points`: how many, each from a starting point of its own.
    * `initialisation`: "data" starts at the owner's images, "noise" at uniformly random pixels.
    * `target`: j, a random other class, or the one the owner finds least likely at the start.
    * `k`, `k_unit`: the margin in the loss, in logits or in the owner's median margin.
    * `iterations`, `lr`, `tolerance`: Adam's; "target" stops a point once the owner calls it j, a
      number once its loss is at most that.
    * `adam_reset`: forget Adam's moments after every iteration.
    * `clamp`: keep the points within [0, 1]; QuRD does not.
    * `batch`: points that descend together, and that are read together; fewer take less memory.
    * `readout`: how labels are got of a suspect whose classes are not the owner's.
    """

    facts: ClassVar[Facts] = Facts(
        unit="point",
        paper=Paper(2025, "Godinot et al., AAAI", "arXiv:2412.13021"),
        departures=(
            "A point stops at the target; the code takes one more step.",
            "The random target is never the source, as it may be in the code.",
        ),
    )

    target: Literal["least_likely", "random"] = "random"
    lr: PositiveFloat = 1e-2
    tolerance: NotNegative | Literal["target"] = "target"
    clamp: bool = False


class Descent(NamedTuple):
    """Where points ended (n, 3, h, w), after how many steps each (n,), and the passes' time."""

    points: Tensor
    steps: Tensor
    ideal_seconds: float


def boundary_loss(logits: Tensor, source: Tensor, target: Tensor, k: float) -> Tensor:
    """Return relu(Z_i - Z_j + k) + relu(max of the others - Z_i), (b,), from logits (b, classes).

    It is zero where j = `target` wins by k and i = `source` comes second. Of two classes there are
    no others.
    """
    pair = torch.stack([source, target], 1)  # (b, 2)
    at_source, at_target = logits.gather(1, pair).unbind(1)
    loss = (at_source - at_target + k).relu()
    if logits.shape[1] == 2:
        return loss
    others = logits.scatter(1, pair, -torch.inf).amax(1)
    return loss + (others - at_source).relu()


def _there_and_back(logits: Callable[[Tensor], Tensor], x: Tensor, micro: MicroBatches) -> None:
    """Make one forward and one backward pass to the pixels: an iteration cannot do with less."""

    def bare(part: slice) -> None:
        pixels = x[part].detach().requires_grad_(True)
        torch.autograd.grad(logits(pixels).sum(), pixels)

    for _ in micro.over(len(x), bare):
        pass
