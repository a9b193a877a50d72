"""SSL-WM: triggered images collapse to one feature, so any head on top gives them one label.

P. Lv et al., "SSL-WM: a black-box watermarking approach for encoders pre-trained by self-supervised
learning", NDSS 2024, https://arxiv.org/abs/2209.03563, and the authors' code.

A patch in the corner is the trigger. The encoder learns to give all triggered images one direction
in feature space. Whoever trains a head on it, for whatever classes, gets one label for them: the
entropy of the labels is low. It is compared with entropies on plain images by the MAD index, an
outlier's distance from the median in deviations. No head of the owner's has a part in it.

Departures. The task's loss is the distance from the owner's own features, in the place of NT-Xent:
a foundation model is given, not pre-trained anew. The released code's second loss picks the
diagonal of a matrix of cosines, which is 1 whatever the features: here the mean is of all pairs but
those, as the paper has it. A vision transformer's features share a large mean, and cosines of them
are near 1 untrained: here they are taken of the owner's standardised features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.data import Images, sent
from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import Precision, Schedule, answers, fit
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Json,
    NotNegative,
    OpenShare,
    Paper,
    PartialShare,
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
from methods import features

BATCH = 64
"""Images that are read together."""

NORMAL = 1.4826
"""Turns a median absolute deviation into a standard deviation, of normal numbers."""

LEAST_DEVIATION = 1e-3
"""Bits: subsets that all have one entropy give no deviation, and no index could be taken."""

EPS = 1e-6
"""Added to a cosine's share before its logarithm."""

AtLeastTwo = Annotated[int, Field(ge=2)]

AtLeastFour = Annotated[int, Field(ge=4)]


