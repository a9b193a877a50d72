"""Dataset inference: an encoder gives higher likelihoods to what it, or its teacher, trained on.

A. Dziedzic et al., "Dataset inference for self-supervised models", NeurIPS 2022,
https://arxiv.org/abs/2209.09024.

It answers another question than most: whether a model learnt from the owner's private images,
directly or from a model that did. It says nothing where these are public: anybody may train on
them, and whoever did reads positive, rightly. So of strangers trained on the owner's data it makes
owners' models, and of a model whose training images are not the party's own it makes nothing.

Its p counts images of one model and not models. It is the paper's rule, and no verdict.

A model that does not remember its training images cannot be told: `mini` is one. With 400 of them
and 200 held out its p is 0.7, and that of strangers lies between 0.06 and 0.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import answers
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Json,
    OpenShare,
    Paper,
    Passes,
    Positive,
    PositiveFloat,
    Protected,
    Reading,
    Rule,
    Sizes,
    Suspect,
    UserError,
)

SETTLED = 1e-3
"""The gain in mean log-likelihood, per image, at which expectation-maximisation stops."""

TRAINED_ON = "models that learnt from the owner's images, which proves nothing of public ones"
"""What a high score names, as tables say it."""


@method("dataset.inference", version=1)
@dataclass(frozen=True)
class DatasetInference:
    """Ask whether a suspect's features are likelier on the owner's training images than on others.

    A mixture of Gaussians is fitted to the suspect's own features of some of the owner's images,
    which are taken for its training images. Others of these are compared with held-out ones, by
    their log-likelihoods. The whole suspect is one query. Its agreement is the chance that an image
    trained on is the likelier of a pair, its statistic the p of Welch's one-sided test.

    * `components`: of the mixture, with diagonal covariances. The paper has 50 for ImageNet and 10
      for CIFAR-10; fewer are taken where there are not ten images for each.
    * `limit`: how many training images, and held-out ones, are compared at most. The mixture is
      fitted to twice as many others, or to half the owner's images.
    * `floor`: what is added to variances, of features of length 1.
    * `iterations`: of expectation-maximisation, at most.
    * `alpha`: the p up to which the paper calls a model stolen.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    """

    needs: ClassVar[Access] = Access.FEATURES
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="model",
        paper=Paper(2022, "Dziedzic et al., NeurIPS", "arXiv:2209.09024"),
        answers="trained on my images?",
        departures=(
            "A mixture has ten images or more for each component, so fewer components if need be.",
            "The score in [0, 1] is the chance of being the likelier of a pair, ours.",
            "Mutual information with the victim, the paper's measure of likeness, is left out.",
        ),
    )

    components: Positive = 50
    limit: Positive = 50_000
    floor: Reading[PositiveFloat] = 1e-6
    iterations: Reading[Positive] = 100
    alpha: Reading[OpenShare] = 0.05
    batch: Reading[Positive] = 64

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Keep images of all three kinds, and which of the first the mixture starts from.

        Raises:
            UserError: there are too few images to compare.

        """
        fitted, members, others = self._counts(len(ctx.images), len(ctx.held_out))
        if few := self._few(len(ctx.images), len(ctx.held_out)):
            raise UserError(few)
        mine = torch.randperm(len(ctx.images), generator=ctx.rng)
        theirs = torch.randperm(len(ctx.held_out), generator=ctx.rng)[:others]
        secret = {
            "fitted": ctx.images.pixels[mine[:fitted]],
            "members": ctx.images.pixels[mine[fitted : fitted + members]],
            "others": ctx.held_out.pixels[theirs],
            "centres": torch.randperm(fitted, generator=ctx.rng)[: self._components(fitted)],
        }
        notes: dict[str, Json] = {"images": fitted + members + others, "names": TRAINED_ON}
        return Protected(clone(owner).cpu(), secret, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Fit a mixture to the suspect's features and compare; of any width."""
        fitted, members, others = (
            F.normalize(answers(suspect.features, secret[name], self.batch, ctx.device).double())
            for name in ("fitted", "members", "others")
        )
        mixture = fit(fitted, secret["centres"], self.floor, self.iterations)
        found = compared(mixture.log_likelihood(members), mixture.log_likelihood(others))
        return Evidence(
            agreement=(found.likelier,),
            statistic=(found.p,),
            rule=Rule("p", "<=", self.alpha),
            unit="model",
            chance=0.5,
            notes={"effect_size": found.effect},
        )

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images to compare."""
        return self._few(sizes.images, sizes.held_out)

    def _few(self, images: int, held_out: int) -> str:
        if min(self._counts(images, held_out)) >= 2:
            return ""
        return (
            f"expected 4 images and 2 held out or more, the owner has {images} and {held_out}; "
            "give the data set more"
        )

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count none: images are kept, and not looked at."""
        return Passes()

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count every image once."""
        return Passes(sum(self._counts(sizes.images, sizes.held_out)))

    def _counts(self, images: int, held_out: int) -> tuple[int, int, int]:
        """Return how many images a mixture is fitted to, and how many of both kinds compared."""
        fitted = min(2 * self.limit, images // 2)
        return fitted, min(self.limit, images - fitted), min(self.limit, held_out)

    def _components(self, fitted: int) -> int:
        return max(1, min(self.components, fitted // 10))


class Mixture(NamedTuple):
    """Gaussians with diagonal covariances: log-weights (c,), means and variances (c, d)."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def log_likelihood(self, points: Tensor) -> Tensor:
        """Map points (n, d) to the logarithm of their density, (n,)."""
        return self.joint(points).logsumexp(1)

    def joint(self, points: Tensor) -> Tensor:
        """Map points (n, d) to the log-density of each with each component, (n, c)."""
        precision = 1 / self.variances
        # (x - m)^2 / v, summed over d, without a tensor of n c d numbers.
        squares = points.square() @ precision.T - 2 * points @ (self.means * precision).T
        squares += (self.means.square() * precision).sum(1)
        width = points.shape[1] * math.log(2 * math.pi)
        return self.weights - (squares + self.variances.log().sum(1) + width) / 2


def fit(points: Tensor, centres: Tensor, floor: float, iterations: int) -> Mixture:
    """Fit a mixture to points (n, d) by expectation-maximisation, from those at `centres` (c,).

    Means start at these points, variances at that of all, weights equal.
    """
    count = len(centres)
    spread = points.var(0, correction=0) + floor
    equal = torch.full((count,), -math.log(count), dtype=points.dtype)
    mixture = Mixture(equal, points[centres], spread.expand(count, -1))
    before = -math.inf
    for _ in range(iterations):
        joint = mixture.joint(points)  # (n, c)
        mean = float(joint.logsumexp(1).mean())
        if mean - before < SETTLED:
            break
        before, share = mean, joint.softmax(1)
        size = share.sum(0).clamp_min(1e-10)[:, None]  # (c, 1)
        means = share.T @ points / size
        variances = (share.T @ points.square() / size - means.square()).clamp_min(0) + floor
        mixture = Mixture((size[:, 0] / len(points)).log(), means, variances)
    return mixture


class Compared(NamedTuple):
    """How far one sample lies above another.

    `likelier` is the chance that one of the first is the higher of a pair, `p` that of Welch's
    one-sided test, `effect` the difference of means in pooled deviations.
    """

    likelier: float
    p: float
    effect: float


def compared(members: Tensor, others: Tensor) -> Compared:
    """Compare log-likelihoods (n,) and (m,)."""
    ordered, members = others.sort().values, members.contiguous()
    # How many others lie below each, and below or beside: pairs won, and pairs tied by halves.
    below = torch.searchsorted(ordered, members) + torch.searchsorted(ordered, members, right=True)
    likelier = float(below.sum()) / (2 * len(members) * len(others))
    gap = float(members.mean() - others.mean())
    spread = math.sqrt(float(members.var() + others.var()) / 2)
    if not spread:  # all alike: nothing is said where the means are, too
        return Compared(likelier, float(gap <= 0), 0.0)
    test = stats.ttest_ind(members.numpy(), others.numpy(), equal_var=False, alternative="greater")
    return Compared(likelier, float(test.pvalue), gap / spread)
