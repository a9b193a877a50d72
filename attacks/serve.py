"""Leave a stolen model's weights as they are, and change what its server is asked or answers.

Source: C. Guo et al., "Countering adversarial images using input transformations",
arXiv:1711.00117 (JPEG, resizing, bit depth); W. Xu, D. Evans, Y. Qi, "Feature squeezing: detecting
adversarial examples in deep neural networks", arXiv:1704.01155 (blur, bit depth); F. Tramèr et al.,
"Stealing machine learning models via prediction APIs", arXiv:1609.02943, section 7 (rounding).

The maps are part of the copy: who asks for labels, scores or features is answered through them, and
so is the bench where it measures what the copy is worth. Who sees the weights sees through them.
Serving comes last in a chain: what trains on trains on the weights. A bound is measured on clean
images as the maps before it leave them, for so they reach it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from bench.models import SegmentationHead, Served, VisionModel, clone
from bench.models.serving import bound_for, changed, impossible, suspicion, told
from bench.registry import attack
from bench.training import in_batches
from bench.types import (
    Access,
    Change,
    Context,
    Count,
    Incompatible,
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
"""Clean images the thief looks at in one pass."""

Quality = Annotated[int, Field(ge=1, le=100)]

Bits = Annotated[int, Field(ge=1, le=8)]


@dataclass(frozen=True, slots=True)
class _Serving(ABC):
    """What all of them share: the weights stay, and no image is looked at beforehand."""

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "serving"

    def passes(self, sizes: Sizes) -> Passes:
        """Count none."""
        return Passes()

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the same weights, served so.

        Raises:
            Incompatible: the victim does not answer so, or is served by what must come later.

        """
        return served(victim, self._map(victim, ctx))

    @abstractmethod
    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        """Return what is done to questions or answers."""


@attack("serve.jpeg")
@dataclass(frozen=True, slots=True)
class Jpeg(_Serving):
    """Compress every query as JPEG before the model sees it.

    * `quality`: JPEG's, 1 to 100.
    """

    quality: Quality = 75

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        return Served("jpeg", self.quality)


@attack("serve.resize")
@dataclass(frozen=True, slots=True)
class Resize(_Serving):
    """Shrink every query and bring it back to its size.

    * `share`: of the sides that is left in between.
    """

    share: OpenShare = 0.75

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        return Served("resize", self.share)


@attack("serve.blur")
@dataclass(frozen=True, slots=True)
class Blur(_Serving):
    """Blur every query.

    * `sd`: the deviation of the Gaussian, in pixels of the query.
    """

    sd: PositiveFloat = 1.0

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        return Served("blur", self.sd)


@attack("serve.noise")
@dataclass(frozen=True, slots=True)
class Noise(_Serving):
    """Add Gaussian noise to every query, to an equal one the same.

    * `sd`: its deviation, of pixels in [0, 1].
    """

    sd: PositiveFloat = 0.03

    random: ClassVar[bool] = True

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        return Served("noise", self.sd, seed=_seed(ctx))


@attack("serve.bits")
@dataclass(frozen=True, slots=True)
class BitDepth(_Serving):
    """Round the colours of every query to fewer levels.

    * `bits`: of each colour that are left.
    """

    bits: Bits = 5

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        return Served("bits", self.bits)


@attack("serve.flip")
@dataclass(frozen=True, slots=True)
class Flip(_Serving):
    """Mirror every query, left and right."""

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        return Served("flip")


@attack("serve.round")
@dataclass(frozen=True, slots=True)
class Round(_Serving):
    """Round features, or class scores, before they are sent.

    * `decimals`: that are left.
    """

    decimals: Count = 1

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        return Served("round", self.decimals)


@attack("serve.perturb")
@dataclass(frozen=True, slots=True)
class Perturb(_Serving):
    """Add Gaussian noise to every answer, to that of an equal query the same.

    * `sd`: its deviation, in deviations of the answer's own numbers.
    """

    sd: PositiveFloat = 0.1

    random: ClassVar[bool] = True

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        return Served("perturb", self.sd, seed=_seed(ctx))


@attack("serve.topk")
@dataclass(frozen=True, slots=True)
class TopK(_Serving):
    """Tell the highest class scores alone, or the features that are largest in magnitude.

    The other scores are told as low as the lowest, the other features as 0.

    * `count`: how many are told.
    """

    count: Positive = 1

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        return Served("topk", self.count)


@attack("serve.temperature")
@dataclass(frozen=True, slots=True)
class Temperature(_Serving):
    """Divide class scores by a temperature; features are told as they are.

    * `temperature`: above 1 answers are less sure.
    """

    temperature: PositiveFloat = 4.0

    uses_head: ClassVar[bool] = True

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        _refuse_no_classes("serve.temperature", victim)
        return Served("temperature", self.temperature)


