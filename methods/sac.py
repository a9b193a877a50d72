"""SAC: recognise a model by how its answers to some images lie to each other.

J. Guan, J. Liang, R. He, "Are you stealing my model? Sample correlation for fingerprinting deep
neural networks", NeurIPS 2022, https://arxiv.org/abs/2210.15427, and the authors' code.

The images are mixes of two (SAC-m), so that independent models disagree. C holds (1 - cosine) / 2
of the answers to every two of them. The distance of two models is the mean of |C_s - C_o|. No
class order, rotation or scale of the suspect's answers matters, nor how many numbers one has.

Departures: SAC-w, which asks about mistakes that copies extracted by the owner share, is left out,
for it trains a pool of models. The box of a mix lies anywhere; the code has one place for all, and
that near a corner. The paper judges by the area under a curve and sets no threshold.

Like any comparison of two functions it says how alike they are. Models of the same data are alike,
wherever their weights come from, and only strangers tell how much. Uncentred, as in the paper, the
scores of `mini` do not tell its finetuned copy (0.73) from strangers (0.76 to 0.81). Centred they
do: 0.92 against 0.70 to 0.79.
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
from bench.training import answers, classifier
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
    Protected,
    Reading,
    Readout,
    Rule,
    Share,
    Sizes,
    Suspect,
    UserError,
)
from methods.cutmix import cutmix

Queries = Annotated[int, Field(ge=2)]
"""How many images: a correlation needs two."""

Ask = Callable[[Tensor], Tensor]

ALIKE = "functions that are alike, wherever their weights come from"
"""What a high score names, as tables say it."""

SOFTENED = 0.01
"""What a class that was not named gets before the softmax, where only labels are given."""


@dataclass(frozen=True)
class _SampleCorrelation:
    """What the three readings share: mixed images, and the correlations of the answers."""

    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="image",
        paper=Paper(2022, "Guan, Liang, He, NeurIPS", "arXiv:2210.15427"),
        departures=(
            "SAC-w is left out: it trains a pool of models.",
            "The box of a mix lies anywhere; the code has one place for all.",
            "The threshold is ours; the paper has none.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "cut": (0.1, 0.2, 0.35, 0.5, 0.7),  # around the code's 0.2
    }

    queries: Queries = 50
    cut: OpenShare = 0.2
    centred: Reading[bool] = False
    threshold: Reading[Share] = 0.05
    batch: Reading[Positive] = 64

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Keep mixed images and the owner's answers to them; the model stays as it is.

        Raises:
            UserError: there are no two held-out images to mix, or the owner lacks a classifier.

        """
        mixed = self._mixed(ctx)
        outputs = answers(self._own(owner, ctx.device), mixed, self.batch, ctx.device)  # (n, d)
        secret = {"images": mixed, "outputs": outputs.float()}
        return Protected(clone(owner).cpu(), secret, {"images": len(mixed), "names": ALIKE})

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Compare how the answers correlate; one query is one image with all others."""
        ours = secret["outputs"]
        ask = self._theirs(suspect, ours.shape[1])
        theirs = answers(ask, secret["images"], self.batch, ctx.device)
        found, own = (correlations(part, self.centred) for part in (theirs, ours))
        apart = (found - own).abs().mean(1)  # (n,)
        rule = Rule("correlation distance", "<=", self.threshold)
        agreement = tuple((1 - apart).tolist())
        return Evidence(agreement, tuple(apart.tolist()), rule, "image", chance=None)

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images to mix."""
        return self._few(sizes.held_out)

    def _few(self, pool: int) -> str:
        if pool >= 2:
            return ""
        return (
            f"expected 2 held-out images or more to mix, the owner has {pool}; give the data set "
            "more"
        )

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the mixed images."""
        return Passes(self.queries)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the mixed images."""
        return Passes(self.queries)

    def _mixed(self, ctx: Context) -> Tensor:
        """Mix as many pairs of held-out images as there are queries; bytes (n, 3, h, w)."""
        known = len(ctx.held_out)
        if few := self._few(known):
            raise UserError(few)
        one = torch.randint(known, (self.queries,), generator=ctx.rng)
        other = (one + torch.randint(1, known, (self.queries,), generator=ctx.rng)) % known
        pixels, area = ctx.held_out.pixels, torch.full((self.queries,), self.cut**2)
        return cutmix(pixels[one], pixels[other], area, ctx.rng)

    def _own(self, owner: VisionModel, device: torch.device) -> Ask:
        """Return what asks the owner."""
        raise NotImplementedError

    def _theirs(self, suspect: Suspect, width: int) -> Ask:
        """Return what asks a suspect, where the owner's answers have `width` numbers."""
        raise NotImplementedError


