"""Merge a stolen model with the thief's own finetunes of the public model it was made from.

Source: G. Ilharco et al., "Editing models with task arithmetic", arXiv:2212.04089; P. Yadav et
al., "TIES-Merging: resolving interference when merging models", arXiv:2306.01708; L. Yu et al.,
"Language models are Super Mario: absorbing abilities from homologous models as a free lunch",
arXiv:2311.03099 (DARE); M. Wortsman et al., "Model soups", arXiv:2203.05482; K. Shoemake,
"Animating rotation with quaternion curves", 1985 (SLERP).

The sources merge finetunes of several tasks. Here the thief has one set of labelled images: his
finetunes differ in their heads and in the order of their batches. They are the same for a twin,
which lacks the mark alone. All weights of a backbone are one vector (p,); what a finetune added to
the base, its task vector, is tau. Heads stay the victim's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.apart import count_apart, held_apart
from bench import training
from bench.data import Images, sent
from bench.models import Head, VisionModel, clone, with_head
from bench.registry import attack
from bench.types import (
    Access,
    Change,
    Context,
    Incompatible,
    NotNegative,
    OpenShare,
    Passes,
    Positive,
    PositiveFloat,
    PositiveShare,
    Sizes,
    UserError,
)

PARALLEL = 1e-6
"""Below this angle, in rad, an arc is a straight line."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What is merged, as vectors: the base and the victim (p,), and the thief's own (m, p).

    `sizes` are those of the tensors that the vectors are made of.
    """

    base: Tensor
    victim: Tensor
    others: Tensor
    sizes: tuple[int, ...]

    @property
    def updates(self) -> Tensor:
        """Return the task vectors, the victim's first: (1 + m, p)."""
        return torch.cat([self.victim[None], self.others]) - self.base


@dataclass(frozen=True, slots=True)
class _Merging(ABC):
    """What all of them share: the thief finetunes the public model, and merges by a rule."""

    data: str | None = None
    epochs: Positive = 10
    finetune_lr: NotNegative = 1e-4
    batch: Positive = 32
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "merging"
    labelled: ClassVar[bool] = True
    uses_base: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count every epoch of every finetune there and back."""
        seen = self._finetunes * self.epochs * sizes.images
        return Passes(seen, seen)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the merged model; notes say the finetunes' last loss."""
        return _run(self, victim, ctx, ctx.images, lambda weights: self._merge(weights, ctx.rng))

    @property
    @abstractmethod
    def _finetunes(self) -> int:
        """Count the thief's finetunes."""

    @abstractmethod
    def _merge(self, weights: Weights, rng: torch.Generator) -> Tensor:
        """Return the merged backbone (p,)."""


@attack("merge.arithmetic")
@dataclass(frozen=True, slots=True)
class TaskArithmetic(_Merging):
    """Add the task vectors of the victim and of the thief's finetunes to the public model.

    Source: G. Ilharco et al., "Editing models with task arithmetic", arXiv:2212.04089, section 2.

    * `data`: the data set whose labelled images the thief finetunes on; none: the probe's.
    * `epochs`, `finetune_lr`, `batch`, `precision`: of the thief's finetunes, all layers, AdamW.
    * `others`: how many finetunes of his own are merged with the victim.
    * `alpha`: what the sum of all task vectors is scaled by; the paper chooses it on held-out
      images, mostly 0.3 to 0.5.
    """

    others: Positive = 2
    alpha: PositiveFloat = 0.3

    @property
    def _finetunes(self) -> int:
        return self.others

    def _merge(self, weights: Weights, rng: torch.Generator) -> Tensor:
        return added(weights.base, weights.updates, self.alpha)


