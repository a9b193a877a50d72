"""CKA: recognise a model by how its features of the same images lie to each other.

J. Zhang et al., "REEF: representation encoding fingerprints for large language models", ICLR 2025,
https://arxiv.org/abs/2410.14273; the measure is that of S. Kornblith et al., ICML 2019.

Nothing is trained, and no basis, scale or width of the suspect's matters. It says how alike two
functions are, which is not where one comes from: good models of the same data are alike, and so
the public model, and every copy of it, is like the one that was finetuned from it. A high value
proves nothing that strangers trained on the same data do not lack.

Departures: REEF takes 200 texts and the state of a language model's last token. Here these are
images and what a vision transformer has for them. Its optional division by each dimension's
deviation is left out, for a rotation changes what that does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import Estimator, answers, cka
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Paper,
    Passes,
    Positive,
    PositiveShare,
    Protected,
    Reading,
    Rule,
    Sizes,
    Suspect,
    UserError,
)

Asked = Annotated[int, Field(ge=4)]
"""How many images: the unbiased estimator needs four."""

Source = Literal["held out", "noise"]

ALIKE = "functions that are alike, wherever their weights come from"
"""What a high score names, as tables say it."""


@method("cka", version=1)
@dataclass(frozen=True)
class Cka:
    """Compare the geometry of output features over the same images, by linear CKA.

    The feature is the library's own embedding, as a service would return it. The whole suspect is
    one query, its agreement the CKA, 0 where the unbiased estimate is below.

    * `images`: how many are asked about, at most: of the owner's held-out ones, or as many as these
      are. REEF has 200; below ten times the width the biased estimator counts chance as likeness.
    * `source`: "held out" images, or uniform "noise" at the owner's size.
    * `estimator`: of HSIC; REEF's is the biased one.
    * `threshold`: the CKA from which REEF calls a model derived.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    """

    needs: ClassVar[Access] = Access.FEATURES
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="model",
        paper=Paper(2025, "Zhang et al., ICLR", "arXiv:2410.14273"),
        answers="alike in function?",
        departures=(
            "Images stand for texts.",
            "The feature is the model's output, where REEF reads a layer.",
            "Dimensions are not divided by their deviations.",
        ),
    )

    images: Asked = 256
    source: Source = "held out"
    estimator: Reading[Estimator] = "unbiased"
    threshold: Reading[Annotated[float, Field(ge=0, le=1)]] = 0.8
    batch: Reading[Positive] = 64

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Keep images and the owner's features of them; the model stays as it is."""
        asked = _drawn(owner, ctx, self.images, self.source)
        model = clone(owner).to(ctx.device).requires_grad_(False)
        features = answers(model.features, asked, self.batch, ctx.device)  # (n, d)
        secret = {"images": asked, "features": features.float()}
        return Protected(clone(owner), secret, {"images": len(asked), "names": ALIKE})

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the features of every image; of any width."""
        found = answers(suspect.features, secret["images"], self.batch, ctx.device)
        return _evidence(cka(found, secret["features"], self.estimator), self.threshold)

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images."""
        return _few(sizes.held_out, self.source)

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count one pass of every image asked about."""
        return Passes(_count(self.images, self.source, sizes))

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the images."""
        return Passes(_count(self.images, self.source, sizes))


@method("cka.hidden", version=1)
@dataclass(frozen=True)
class HiddenCka:
    """Compare the geometry of [CLS; mean patch] inside the network, by linear CKA.

    The state is that of the residual stream at the same relative depth of either model, of any
    width and depth. The whole suspect is one query, its agreement the CKA, 0 where it is below.

    * `images`: how many are asked about, at most: of the owner's held-out ones, or as many as these
      are.
    * `source`: "held out" images, or uniform "noise" at the owner's size.
    * `depth`: the share of the blocks that images go through, rounded up; REEF has 18 of 32.
    * `estimator`: of HSIC; REEF's is the biased one.
    * `threshold`: the CKA from which REEF calls a model derived.
    * `batch`: images in one pass. Memory and time depend on it, results do not.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="model",
        paper=Paper(2025, "Zhang et al., ICLR", "arXiv:2410.14273"),
        answers="alike in function?",
        departures=(
            "Images stand for texts, [CLS; mean patch] for the last token.",
            "Dimensions are not divided by their deviations.",
        ),
    )

    images: Asked = 256
    source: Source = "held out"
    depth: PositiveShare = 0.5
    estimator: Reading[Estimator] = "unbiased"
    threshold: Reading[Annotated[float, Field(ge=0, le=1)]] = 0.8
    batch: Reading[Positive] = 64

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Keep images and the owner's states of them; the model stays as it is."""
        asked = _drawn(owner, ctx, self.images, self.source)
        model = clone(owner).to(ctx.device).requires_grad_(False)
        secret = {"images": asked, "features": self._states(model, asked, ctx).float()}
        return Protected(clone(owner), secret, {"images": len(asked), "names": ALIKE})

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Read the state of every image.

        Raises:
            Incompatible: the suspect is not a sequence of transformer blocks.

        """
        found = self._states(suspect.network, secret["images"], ctx)
        return _evidence(cka(found, secret["features"], self.estimator), self.threshold)

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images."""
        return _few(sizes.held_out, self.source)

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the blocks that every image asked about goes through."""
        count = _count(self.images, self.source, sizes)
        return Passes(count * self._last(sizes.blocks) / sizes.blocks)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count as many: the suspect's depth is the owner's, or its share of blocks is."""
        return self.protect_passes(sizes)

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that the suspect has no plain sequence of blocks, if so."""
        if suspect.trunk.blocks is not None:
            return ""
        return f"expected a sequence of transformer blocks, got {suspect.architecture.name}"

    def _states(self, model: VisionModel, asked: Tensor, ctx: Context) -> Tensor:
        """Map images (n, 3, h, w) to [CLS; mean patch] at this depth, (n, 2 d)."""
        last = self._last(len(model.blocks))

        def states(images: Tensor) -> Tensor:
            return model.pooled(model.run_blocks(model.embed(images), 0, last))

        return answers(states, asked, self.batch, ctx.device)

    def _last(self, blocks: int) -> int:
        return ceil(round(self.depth * blocks, 6))  # 0.7 times 10 is a little more than 7


def _few(pool: int, source: Source) -> str:
    if pool >= 4 or source == "noise":
        return ""
    return (
        f"images: expected 4 held-out images or more, the owner has {pool}; give the data set "
        "more, or set source: noise"
    )


def _drawn(owner: VisionModel, ctx: Context, images: int, source: Source) -> Tensor:
    """Return the images to ask about as bytes (n, 3, h, w)."""
    if source == "noise":
        shape = (images, 3, *owner.preprocess.size)
        return torch.randint(256, shape, generator=ctx.rng, dtype=torch.uint8)
    if few := _few(len(ctx.held_out), source):
        raise UserError(few)
    chosen = torch.randperm(len(ctx.held_out), generator=ctx.rng)[:images]
    return ctx.held_out.pixels[chosen]


def _count(images: int, source: Source, sizes: Sizes) -> int:
    return images if source == "noise" else min(images, sizes.held_out)


def _evidence(found: float, threshold: float) -> Evidence:
    # Strangers trained on the same data are alike, too: how much, only they can tell.
    return Evidence(
        agreement=(min(1.0, max(0.0, found)),),
        statistic=(found,),
        rule=Rule("CKA", ">=", threshold),
        unit="model",
        chance=None,
    )
