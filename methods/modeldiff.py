"""ModelDiff: recognise a model by how far its answers move when inputs are perturbed.

Y. Li et al., "ModelDiff: testing-based DNN similarity comparison for model reuse detection", ISSTA
2021, https://arxiv.org/abs/2106.08890, and the authors' code.

Each seed image gets a partner that is moved against the owner, so that its answer leaves that of
the seed and those of others. The decision distance vector (DDV) holds the cosine distance of the
two answers, pair by pair. Two models are as similar as their DDVs are, by cosine. No class order,
rotation or scale of the suspect's answers matters, nor how many numbers one has.

Departures: a DDV is all positive, so that any two are alike by a plain cosine; it is centred first,
unless `centred` says otherwise. Partners are rounded to bytes, as images are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

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
    PositiveFloat,
    PositiveShare,
    Protected,
    Reading,
    Readout,
    Rule,
    Share,
    Sizes,
    Suspect,
    UserError,
)
from methods.perturb import Ball, climb, ideal_seconds, rounded

Pairs = Annotated[int, Field(ge=3)]
"""How many pairs: of two, centred distances are alike or opposite, and nothing between."""

Ask = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _DecisionDistances:
    """What both readings share: seeds, their partners, and the distances of the answers."""

    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="model",
        paper=Paper(2021, "Li et al., ISSTA", "arXiv:2106.08890"),
        departures=(
            "Distances are centred before their cosine, unless `centred` says otherwise.",
            "Partners are rounded to bytes, as images are sent.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "radius": (0.03, 0.06, 0.1),  # QuRD's; the code's; the paper's
    }

    pairs: Pairs = 100
    radius: PositiveShare = 0.06
    step: PositiveShare = 0.01
    steps: Positive = 50
    push: PositiveFloat = 1000.0
    compared: Reading[Literal["vectors", "pairs"]] = "vectors"
    centred: Reading[bool] = True
    threshold: Reading[Share] = 0.5
    batch: Reading[Positive] = 64

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Find a partner of each seed; the model stays as it is.

        Raises:
            UserError: the owner has too few images, or lacks a classifier.

        """
        if few := self._few(len(ctx.images)):
            raise UserError(few)
        model = self._copied(owner, ctx.device)
        ask = self._ask(model)
        seeds = ctx.images.pixels[torch.randperm(len(ctx.images), generator=ctx.rng)[: self.pairs]]
        first = answers(ask, seeds, self.batch, ctx.device)  # (n, d)
        images = (seeds.to(ctx.device) / 255).to(model.mean.dtype)
        goal = self.push * (first.mean(0) - first).to(images)

        def nearness(pixels: Tensor, part: slice) -> Tensor:
            return -(ask(pixels) - goal[part]).square().mean(1)

        micro = MicroBatches(self.batch)
        moved = climb(nearness, images, images, Ball(self.radius, self.step), self.steps, micro)
        partners = rounded(moved)
        distances = cosine_distances(first, answers(ask, partners, self.batch, ctx.device))
        secret = {"seeds": seeds, "partners": partners, "distances": distances}
        notes: dict[str, Json] = {"pairs": len(seeds), "mean_distance": float(distances.mean())}
        ideal = ideal_seconds(ask, images, self._spent(len(seeds)), micro)
        return Protected(clone(owner).cpu(), secret, notes, ideal)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask about both images of every pair."""
        both = (
            answers(self._ask(suspect), secret[name], self.batch, ctx.device)
            for name in ("seeds", "partners")
        )
        found, own = cosine_distances(*both), secret["distances"]
        if self.compared == "pairs":
            apart = float((spread(found) - spread(own)).abs().mean())
            rule = Rule("mean distance apart", "<=", 1 - self.threshold)
            return Evidence((1 - apart,), (apart,), rule, "model", chance=None)
        alike = similarity(found, own, self.centred)
        rule = Rule("DDV similarity", ">=", self.threshold)
        return Evidence((min(1.0, max(0.0, alike)),), (alike,), rule, "model", chance=None)

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images."""
        return self._few(sizes.images)

    def _few(self, pool: int) -> str:
        if pool >= 3:
            return ""
        return f"pairs: expected 3 images or more, the owner has {pool}; give the data set more"

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count both images of each pair, and every step there and back."""
        return self._spent(min(self.pairs, sizes.images))

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count both images of each pair."""
        return Passes(2 * min(self.pairs, sizes.images))

    def _spent(self, pairs: int) -> Passes:
        return Passes(pairs * (2 + self.steps), pairs * self.steps, frozen=True)

    def _copied(self, owner: VisionModel, device: torch.device) -> VisionModel:
        """Return a frozen copy of the owner that can be asked."""
        return clone(owner).to(device).requires_grad_(False)

    def _ask(self, model: VisionModel | Suspect) -> Ask:
        """Return what asks a model."""
        raise NotImplementedError