@attack("merge.ties")
@dataclass(frozen=True, slots=True)
class Ties(_Merging):
    """Trim task vectors, elect a sign for each weight, and average those that agree with it.

    Source: P. Yadav et al., "TIES-Merging: resolving interference when merging models",
    arXiv:2306.01708, algorithm 1.

    * `data`: the data set whose labelled images the thief finetunes on; none: the probe's.
    * `epochs`, `finetune_lr`, `batch`, `precision`: of the thief's finetunes, all layers, AdamW.
    * `others`: how many finetunes of his own are merged with the victim.
    * `keep`: the share of each task vector, the largest in magnitude, that is not set to 0.
    * `alpha`: what the merged task vector is scaled by, the paper's lambda.
    """

    others: Positive = 2
    keep: PositiveShare = 0.2
    alpha: PositiveFloat = 1.0

    @property
    def _finetunes(self) -> int:
        return self.others

    def _merge(self, weights: Weights, rng: torch.Generator) -> Tensor:
        return weights.base + self.alpha * agreed(trimmed(weights.updates, self.keep))


@attack("merge.dare")
@dataclass(frozen=True, slots=True)
class Dare(_Merging):
    """Drop most entries of each task vector at random, scale up what is left, and merge.

    Source: L. Yu et al., "Language models are Super Mario: absorbing abilities from homologous
    models as a free lunch", arXiv:2311.03099, section 3.

    * `data`: the data set whose labelled images the thief finetunes on; none: the probe's.
    * `epochs`, `finetune_lr`, `batch`, `precision`: of the thief's finetunes, all layers, AdamW.
    * `others`: how many finetunes of his own are merged with the victim.
    * `drop`: the share of the entries that is set to 0; the rest is divided by 1 - `drop`.
    * `rule`: whether task vectors are then added, or merged by the signs of TIES.
    * `keep`: the share that TIES keeps of each, and no part of "arithmetic".
    * `alpha`: what the sum, or the merged task vector, is scaled by.
    """

    others: Positive = 2
    drop: OpenShare = 0.9
    rule: Literal["arithmetic", "ties"] = "arithmetic"
    keep: PositiveShare = 1.0
    alpha: PositiveFloat = 0.3

    @property
    def _finetunes(self) -> int:
        return self.others

    def _merge(self, weights: Weights, rng: torch.Generator) -> Tensor:
        left = thinned(weights.updates, self.drop, rng)
        if self.rule == "ties":
            return weights.base + self.alpha * agreed(trimmed(left, self.keep))
        return added(weights.base, left, self.alpha)


@attack("merge.soup", version=2)
@dataclass(frozen=True, slots=True)
class Soup(_Merging):
    """Average the weights of the victim and of the thief's finetunes of the same public model.

    Source: M. Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time", arXiv:2203.05482, section 2.

    * `data`: the data set whose labelled images the thief finetunes on; none: the probe's.
    * `epochs`, `finetune_lr`, `batch`, `precision`: of the thief's finetunes, all layers, AdamW.
    * `others`: how many finetunes of his own there are to choose from.
    * `rule`: "uniform" takes them all. "greedy" takes the most accurate first, and leaves out each
      with which the soup would be less accurate, on images of a quarter of the sources, which no
      finetune is trained on. Departure: the soup starts with the victim, whatever its accuracy, or
      nothing were stolen. Accuracy is that of a linear probe, for the soup has no head of the
      thief's.
    """

    others: Positive = 2
    rule: Literal["uniform", "greedy"] = "uniform"

    @property
    def _finetunes(self) -> int:
        return self.others

    def _merge(self, weights: Weights, rng: torch.Generator) -> Tensor:
        return averaged(weights.victim, *weights.others)

    def passes(self, sizes: Sizes) -> Passes:
        """Count every epoch of every finetune there and back, and a greedy soup's probes."""
        held = count_apart(sizes.images) if self.rule == "greedy" else 0
        seen = self.others * self.epochs * (sizes.images - held)
        if self.rule == "uniform":
            return Passes(seen, seen)
        return Passes(seen + (1 + 2 * self.others) * sizes.images, seen, bound="about")

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the soup; notes say the finetunes' last loss, and how many a greedy one took."""
        if self.rule == "uniform":
            return _Merging.run(self, victim, ctx)
        images, held = held_apart(ctx.images, "merge.soup")
        made, taken = clone(victim).to(ctx.device), list[Tensor]()

        def accuracy(*mixed: Tensor) -> float:
            _write(made, averaged(*mixed))
            return training.probe_accuracy(made, images, held, ctx.device)

        def rule(weights: Weights) -> Tensor:
            taken.append(weights.victim)
            best = accuracy(*taken)
            for other in sorted(weights.others, key=accuracy, reverse=True):  # stable
                found = accuracy(*taken, other)
                if found >= best:
                    best = found
                    taken.append(other)
            return averaged(*taken)

        soup = _run(self, victim, ctx, images, rule)
        soup.notes = {**soup.notes, "finetunes_taken": len(taken) - 1}
        return soup