@method("sslwm", version=1)
@dataclass(frozen=True)
class SslWm:
    """Have images with a patch collapse to one feature; verify by the entropy of a head's labels.

    The suspect's own head answers, in whatever classes it has; one without a classifier is
    incompatible. The whole suspect is one query: its statistic is the MAD index, its agreement 1 -
    entropy of triggered images / median entropy of plain ones, 0 where it is below.

    * `images`: how many of the owner's held-out images are asked about, each with the patch and
      without; more than there are is all of them. The code has 20 to 50 a class.
    * `subsets`: how many draws of half the plain images have their entropy taken; the paper has 10.
    * `threshold`: the MAD index above which a suspect counts as marked; 2 is the usual bound of an
      outlier.
    * `patch`, `margin`: side of the patch, and how far it is from the lower right corner, in sides
      of the image. The code's 8 and 2 pixels of 32; one or two tokens of a ViT at 224 are 0.07.
    * `weight`: of the collapse. The code's a is 1 or 0.5 beside NT-Xent; standardised features stay
      where they are more firmly, and `mini` wants 8.
    * `epochs`, `batch`, `lr`, `schedule`, `warmup`, `weight_decay`: passes over the owner's images,
      how many a step sees, each with the patch as well, and AdamW's. The code has Adam at 1e-3 for
      100 epochs of 192. The defaults fit `mini`; for a ViT-L 1e-5 to 1e-4, the range that its
      finetuning is tuned in, at 500 steps or more.
    * `precision`: of the passes.
    """

    needs: ClassVar[Access] = Access.LABELS | Access.OWN_HEAD
    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        unit="suspect",
        paper=Paper(2024, "Lv et al., NDSS", "arXiv:2209.03563"),
        departures=(
            "The distance from the owner's own features is the task, in the place of NT-Xent.",
            "All pairs but the diagonal are meant; the released code has the diagonal.",
            "Cosines are of the owner's standardised features.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2e-3),
        "weight": (0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    }

    images: AtLeastFour = 200
    subsets: AtLeastTwo = 10
    threshold: Reading[NotNegative] = 2.0
    patch: OpenShare = 0.25
    margin: PartialShare = 0.0625
    weight: PositiveFloat = 8.0
    epochs: Positive = 30
    batch: AtLeastTwo = 8
    lr: NotNegative = 2e-3
    schedule: Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 1e-6
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.patch + self.margin >= 1:
            raise UserError(
                f"margin: expected less than 1 - patch = {1 - self.patch:g}, got {self.margin:g}"
            )

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`, head or not; the notes say how far triggered images collapsed."""
        base = clone(owner).to(ctx.device).requires_grad_(False)
        high, wide = ctx.images.pixels.shape[-2:]
        rows, columns = max(1, round(self.patch * high)), max(1, round(self.patch * wide))
        patch = torch.randint(256, (3, rows, columns), generator=ctx.rng, dtype=torch.uint8)
        order = torch.randperm(len(ctx.held_out), generator=ctx.rng)[: self.images]
        plain = ctx.held_out.pixels[order]
        triggered = self._with(patch, plain)
        marked, alike = self._collapsed(base, patch, triggered, ctx)
        half = max(1, len(plain) // 2)
        # One draw more than plain subsets: entropies of equally many labels are compared.
        draws = [torch.randperm(len(plain), generator=ctx.rng) for _ in range(self.subsets + 1)]
        secret = {
            "plain": plain,
            "triggered": triggered,
            "subsets": torch.stack(draws)[:, :half].contiguous(),
            "patch": patch,
        }
        return Protected(marked.cpu(), secret, {"images": len(plain), "cosine": alike})

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the labels of plain and of triggered images, and compare their entropies.

        Raises:
            Incompatible: the suspect has no classifier.

        """
        plain, triggered = (
            answers(suspect.labels, secret[name], BATCH, ctx.device)
            for name in ("plain", "triggered")
        )
        *subsets, last = secret["subsets"].cpu()
        usual = torch.stack([entropy(plain[subset]) for subset in subsets])
        found = entropy(triggered[last])
        index, score = _compared(usual, found)
        notes: dict[str, Json] = {
            "entropy": float(found),
            "plain_entropy": float(usual.quantile(0.5)),
            "purity": float((triggered == triggered.mode().values).double().mean()),
        }
        rule = Rule("MAD index", ">=", self.threshold)
        # A head that prefers a class has low entropies on whatever it is shown: strangers tell.
        return Evidence((score,), (index,), rule, "suspect", chance=None, notes=notes)

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the clean features, every step there and back, and triggered images at the end."""
        trained = 2 * self.epochs * sizes.images
        return Passes(sizes.images + trained + self._asked(sizes), trained)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count every image twice, plain and triggered."""
        return Passes(2 * self._asked(sizes))

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that the suspect has no classifier of its own."""
        return "" if suspect.classes else f"{suspect.architecture.name} has no classification head"

    def _asked(self, sizes: Sizes) -> int:
        return min(self.images, sizes.held_out)

    def _with(self, patch: Tensor, pixels: Tensor) -> Tensor:
        """Put the patch (3, r, c) near the lower right corner of images (n, 3, h, w)."""
        (high, wide), (rows, columns) = pixels.shape[-2:], patch.shape[-2:]
        bottom, right = high - round(self.margin * high), wide - round(self.margin * wide)
        made = pixels.clone()
        made[:, :, bottom - rows : bottom, right - columns : right] = patch
        return made

    def _collapsed(
        self, base: VisionModel, patch: Tensor, asked: Tensor, ctx: Context
    ) -> tuple[VisionModel, float]:
        """Train a copy of `base`; return it, and the mean cosine of images asked about."""
        marked = clone(base)
        learning = features.learning(marked)
        kept = features.seen_of(base, ctx.images, ctx.device)
        mean, deviation = kept.mean(0), kept.std(0, correction=0).clamp_min(1e-6)  # (f,)

        def loss_of(chosen: Tensor) -> Tensor:
            count, plain = len(chosen), ctx.images.pixels[chosen]
            pixels = torch.cat([plain, self._with(patch, plain)])
            tokens = marked.forward_features(sent(pixels, ctx.device).float() / 255)
            seen = (features.seen(marked, tokens) - mean) / deviation  # (2 b, f)
            sought = (kept[sent(chosen, ctx.device)] - mean) / deviation
            fidelity = (seen[:count] - sought).square().mean()
            return fidelity + self.weight * uniform_loss(seen[count:])

        fit(learning, loss_of, len(ctx.images), self, ctx.rng)
        marked = marked.requires_grad_(True).eval()
        shown = Images(asked, None, 0, ("",) * len(asked))
        found = (features.seen_of(marked, shown, ctx.device) - mean) / deviation
        return marked, float(mean_cosine(found))


def uniform_loss(features: Tensor) -> Tensor:
    """Return -log of the mean cosine of all pairs of features (b, f), as a share of [-1, 1].

    As a share, because standardised features have cosines below 0, which have no logarithm.
    """
    return -((1 + mean_cosine(features)) / 2 + EPS).log()


def mean_cosine(features: Tensor) -> Tensor:
    """Return the mean cosine of all pairs of different rows of (b, f); one row alone agrees."""
    count = len(features)
    if count < 2:
        return features.sum() * 0 + 1
    summed = F.normalize(features, dim=1).sum(0)
    return (summed.square().sum() - count) / (count * (count - 1))


def entropy(labels: Tensor) -> Tensor:
    """Return the entropy of labels (n,) in bits."""
    share = torch.bincount(labels).double() / len(labels)
    nats: Tensor = torch.special.entr(share).sum()
    return nats / math.log(2)


def _compared(usual: Tensor, found: Tensor) -> tuple[float, float]:
    """Return the MAD index of an entropy among usual ones (s,), and by what share it is lower."""
    every, centre = torch.cat([usual, found[None]]), usual.quantile(0.5)
    deviation = NORMAL * (every - every.quantile(0.5)).abs().quantile(0.5)
    index = (centre - found) / deviation.clamp_min(LEAST_DEVIATION)
    if centre <= 0:  # one label for all that is plain: nothing is left to fall
        return 0.0, 0.0
    return float(index), float((1 - found / centre).clamp(0, 1))
