"""ADV-TRA: a classifier recognised by its labels along walks of adversarial steps.

T. Xu et al., "United we stand, divided we fall: fingerprinting deep neural networks via adversarial
trajectories", NeurIPS 2024, https://openreview.net/forum?id=YwpL0BVxts.

Followed here is what the authors' code does (SPHelixLab/ADV-TRA); a fork of it has another loss,
other checks and another clipping.

A base image is pushed towards one class after another. A hop takes h steps into its target class
(unilateral), then the same step sizes in reverse order, still uphill (bilateral); ten classes make
nine hops in a chain (surface). Every image on the way is kept with the label the owner gives it.
The share of these labels that a suspect changes is the walk's mutation.

All walks go in lock step. What one image does depends on no other, so a batch computes what one
walk at a time would, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from bench.data import Images
from bench.models import Ideal, VisionModel, clone
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

RELAXATION = 0.049
"""By how much the length control has come closer to 1 when a search ends (the authors' code)."""

LONGEST = 1.0
"""A longer step would leave [0, 1] from anywhere: no pixel can take it."""

TIMED_ROUNDS = 3
"""Hops after which the fewest passes are timed, spread over a walk."""


@method("adv_tra", version=2)
@dataclass(frozen=True)
class AdvTra:
    """Walk from class to class across the owner's decision surface; keep its labels on the way.

    The defaults are those of the authors' code.

    * `mode`: "official" lets a quarter of the epochs pass before it accepts a hop; "fast" accepts
      the first success, and is the same in all else.
    * `trajectories`: N walks. Up to 2 N base images are tried, for a walk may fail.
    * `length`: steps of one hop, half of them into the target class. `classes`: classes on a walk,
      the base image's own among them, so one hop fewer.
    * `max_iterations`: epochs E of the search for a hop's step sizes.
    * `initial_step`, `step_drop`: where the search starts: the first step, of images in [0, 1], and
      by how much each is below the one before.
    * `step_lr`, `brake`, `smoothness_weight`, `negative_weight`: each epoch takes a plain gradient
      step on two penalties: on a step whose next is not `brake` times as long, and on one below 0.
      The first moves the earlier of the two alone.
    * `length_control`: steps that miss the target are divided by it, steps that are there too early
      are multiplied.
    * `tau`: a walk counts as recognised if less than this share of its labels changed.
    * `readout`: how a suspect answers in the owner's classes; seen to by the bench.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    """

    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="trajectory",
        paper=Paper(2024, "Xu et al., NeurIPS", "openreview:YwpL0BVxts"),
        departures=(
            "Steps are kept as bytes, where the code keeps floats.",
            "A start that is its own target is given up at once; the code spends all epochs on it.",
            "A step above 1 ends its walk alone, where it ends the code's whole run.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "initial_step": (0.02, 0.05, 0.1, 0.2),
        "step_lr": (0.01, 0.02, 0.05, 0.1),
        "length_control": (0.8, 0.9, 0.95),
    }

    mode: Literal["official", "fast"] = "official"
    trajectories: Positive = 100
    length: Annotated[int, Field(ge=4, multiple_of=2)] = 4
    classes: Annotated[int, Field(ge=2)] = 10
    max_iterations: Annotated[int, Field(ge=2)] = 300
    initial_step: PositiveShare = 0.05
    step_drop: float = 0.002
    step_lr: float = 0.05
    brake: float = 0.95
    smoothness_weight: float = 1.0
    negative_weight: float = 1.0
    length_control: PositiveShare = 0.9
    tau: Reading[PositiveShare] = 0.5
    readout: Reading[Readout] = "graft"
    batch: Reading[Positive] = 64

    @property
    def half(self) -> int:
        """Steps into a target class, h; as many follow."""
        return self.length // 2

    @property
    def hops(self) -> int:
        """Targets of one walk."""
        return self.classes - 1

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Walk on a copy of `owner`; the notes hold the base images tried and failed, and epochs.

        Raises:
            UserError: the owner has no classifier or too few classes, the pool too few images, or
                no walk came to its end.

        """
        model, known = classifier(owner, ctx.device, least=self.classes), owner.classes
        base = self._draw(ctx)
        orders = torch.rand(len(base), known, generator=ctx.rng).argsort(1)  # (2n, k)
        walks, tried, tally = list[Tensor](), 0, Tally.of(self.batch, self.hops, ctx.device)
        while tried < len(base) and (missing := self.trajectories - sum(map(len, walks))):
            # As many as are missing: one image after another would try the same ones, and no more.
            wave = torch.arange(tried, min(tried + missing, len(base)))
            targets = self._targets(model, base, wave, orders[wave], tally, ctx.device)
            start = base.batch(wave, ctx.device)
            walks.append(self._walk(model, start, targets, tally))
            tried += len(wave)
        pixels = torch.cat(walks)
        if not len(pixels):
            raise UserError(
                f"max_iterations: expected walks to come to their end within {self.max_iterations} "
                f"epochs a hop, all {tried} failed; allow more, or ask for fewer `classes`"
            )
        labels = self._read(_labels_of(model), pixels, ctx.device)
        tally.labelled += labels.numel()
        notes: dict[str, Json] = {
            "trajectories": len(pixels),
            "tried": tried,
            "failed": tried - len(pixels),
            "hops": tally.hops,
            "epochs": tally.epochs,
            "classes": known,
        }
        secret = {"pixels": pixels, "labels": labels}
        return Protected(clone(owner).cpu(), secret, notes, tally.ideal_seconds(self.half))

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the labels along every walk; one query is one walk, its mutation is native."""
        pixels, labels = secret["pixels"], secret["labels"]
        changed = self._read(suspect.labels, pixels, ctx.device) != labels  # (n, p)
        # Where a hop ends the next begins: the code keeps such an image twice, and counts it twice.
        counts = torch.ones(labels.shape[1], dtype=torch.long)
        counts[self.length : -1 : self.length] = 2
        mutation = ((changed * counts).sum(1).double() / counts.sum()).tolist()
        return Evidence(
            agreement=tuple(1 - m for m in mutation),
            statistic=tuple(mutation),
            rule=Rule("mutation", "<", self.tau),
            unit="trajectory",
            chance=None,  # not 1 / k: a walk starts at a real image, which a stranger may know too
        )

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images."""
        return self._few(sizes.images)

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count walks that all arrive, each hop as soon as it may."""
        epochs = self.max_iterations // 4 + 2 if self.mode == "official" else 1
        hops, places = self.trajectories * self.hops, self.hops * self.length + 1
        there = hops * (1 + epochs * self.half + self.half) + self.trajectories * places
        back = hops * (1 + epochs * (self.half - 1) + self.half)
        return Passes(there, back, frozen=True, bound="at least")

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the images of all walks; fewer, where walks failed."""
        places = self.hops * self.length + 1
        return Passes(self.trajectories * places, bound="at most")

    def asked(self) -> int:
        """Count the images of all walks."""
        return self.trajectories * (self.hops * self.length + 1)

    def of_queries(self, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Return the secret as if images (n p, 3, h, w) in [0, 1] were walks of p, one by one."""
        pixels = _bytes(images)  # (n p, 3, h, w)
        walks = pixels.view(self.trajectories, -1, *pixels.shape[1:])  # (n, p, 3, h, w)
        return {"pixels": walks, "labels": labels.view(self.trajectories, -1)}

    def _few(self, pool: int) -> str:
        if pool >= self.trajectories:
            return ""
        return (
            f"trajectories: expected {self.trajectories} base images, the owner's pool has {pool}; "
            "ask for fewer or give the data set more"
        )

    def _draw(self, ctx: Context) -> Images:
        if few := self._few(len(ctx.images)):
            raise UserError(few)
        order = torch.randperm(len(ctx.images), generator=ctx.rng)
        return ctx.images.subset(order[: 2 * self.trajectories].tolist())

    def _targets(
        self,
        model: VisionModel,
        base: Images,
        wave: Tensor,
        orders: Tensor,
        tally: Tally,
        device: torch.device,
    ) -> Tensor:
        """Return targets (b, hops): the classes in the order drawn, without the image's own."""
        if base.labels is not None and base.classes == orders.shape[1]:
            own = base.labels[wave][:, None]
        else:  # no labels, or in classes that are not the owner's
            own = self._read(_labels_of(model), base.pixels[wave][:, None], device)
            tally.labelled += len(wave)
        others = orders[orders != own].view(len(wave), -1)  # (b, k - 1)
        return others[:, : self.hops].to(device)

    @torch.no_grad()
    def _read(
        self, labels_of: Callable[[Tensor], Tensor], pixels: Tensor, device: torch.device
    ) -> Tensor:
        """Label what is stored, uint8 (n, p, 3, h, w) to (n, p): owner and suspects alike."""
        found = answers(labels_of, pixels.flatten(0, 1), self.batch, device)
        return found.view(pixels.shape[:2])

    def _walk(self, model: VisionModel, start: Tensor, targets: Tensor, tally: Tally) -> Tensor:
        """Walk from images (b, 3, h, w) along targets (b, hops); return the walks that arrive.

        These are uint8 (n, hops * length + 1, 3, h, w), in the order given: a service takes bytes,
        and they are a quarter of the size. Departure: the code keeps floats. The walk itself goes
        on unrounded; what is kept is labelled as kept (on mini, 1 label in 1000 differs).
        """
        places = self.hops * self.length + 1
        kept = torch.empty((len(start), places, *start.shape[1:]), dtype=torch.uint8)
        kept[:, 0] = _bytes(start)
        alive = torch.arange(len(start))
        for number in range(self.hops):
            goals = targets[alive.to(targets.device), number]
            arrived, steps, path = self._search(model, start, goals, tally)
            path += self._beyond(model, path[-1], goals[arrived], steps, tally)
            start, alive = path[-1], alive[arrived.cpu()]
            for place, images in enumerate(path, number * self.length + 1):
                kept[alive, place] = _bytes(images)
            tally.hops += len(alive)
            if number in tally.there.rounds:
                self._time(model, start, goals[arrived], tally)
        return kept[alive]

    @torch.no_grad()
    def _search(self, model: VisionModel, start: Tensor, targets: Tensor, tally: Tally) -> Hop:
        """Find step sizes that take images (b, 3, h, w) into their targets (b,), and no sooner.

        The start never moves, so its label and its gradient are found once for all epochs.
        """
        label, sign = self._uphill(model, start, targets, tally)
        tally.starts += len(start)
        # Departure: the code spends E epochs on a start that is its own target; none can succeed.
        rows = (label != targets).nonzero().flatten()
        start, sign, targets = start[rows], sign[rows], targets[rows]
        sizes = [self.initial_step - self.step_drop * i for i in range(self.half)]
        steps = start.new_tensor(sizes).repeat(len(rows), 1)  # (b, h)
        found = [Hop(rows[:0], steps[:0], [start[:0]] * self.half)]
        for epoch in range(self.max_iterations):
            if not len(rows):
                break
            tally.epochs += len(rows)
            path, labels = self._roll_out(model, start, sign, targets, steps, tally)
            hit = labels == targets  # (h - 1, b)
            early = hit[:-1].any(0)
            done = hit[-1] & ~early
            if self.mode == "official" and epoch <= self.max_iterations / 4:  # burn-in
                done = torch.zeros_like(done)
            if len(ready := done.nonzero().flatten()):
                found.append(Hop(rows[ready], steps[ready], [images[ready] for images in path]))
            steps = self._controlled(steps, ~hit[-1] & ~early, early, epoch)
            # Departure: one step above 1 ends the code's whole run; here it ends this walk.
            left = (~done & (steps <= LONGEST).all(1)).nonzero().flatten()
            if len(left) < len(rows):
                rows, start, sign = rows[left], start[left], sign[left]
                targets, steps = targets[left], steps[left]
        return _in_order(found)

    def _roll_out(
        self,
        model: VisionModel,
        start: Tensor,
        sign: Tensor,
        targets: Tensor,
        steps: Tensor,
        tally: Tally,
    ) -> tuple[list[Tensor], Tensor]:
        """Take the steps (b, h); return x_1 .. x_h and the labels of x_2 .. x_h (h - 1, b).

        The code checks x_0 in place of x_1; ours was checked before. Labels of all but x_h come
        with their gradients.
        """
        path, labels = [_step(start, sign, steps[:, 0])], []
        for i in range(1, self.half):
            label, sign = self._uphill(model, path[-1], targets, tally)
            path.append(_step(path[-1], sign, steps[:, i]))
            labels.append(label)
        last, read = path[-1], _labels_of(model)
        labels.append(torch.cat([*tally.micro.over(len(last), lambda part: read(last[part]))]))
        return path, torch.stack(labels[1:])

    def _controlled(self, steps: Tensor, missed: Tensor, early: Tensor, epoch: int) -> Tensor:
        """Smooth steps (b, h), then lengthen those that missed and shorten the early ones."""
        gap = self.brake * steps[:, :-1] - steps[:, 1:]  # (b, h - 1)
        slope = -self.negative_weight * (steps < 0).to(steps.dtype)
        # By the formula the later step of a pair would move as well. In the code it takes no
        # gradient yet when the penalty is built, so the last step moves by length control alone.
        slope[:, :-1] += self.smoothness_weight * 2 * self.brake * gap
        relaxed = RELAXATION * epoch / self.max_iterations
        factor = torch.ones_like(steps[:, :1])
        factor[missed] = 1 / self.length_control - relaxed
        factor[early] = self.length_control + relaxed
        return (steps - self.step_lr * slope) * factor

    @torch.no_grad()
    def _beyond(
        self, model: VisionModel, images: Tensor, targets: Tensor, steps: Tensor, tally: Tally
    ) -> list[Tensor]:
        """Go on from x_h with the steps (b, h) in reverse order; return x_h+1 .. x_2h."""
        path = []
        for i in reversed(range(self.half)):
            _, sign = self._uphill(model, images, targets, tally)
            images = _step(images, sign, steps[:, i])
            path.append(images)
        return path

    def _uphill(
        self, model: VisionModel, images: Tensor, targets: Tensor, tally: Tally
    ) -> tuple[Tensor, Tensor]:
        """Return the label of each image, and the sign of its target logit's gradient."""
        if not len(images):  # nobody is left, and not every model takes an empty batch
            return targets, images

        def ascend(part: slice) -> tuple[Tensor, Tensor]:
            return _ascent(model, images[part], targets[part])

        labels, signs = zip(*tally.micro.over(len(images), ascend), strict=True)
        return torch.cat(labels), torch.cat(signs)

    def _time(self, model: VisionModel, images: Tensor, targets: Tensor, tally: Tally) -> None:
        """Time a bare pass there, and one there and back, unless that is known well enough."""
        fits = tally.micro.size
        images, targets = images[:fits], targets[:fits]
        if len(images) and len(tally.there.seconds) < TIMED_ROUNDS:
            with torch.no_grad():
                tally.there.time(lambda: model.logits(images), len(images))
            tally.back.time(lambda: _ascent(model, images, targets), len(images))


class Hop(NamedTuple):
    """Images that reached their targets: which, with what steps (b, h), through x_1 .. x_h."""

    arrived: Tensor
    steps: Tensor
    path: list[Tensor]


@dataclass(slots=True)
class Tally:
    """What the walks took, in images, and how many of them fit into a pass."""

    micro: MicroBatches
    there: Ideal  # a label
    back: Ideal  # a gradient, with its label
    starts: int = 0  # hops begun
    epochs: int = 0
    hops: int = 0  # hops that arrived
    labelled: int = 0  # besides

    @staticmethod
    def of(batch: int, hops: int, device: torch.device) -> Tally:
        """Begin at nothing; what is timed is spread over the hops of a walk."""
        rounds = range(0, hops, -(-hops // TIMED_ROUNDS))
        return Tally(MicroBatches(batch), Ideal(device, rounds), Ideal(device, rounds))

    def ideal_seconds(self, half: int) -> float:
        """Return the time of the passes that were needed, each at the pace of a full batch."""
        gradients = self.starts + self.epochs * (half - 1) + self.hops * half
        labels = self.epochs + self.labelled
        return self.there.median * labels + self.back.median * gradients


@torch.enable_grad()
def _ascent(model: VisionModel, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    # The code's loss is nll_loss of raw logits: -z_t, without a softmax. A sum over the batch
    # leaves each image its own gradient.
    images = images.detach().requires_grad_(True)
    logits = model.logits(images)
    (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), images)
    return logits.detach().argmax(1), gradient.sign()


def _step(images: Tensor, sign: Tensor, sizes: Tensor) -> Tensor:
    """Move each pixel by its image's size (b,); one that would leave [0, 1] stays, unclipped."""
    moved = images + sizes[:, None, None, None] * sign
    return torch.where((moved >= 0) & (moved <= 1), moved, images)


def _in_order(found: list[Hop]) -> Hop:
    arrived, order = torch.cat([hop.arrived for hop in found]).sort()
    steps = torch.cat([hop.steps for hop in found])[order]
    paths = zip(*(hop.path for hop in found), strict=True)
    return Hop(arrived, steps, [torch.cat(images)[order] for images in paths])


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8).cpu()


def _labels_of(model: VisionModel) -> Callable[[Tensor], Tensor]:
    return lambda images: model.logits(images).argmax(1)