@attack("merge.slerp")
@dataclass(frozen=True, slots=True)
class Slerp(_Merging):
    """Go from a finetune of the thief's towards the victim along an arc, not a straight line.

    Source: K. Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985, section 3.3,
    https://doi.org/10.1145/325165.325242; on weights in common tools for merging.

    * `data`: the data set whose labelled images the thief finetunes on; none: the probe's.
    * `epochs`, `finetune_lr`, `batch`, `precision`: of the thief's finetune, all layers, AdamW.
    * `share`: how far along the arc: at 1 it would be the victim.
    * `per`: whether each tensor has an arc of its own, or the model as one vector.
    """

    share: OpenShare = 0.5
    per: Literal["tensor", "model"] = "tensor"

    @property
    def _finetunes(self) -> int:
        return 1

    def _merge(self, weights: Weights, rng: torch.Generator) -> Tensor:
        ends = weights.others[0], weights.victim
        if self.per == "model":
            return arc(*ends, self.share)
        parts = zip(*(torch.split(end, list(weights.sizes)) for end in ends), strict=True)
        return torch.cat([arc(start, stop, self.share) for start, stop in parts])


def added(base: Tensor, updates: Tensor, alpha: float) -> Tensor:
    """Return base + alpha * the sum of task vectors (m, p): (p,)."""
    return base + alpha * updates.sum(0)


def trimmed(updates: Tensor, keep: float) -> Tensor:
    """Keep the share of each task vector (m, p) that is largest in magnitude; the rest is 0."""
    width = updates.shape[1]
    gone = width - max(1, round(keep * width))
    if not gone:
        return updates
    least = [update.abs().kthvalue(gone).values for update in updates]
    return updates.where(updates.abs() > torch.stack(least)[:, None], 0)


def agreed(updates: Tensor) -> Tensor:
    """Average, weight by weight, the task vectors (m, p) that have the sign of their sum: (p,).

    Where the sum is 0 the sign of most is taken, as in the authors' code; the paper leaves it open.
    """
    signs = updates.sign()
    elected = updates.sum(0).sign()
    elected = elected.where(elected != 0, signs.sum(0).sign())
    agree = (signs == elected) & (signs != 0)  # (m, p)
    return (updates * agree).sum(0) / agree.sum(0).clamp_min(1)


def thinned(updates: Tensor, drop: float, rng: torch.Generator) -> Tensor:
    """Set a random share of each task vector (m, p) to 0, and divide the rest by 1 - drop."""
    # One by one, on the CPU: a large model's are not all drawn at once.
    left = [(torch.rand(update.shape, generator=rng) >= drop).to(update) for update in updates]
    return updates * torch.stack(left) / (1 - drop)


def averaged(first: Tensor, *others: Tensor) -> Tensor:
    """Return the mean of vectors (p,); of equal ones, their equal."""
    # Not a sum of products: rounding would move weights that are equal.
    return first + sum((other - first for other in others), torch.zeros_like(first)) / (
        1 + len(others)
    )