@attack("serve.labelflip", version=2)
@dataclass(frozen=True, slots=True)
class LabelFlip(_Serving):
    """Swap the two highest class scores of some queries on which the model is least sure.

    Source: T. Orekondy, B. Schiele, M. Fritz, "Prediction poisoning: towards defenses against DNN
    model stealing attacks", arXiv:1906.10908; there answers are optimised, here they are swapped.

    * `data`: the data set by whose images the thief knows what is unsure; none: the probe's.
    * `share`: with what probability an unsure answer is swapped; equal queries are treated alike.
    * `unsure`: the share of clean images whose answers count as unsure.
    """

    data: str | None = None
    share: PositiveShare = 0.3
    unsure: PositiveShare = 0.3

    random: ClassVar[bool] = True
    uses_head: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count every clean image once."""
        return Passes(sizes.images)

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        _refuse_no_classes("serve.labelflip", victim)
        before = victim.architecture.served or ()
        model, found = clone(victim).to(ctx.device), list[Tensor]()
        with torch.no_grad():
            for look in _looks(model, ctx):
                scores = told(model.forward_head(look.tokens), before, look.sent, scores=True)
                best = scores.topk(2).values  # (b, 2)
                found.append(best[:, 0] - best[:, 1])
        bound = bound_for(torch.cat(found), self.unsure)
        return Served("labelflip", self.share, bound, _seed(ctx))


@attack("serve.detect", version=2)
@dataclass(frozen=True, slots=True)
class Detect(_Serving):
    """Refuse queries that do not look like a client's: they are answered at random.

    Source: S. Chen, N. Carlini, D. Wagner, "Stateful detection of black-box adversarial attacks",
    arXiv:1907.05587, and M. Juuti et al., "PRADA: protecting against DNN model stealing attacks",
    arXiv:1805.02628 (distances to earlier queries, of features and of pixels); W. Xu, D. Evans, Y.
    Qi, "Feature squeezing: detecting adversarial examples in deep neural networks",
    arXiv:1704.01155, section 4 (what a squeezed query changes).

    Departures: features are the model's own, not those of an encoder trained for it. Distances are
    judged one by one, where PRADA tests their distribution. A refused query is no end of an
    account. Squeezing is judged by features, which models without a head have, too.

    * `data`: the data set of clean images that the thief knows clients by; none: the probe's.
    * `by`: "features" and "pixels" refuse a query of which these are near to those of earlier
      ones, "jpeg" one whose features change when it is compressed.
    * `false_alarms`: the share of clean images that is refused.
    * `neighbours`: how many of the nearest are averaged, of "features" and "pixels"; 50 in the
      first source, for servers who are asked more often than a small pool of images allows.
    * `quality`: JPEG's, of "jpeg" alone.
    """

    data: str | None = None
    by: Literal["features", "pixels", "jpeg"] = "pixels"
    false_alarms: PartialShare = 0.05
    neighbours: Positive = 3
    quality: Quality = 75

    random: ClassVar[bool] = True

    def passes(self, sizes: Sizes) -> Passes:
        """Count every clean image once, or twice where it is compressed as well."""
        return Passes(sizes.images * (2 if self.by == "jpeg" else 1))

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the same weights, served so; notes say the bound."""
        how = self._map(victim, ctx)
        made = served(victim, how)
        made.notes = {"bound": how.bound}
        return made

    def _map(self, victim: VisionModel, ctx: Context) -> Served:
        amount = self.quality if self.by == "jpeg" else self.neighbours
        how = Served(f"detect.{self.by}", amount, seed=_seed(ctx))
        model, seen, found = clone(victim).to(ctx.device), torch.empty(0), list[Tensor]()
        with torch.no_grad():
            for look in _looks(model, ctx):
                apart, seen = suspicion(model, how, look.left, look.tokens, seen)
                found.append(apart)
        return dataclasses.replace(how, bound=bound_for(torch.cat(found), self.false_alarms))


def served(victim: VisionModel, how: Served) -> VisionModel:
    """Copy a model and have the copy served by one more map, behind those it has.

    Raises:
        Incompatible: the victim answers pixel by pixel, or has a detector that would not see what
            clients sent.

    """
    if isinstance(victim.architecture.head, SegmentationHead):
        raise Incompatible(
            "serve: expected a victim that answers for whole images, got one with a head for "
            "masks; choose an attack on its weights"
        )
    chain = (*(victim.architecture.served or ()), how)
    if why := impossible(chain):
        raise Incompatible(f"serve: {why}")
    made = clone(victim)
    made.architecture = dataclasses.replace(made.architecture, served=chain)
    return made


def _refuse_no_classes(who: str, victim: VisionModel) -> None:
    if victim.classes < 2:
        raise Incompatible(
            f"{who}: expected a victim that classifies, got {victim.architecture.name} without a "
            "classification head; put finetune.classify before it"
        )


def _seed(ctx: Context) -> int:
    """Draw the server's own number; it fits a double, as which JSON may be read elsewhere."""
    return int(torch.randint(2**53, (), generator=ctx.rng))


class _Look(NamedTuple):
    """Clean images as a client sends them, and as the model sees them behind earlier maps."""

    sent: Tensor  # (b, 3, h, w)
    left: Tensor  # (b, 3, h, w)
    tokens: Tensor  # (b, n, d), final


def _looks(model: VisionModel, ctx: Context) -> Iterator[_Look]:
    """Ask about the thief's clean images, through the maps that the model is served by already."""
    if not len(ctx.images):
        raise UserError("serve: expected clean images, got none; give `data` a data set that has")

    def look(part: slice) -> _Look:
        sent = ctx.images.batch(part, ctx.device)
        left = changed(sent, model.architecture.served or (), sent)
        return _Look(sent, left, model.forward_features(left))

    yield from in_batches(len(ctx.images), BATCH, look)