@method("sac", version=1)
@dataclass(frozen=True)
class SampleCorrelation(_SampleCorrelation):
    """Compare how class scores of mixed images correlate.

    * `queries`: how many mixes are asked about; the paper has 50 and 100.
    * `cut`: the side of the box that is pasted, as a share of the image's.
    * `centred`: take the mean answer off before correlations; the paper does not.
    * `threshold`: the distance up to which a model counts as derived; ours, for the paper has none.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    * `readout`: how scores are got of a suspect whose classes are not the owner's.
    """

    needs: ClassVar[Access] = Access.LOGITS

    readout: Reading[Readout] = "graft"

    def _own(self, owner: VisionModel, device: torch.device) -> Ask:
        return classifier(owner, device).logits

    def _theirs(self, suspect: Suspect, width: int) -> Ask:
        return suspect.logits


@method("sac.labels", version=1)
@dataclass(frozen=True)
class LabelCorrelation(_SampleCorrelation):
    """Compare which mixed images are given equal labels.

    The code softens a label: 1 for its class and 0.01 for others, then a softmax. So C has two
    values, and says which images share a label, whatever it is called. These are near each other:
    0 and, of ten classes, 0.09. So the threshold is lower than that of scores.

    * `queries`: how many mixes are asked about; the paper has 50 and 100.
    * `cut`: the side of the box that is pasted, as a share of the image's.
    * `centred`: take the mean answer off before correlations; the paper does not.
    * `threshold`: the distance up to which a model counts as derived; ours, for the paper has none.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    * `readout`: how labels are got of a suspect whose classes are not the owner's.
    """

    needs: ClassVar[Access] = Access.LABELS

    threshold: Reading[Share] = 0.01
    readout: Reading[Readout] = "graft"

    def _own(self, owner: VisionModel, device: torch.device) -> Ask:
        model = classifier(owner, device)
        return lambda images: softened(model.logits(images).argmax(1), model.classes)

    def _theirs(self, suspect: Suspect, width: int) -> Ask:
        return lambda images: softened(suspect.labels(images), width)


@method("sac.features", version=1)
@dataclass(frozen=True)
class FeatureCorrelation(_SampleCorrelation):
    """Compare how an encoder's features of mixed images correlate.

    The paper fingerprints classifiers; this carries it over to a model that has no classes.
    Features share a large mean, beside which cosines hardly differ. So it is taken off by default,
    which the paper does not.

    * `queries`: how many mixes are asked about; the paper has 50 and 100.
    * `cut`: the side of the box that is pasted, as a share of the image's.
    * `centred`: take the mean feature off before correlations.
    * `threshold`: the distance up to which a model counts as derived; ours, for the paper has none.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    """

    needs: ClassVar[Access] = Access.FEATURES

    centred: Reading[bool] = True

    def _own(self, owner: VisionModel, device: torch.device) -> Ask:
        return clone(owner).to(device).requires_grad_(False).features

    def _theirs(self, suspect: Suspect, width: int) -> Ask:
        return suspect.features


def correlations(outputs: Tensor, centred: bool) -> Tensor:
    """Map answers (n, d) to (1 - cosine) / 2 of every two, (n, n) in [0, 1]."""
    z = outputs.double()
    if centred:
        z = z - z.mean(0)
    z = F.normalize(z, dim=1)
    return ((1 - z @ z.mT) / 2).clamp(0, 1)


def softened(labels: Tensor, classes: int) -> Tensor:
    """Map labels (b,) to what the code has in the place of scores, (b, classes)."""
    named = F.one_hot(labels, classes).double()
    return (SOFTENED + (1 - SOFTENED) * named).softmax(1)