def arc(start: Tensor, stop: Tensor, share: float) -> Tensor:
    """Go a share of the arc from one vector (p,) to another; a straight line if they are parallel.

    Sines of shares of the angle between them weigh the two. Lengths differ little and are left.
    """
    ends = start.double(), stop.double()
    lengths = [end.norm() for end in ends]
    if not all(lengths):
        return torch.lerp(start, stop, share)
    # By way of the chord: a cosine of nearly 1 would lose the angle to rounding.
    chord = (ends[0] / lengths[0] - ends[1] / lengths[1]).norm() / 2
    angle = 2 * torch.asin(chord.clamp(max=1.0))
    if angle < PARALLEL or angle > torch.pi - PARALLEL:
        return torch.lerp(start, stop, share)
    one, other = ((1 - share) * angle).sin(), (share * angle).sin()
    return ((one * ends[0] + other * ends[1]) / angle.sin()).to(start)


def _run(
    settings: _Merging,
    victim: VisionModel,
    ctx: Context,
    images: Images,
    rule: Callable[[Weights], Tensor],
) -> VisionModel:
    """Make the finetunes, and return the victim with the backbone that the rule makes of all."""
    if ctx.base is None:
        raise UserError(
            "merge: expected the public model, got none; hand it over as `base` in the attack's "
            "context"
        )
    made = clone(victim).to(ctx.device)
    base, target = _floats(ctx.base), _floats(made)
    _refuse_another_shape(target, base)
    finetunes, losses = list[Tensor](), list[float]()
    for _ in range(settings._finetunes):
        model, loss = _finetuned(settings, ctx.base, images, ctx)
        finetunes.append(_vector(_floats(model)))
        losses.append(loss)
    sizes = tuple(value.numel() for value in base.values())
    weights = Weights(_vector(base), _vector(target), torch.stack(finetunes), sizes)
    with torch.no_grad():
        _write(made, rule(weights))
    made.notes = {"final_loss": sum(losses) / len(losses), "finetunes": len(losses)}
    return made


def _finetuned(
    settings: _Merging, base: VisionModel, images: Images, ctx: Context
) -> tuple[VisionModel, float]:
    """Finetune a copy of the base on the thief's labels; return it and its last epoch's loss."""
    labels = images.labels
    if labels is None:
        raise UserError(
            "merge: expected labelled images to finetune on, got none with labels; give `data` a "
            "data set with classes"
        )
    model = with_head(base, Head(images.classes), ctx.rng).to(ctx.device)

    def loss_of(chosen: Tensor) -> Tensor:
        scores = model.logits(images.batch(chosen, ctx.device))  # (b, k)
        return F.cross_entropy(scores, sent(labels[chosen], ctx.device))

    how = training.Training(
        settings.epochs, settings.batch, settings.finetune_lr, precision=settings.precision
    )
    fit = training.fit(model.parameters(), loss_of, len(images), how, ctx.rng)
    return model, fit.losses[-1]


def _floats(model: VisionModel) -> dict[str, Tensor]:
    """Return what of a backbone is merged, by name: no classifier in it, and no counter."""
    heads = {weight.data_ptr() for weight in model.classifier_weights}
    return {
        name: value
        for name, value in model.trunk.state_dict().items()
        if value.is_floating_point() and value.data_ptr() not in heads
    }


def _vector(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def _write(model: VisionModel, vector: Tensor) -> None:
    values = [*_floats(model).values()]
    parts = torch.split(vector, [v.numel() for v in values])
    for value, part in zip(values, parts, strict=True):
        value.copy_(part.view_as(value))


def _refuse_another_shape(victim: dict[str, Tensor], base: dict[str, Tensor]) -> None:
    for name in [*victim, *base]:
        if name not in victim or name not in base or victim[name].shape != base[name].shape:
            raise Incompatible(
                f"merge: expected a model of the public model's shape, got one whose {name} is "
                "not; put it before attacks that change the architecture"
            )
