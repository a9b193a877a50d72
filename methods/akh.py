"""The Anna Karenina heuristic: models are right alike, but every model is wrong in its own way.

A. Godinot, E. Le Merrer, C. Penzo, F. Taïani, G. Trédan, "Queries, Representation & Detection: the
next 100 model fingerprinting schemes", AAAI 2025, https://arxiv.org/abs/2412.13021.

The paper's baseline, from memory, which needs no optimisation: the queries are images the owner
gets wrong, the evidence is whether a suspect gives them the same labels. The authors' code takes
the first mistakes it meets, here they are drawn. For owners that are rarely wrong it fills up by
CutMix, which is `fill: cutmix`; to fill with the least confident right answers is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bench.models import Ideal, VisionModel, clone
from bench.registry import method
from bench.training import answers, classifier, matches
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Paper,
    Passes,
    Positive,
    Protected,
    Reading,
    Readout,
    Sizes,
    Suspect,
    UserError,
)
from methods.cutmix import cutmix


@method("akh", version=1)
@dataclass(frozen=True)
class AnnaKarenina:
    """Fingerprint a classifier by the labels it gives to images it gets wrong.

    * `queries`: how many images are asked about, drawn from all the owner's wrong ones.
    * `fill`: where fewer are wrong, "none" leaves it at those; "least confident" adds images the
      owner gets right, those with the lowest probability of their class first. "cutmix" mixes those
      it gets wrong with each other, and turns the mixes left to right and upside down, over and
      over: QuRD's filling. The notes say how many were added: innocents agree on them more often.
    * `batch`: images that are read together.
    * `readout`: how labels are got of a suspect whose classes are not the owner's.
    """

    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="image",
        paper=Paper(2025, "Godinot et al., AAAI", "arXiv:2412.13021"),
        labelled=True,
        departures=(
            "Mistakes are drawn at random; the authors' code takes the first in the data's order.",
            "`fill` adds images that the owner is least sure of; the code mixes and flips.",
        ),
    )

    queries: Positive = 100
    fill: Literal["none", "least confident", "cutmix"] = "least confident"
    batch: Reading[Positive] = 64
    readout: Reading[Readout] = "graft"

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Find the owner's mistakes among all its images; the notes count them and the fill."""
        model = classifier(owner, ctx.device)
        pixels, truth = _labelled(ctx)
        logits = answers(model.logits, pixels, self.batch, ctx.device)
        if logits.shape[1] != ctx.images.classes:
            raise UserError(
                f"expected images labelled with the owner's {logits.shape[1]} classes, got "
                f"{ctx.images.classes}; name such a data set as the owner's, or give the owner a "
                "`classifier:` trained on this one"
            )
        mistaken = logits.argmax(1) != truth
        chosen = self._choose(mistaken, logits, ctx.rng)
        kept = pixels[chosen]
        if self.fill == "cutmix":
            kept = torch.cat([kept, mixes(kept, self.queries - len(kept), ctx.rng)])
        # Labelled once more, in the batches they are read in: equal to the last rounding.
        labels = answers(model.logits, kept, self.batch, ctx.device).argmax(1)
        wrong = int(mistaken[chosen].sum())
        notes = {
            "images": len(pixels),
            "wrong": int(mistaken.sum()),
            "queries": len(kept),
            "filled": len(kept) - wrong,
        }
        ideal, first = Ideal(ctx.device), pixels[: self.batch]
        ideal.time(lambda: answers(model.logits, first, self.batch, ctx.device), len(first))
        seconds = ideal.median * len(pixels)  # every image is looked at once
        return Protected(clone(owner).cpu(), {"pixels": kept, "labels": labels}, notes, seconds)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the label of every image; one query is one image."""
        found = answers(suspect.labels, secret["pixels"], self.batch, ctx.device)
        return matches(found, secret["labels"], "image")

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count a look at every image of the owner's, and another at those asked about."""
        known = sizes.images + sizes.held_out
        return Passes(known + self._asked(sizes), bound=self._bound)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the queries: all of them, unless too few images are wrong."""
        return Passes(self._asked(sizes), bound=self._bound)

    def _asked(self, sizes: Sizes) -> int:
        if self.fill == "cutmix":  # of few images there are mixes without end
            return self.queries
        return min(self.queries, sizes.images + sizes.held_out)

    def asked(self) -> int:
        """Count the queries."""
        return self.queries

    def of_queries(self, images: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Return the secret as if images (n, 3, h, w) in [0, 1] were those asked about."""
        return {"pixels": (images * 255).round().to(torch.uint8), "labels": labels}

    @property
    def _bound(self) -> Literal["exact", "at most"]:
        return "at most" if self.fill == "none" else "exact"

    def _choose(self, mistaken: Tensor, logits: Tensor, rng: torch.Generator) -> Tensor:
        """Return the numbers of the images to ask about: mistakes at random, then the fill."""
        wrong = mistaken.nonzero().flatten()
        wrong = wrong[torch.randperm(len(wrong), generator=rng)]
        if self.fill != "least confident":
            if not len(wrong):
                raise UserError(
                    f"expected images the owner gets wrong, got none among {len(mistaken)}; give "
                    'it more images, or set `fill` to "least confident"'
                )
            return wrong[: self.queries]
        confidence = logits.softmax(1).amax(1)
        ranked = confidence.argsort(stable=True)
        return torch.cat([wrong, ranked[~mistaken[ranked]]])[: self.queries]


def mixes(wrong: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return `count` mixes of images (n, 3, h, w) with each other, as QuRD's code orders them.

    A round has one mix of every image with the one before, all with one box, whose share of the
    area is uniform: CutMix with alpha = 1. Then follow the same ones flipped, each way.
    """
    made = [wrong[:0]]
    while sum(map(len, made)) < count:
        mixed = cutmix(wrong, wrong.roll(1, 0), torch.rand(1, generator=rng), rng)
        made += [mixed, mixed.flip(3), mixed.flip(2)]
    return torch.cat(made)[:count]


def _labelled(ctx: Context) -> tuple[Tensor, Tensor]:
    """Return all the owner's pixels (n, 3, h, w) and their labels (n,).

    Raises:
        UserError: the images are not labelled.

    """
    pools = ctx.images, ctx.held_out
    labels = [pool.labels for pool in pools if pool.labels is not None]
    if len(labels) < len(pools):
        raise UserError(
            "expected labelled images of the owner's, got unlabelled ones; name a data set with "
            "classes as the owner's"
        )
    return torch.cat([pool.pixels for pool in pools]), torch.cat(labels)