@method("modeldiff", version=2)
@dataclass(frozen=True)
class ModelDiff(_DecisionDistances):
    """Compare how far class scores move between images and their perturbed partners.

    * `pairs`: how many, at most: as many as the owner's images are. The paper has 100 to 300.
    * `radius`, `step`, `steps`: how far a pixel in [0, 1] may move, how far in one step, and how
      many steps. The code has 0.06, 0.01 and 50, the paper 0.1, QuRD plain PGD of 0.03.
    * `push`: how many times the gap between the mean answer and a seed's is its partner's goal.
    * `compared`: one query is the whole suspect. Of "vectors", as in the paper, its agreement is
      the similarity of the DDVs. Of "pairs" it is 1 less the mean gap between distances, which
      are brought to [0, 1] in each model.
    * `centred`: take the mean distance off before the cosine of "vectors"; the paper does not.
    * `threshold`: the similarity from which a model counts as derived; ours.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    * `readout`: how scores are got of a suspect whose classes are not the owner's.
    """

    needs: ClassVar[Access] = Access.LOGITS

    readout: Reading[Readout] = "graft"

    def _copied(self, owner: VisionModel, device: torch.device) -> VisionModel:
        return classifier(owner, device)

    def _ask(self, model: VisionModel | Suspect) -> Ask:
        return model.logits


@method("modeldiff.features", version=2)
@dataclass(frozen=True)
class FeatureDiff(_DecisionDistances):
    """Compare how far an encoder's features move between images and their perturbed partners.

    The paper compares classifiers; this carries it over to a model that has no classes.

    * `pairs`: how many, at most: as many as the owner's images are. The paper has 100 to 300.
    * `radius`, `step`, `steps`: how far a pixel in [0, 1] may move, how far in one step, and how
      many steps. The code has 0.06, 0.01 and 50, the paper 0.1, QuRD plain PGD of 0.03.
    * `push`: how many times the gap between the mean answer and a seed's is its partner's goal.
    * `compared`: one query is the whole suspect. Of "vectors", as in the paper, its agreement is
      the similarity of the DDVs. Of "pairs" it is 1 less the mean gap between distances, which
      are brought to [0, 1] in each model.
    * `centred`: take the mean distance off before the cosine of "vectors"; the paper does not.
    * `threshold`: the similarity from which a model counts as derived; ours.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    """

    needs: ClassVar[Access] = Access.FEATURES

    def _ask(self, model: VisionModel | Suspect) -> Ask:
        return model.features


def cosine_distances(one: Tensor, other: Tensor) -> Tensor:
    """Return 1 - cosine of answers (n, d) and (n, d), pair by pair, (n,) in [0, 2]."""
    return 1 - F.cosine_similarity(one.double(), other.double())


def similarity(one: Tensor, other: Tensor, centred: bool) -> float:
    """Return the cosine of two vectors (n,), in [-1, 1]; 0 where one is constant and centred."""
    if centred:
        one, other = one - one.mean(), other - other.mean()
    return float(F.cosine_similarity(one, other, dim=0))


def spread(distances: Tensor) -> Tensor:
    """Bring distances (n,) to [0, 1], from the least to the largest; all equal ones to 0."""
    above = distances - distances.min()
    return above / above.max().clamp_min(torch.finfo(above.dtype).tiny)
