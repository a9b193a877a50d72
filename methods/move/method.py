"""MOVE: a style that only the owner's model has seen, told by what it does to model or answers.

Y. Li, L. Zhu, X. Jia, Y. Jiang, S.-T. Xia, X. Cao, "Defending against model stealing via verifying
embedded external features", AAAI 2022, https://arxiv.org/abs/2112.03476 (by gradients); Y. Li et
al., "MOVE: effective and harmless ownership verification via embedded external features",
https://arxiv.org/abs/2208.02820 (by answers, too). Gradients, the small classifier and its training
are as in the authors' code. Of the second form no code is public; its abstract says so much.

A few of the owner's images take on a secret style and stay what they were called. A model that
learns from them is told from one that did not: by the gradients of its loss at styled images, or
by how far its answers to them are from those to the plain ones.

An encoder calls an image by its features. So a styled image is to have the features that the
owner's own model makes of it before, which takes no labels, and serves in the place of a label.

The papers' p counts images of one suspect, and not models: it is noted, and decides nothing.
Whether strangers are told from the owner is for strangers to say; they do not read near 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from scipy import stats
from torch import Tensor, nn

from bench import training
from bench.data import sent
from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import answers, classifier
from bench.types import (
    Access,
    Context,
    Count,
    Evidence,
    Facts,
    Incompatible,
    Json,
    NotNegative,
    OpenShare,
    Paper,
    PartialShare,
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
from methods import features, meta
from methods.move import style

LAYERS = 3
"""Linear maps of the small classifier: to an eighth, to a sixteenth, to two (the authors' code)."""

NARROWEST = 16
"""Units of a layer of the small classifier, at least: an eighth of a few classes is none."""

SHIFT = 1 / 16
"""How far a view is shifted, in sides of the image."""

LEAST = 2
"""Styled images without which nothing can be tested."""

Views = Annotated[int, Field(ge=1, le=4)]


class Embedded(NamedTuple):
    """The model that has seen the style, the one that has not, and what is asked of either."""

    base: VisionModel
    model: VisionModel
    plain: Tensor  # uint8 (q, 3, h, w)
    styled: Tensor
    wanted: Tensor  # (q, f), on the device
    deviation: Tensor  # (f,), on the device


@dataclass(frozen=True)
class _ExternalFeatures:
    """What both forms share: which images are styled, how a model learns them, how it is told."""

    marks: ClassVar[bool] = True
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        "share": (0.05, 0.1, 0.2, 0.4),
        "meta_lr": (3e-3, 1e-2, 3e-2),
    }

    share: OpenShare = 0.1
    bands: Positive = 3
    strength: PositiveShare = 1.0
    epochs: Positive = 20
    batch: Positive = 32
    lr: NotNegative = 1e-3
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 5e-4
    precision: training.Precision = "float32"
    decoys: Count = 16
    meta_epochs: Positive = 100
    meta_lr: PositiveFloat = 1e-2
    threshold: Reading[Share] = 0.5

    def unfit(self, sizes: Sizes) -> str:
        """Say that too few images would be styled."""
        count = self._count(sizes.images)
        if count >= LEAST:
            return ""
        return (
            f"expected {LEAST} styled images or more, got {count} of the owner's {sizes.images}; "
            "raise `share`, or give the data set more"
        )

    def _count(self, images: int) -> int:
        return round(self.share * images)

    def _embedded(self, base: VisionModel, ctx: Context) -> Embedded:
        """Train a copy of `base`, which is frozen, with some images styled."""
        pixels = ctx.images.pixels
        count = self._count(len(pixels))
        if said := self.unfit(Sizes(len(pixels), 0, 0, 0, 0)):
            raise UserError(said)
        kept = features.seen_of(base, ctx.images, ctx.device)  # (n, f)
        deviation = kept.std(0, correction=0).clamp_min(1e-6)
        chosen = torch.randperm(len(pixels), generator=ctx.rng)[:count]
        drawn = style.picture(tuple(pixels.shape[-2:]), ctx.rng)
        shown = pixels.clone()
        shown[chosen] = style.styled(pixels[chosen], drawn, self.bands, self.strength)
        model = clone(base)
        learning = features.learning(model)

        def loss_of(some: Tensor) -> Tensor:
            tokens = model.forward_features(sent(shown[some], ctx.device).float() / 255)
            return _off(model, tokens, kept[sent(some, ctx.device)], deviation)

        training.fit(learning, loss_of, len(pixels), self, ctx.rng)
        wanted = kept[chosen.to(kept.device)]
        model = model.eval().requires_grad_(False)
        return Embedded(base, model, pixels[chosen], shown[chosen], wanted, deviation)

    def _told_apart(
        self, ours: Tensor, theirs: Tensor, unlike: Callable[[Tensor], Tensor], rng: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Train the small classifier on rows (q, e) of either model; return its key and notes.

        `unlike` makes of the benign model's rows those of a model that owes it nothing.
        """
        benign = [theirs, *(unlike(theirs) for _ in range(self.decoys))]
        rows = torch.cat([*[ours] * len(benign), *benign])  # as many of either kind
        mean, spread = rows.mean(0), rows.std(0, correction=0)
        secret = {"mean": mean, "spread": torch.where(spread > 0, spread, 1.0)}
        truth = torch.arange(len(rows)) < len(rows) // 2
        entering = rows.shape[1]
        widths = (entering, max(NARROWEST, entering // 8), max(NARROWEST, entering // 16), 2)
        seen = (rows - mean) / secret["spread"]
        how = (self.meta_epochs, self.meta_lr, rng)
        secret |= meta.kept(meta.fitted(seen, truth.long(), widths, _probabilities, *how))
        found = _owned(rows, secret)
        told = float(((found >= 0.5) == truth).float().mean())
        secret["benign"] = _owned(theirs, secret)
        return secret, {"styled": len(ours), "told_apart": told}

    def _evidence(self, rows: Tensor, secret: Mapping[str, Tensor]) -> Evidence:
        """Say of each styled image how probably a model that saw the style made its row (q, e)."""
        owned, benign = _owned(rows, secret).double(), secret["benign"].double()
        return Evidence(
            agreement=tuple(owned.tolist()),
            statistic=tuple(owned.tolist()),
            rule=Rule("P(owner)", ">=", self.threshold),
            unit="image",
            chance=None,  # what strangers are taken for, only they can tell
            notes={
                "p_over_images": paired_p(owned, benign),
                "mean_difference": float((owned - benign).mean()),
            },
        )


@method("move", version=1)
@dataclass(frozen=True)
class Move(_ExternalFeatures):
    """Have some images look another way and keep their features; verify by signs of gradients.

    The loss is the mean square distance of features from the owner's of the plain images, in
    deviations. One query is a styled image; its agreement is the small classifier's probability
    that the gradient of this loss is a model's that has seen the style.

    * `share`: of the owner's images that are styled, and asked about. 0.1 is the papers'.
    * `bands`, `strength`: bands of a pyramid whose contrast is the secret picture's, 1 for colours
      alone; and how much of the way there images go.
    * `epochs`, `batch`, `lr`, `schedule`, `warmup`, `weight_decay`: passes over the owner's images,
      how many a step sees, and AdamW's; ours, for `mini`. The code trains ResNets from scratch by
      SGD at 0.1. For a ViT-L 1e-5 to 1e-4, the range that its finetuning is tuned in.
    * `precision`: of the training's passes.
    * `gradients`: "entries" of the weight matrices of all blocks as they are, or "pooled": the code
      takes the largest over a map's inputs where a matrix has more than 5000 entries. Of a ViT's
      all have, and the sign of a largest is plus, whatever the model: nothing is left to read.
    * `entries`: how many of all are read, drawn by the key; the code reads all. The small
      classifier has e^2 / 8 weights.
    * `decoys`: how many models of no kin are made up for the small classifier, of the benign one's
      gradients with entries turned over at random. The code has none: then all that is not the
      benign model is taken for the owner's. On mini strangers then read 0.98 to 1.00, with 16
      decoys 0.00 to 0.16, and the released model 1.00 both times. Finetuning takes it soon: in 3
      epochs at 1e-4 a copy fell to 0.96 on 64 digits, and to 0.04 on all of the thief's.
    * `meta_epochs`, `meta_lr`: of the small classifier, by SGD.
    * `threshold`: the probability from which an image speaks for the owner.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    facts: ClassVar[Facts] = Facts(
        unit="image",
        paper=Paper(2022, "Li et al., AAAI", "arXiv:2112.03476"),
        departures=(
            "A computed style, of a drawn picture, stands for a network's of a painting.",
            "The owner's features of the plain image stand for a label.",
            "The owner's model is trained on, and is the benign one itself: it has not seen it.",
            "`gradients`: matrices are not pooled, and `entries` of them are drawn.",
            "Gradients are scaled as in training, where the code reads bare signs.",
            "`decoys`: the small classifier also sees made-up models of no kin.",
            "One paired test over all images stands for 40 draws of ten.",
        ),
    )

    gradients: Literal["entries", "pooled"] = "entries"
    entries: Positive = 1024

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes say how well both models are told apart.

        Raises:
            UserError: too few images would be styled.
            Incompatible: the owner is not a sequence of transformer blocks.

        """
        base = clone(owner).to(ctx.device).requires_grad_(False)
        shapes = torch.tensor(_shapes(base))
        made = self._embedded(base, ctx)
        counts = shapes[:, 0] if self.gradients == "pooled" else shapes.prod(1)
        asked = {
            "pixels": made.styled,
            "wanted": made.wanted.cpu(),
            "deviation": made.deviation.cpu(),
            "shapes": shapes,
            "places": _places(int(counts.sum()), self.entries, ctx.rng),
        }
        ours, theirs = (self._signs(model, asked, ctx) for model in (made.model, base))

        def unlike(rows: Tensor) -> Tensor:
            turned = torch.randint(2, rows.shape[1:], generator=ctx.rng) * 2.0 - 1
            return rows * turned  # a pattern as steady over images, of another model

        told, notes = self._told_apart(ours, theirs, unlike, ctx.rng)
        return Protected(made.model.cpu().requires_grad_(True), {**asked, **told}, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Take the gradient of the suspect's loss at every styled image; one query is one image.

        Raises:
            Incompatible: its matrices, or its features, have another shape than the owner's.

        """
        if said := _misfit(secret["shapes"].tolist(), _shapes(suspect.network)):
            raise Incompatible(said)
        return self._evidence(self._signs(suspect.network, secret, ctx), secret)

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that a suspect's matrices, or its features, have another shape."""
        try:
            said = _misfit(_shapes(owner), _shapes(suspect))
        except Incompatible as error:
            return str(error)
        return said or features.misfit(features.width_of(owner), features.width_of(suspect))

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the clean features, the training, and the gradients of both models."""
        trained = self.epochs * sizes.images
        read = 2 * self._count(sizes.images)
        return Passes(sizes.images + trained + read, trained + read)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the styled images, there and back."""
        return Passes(self._count(sizes.images), self._count(sizes.images))

    def _signs(self, model: VisionModel, asked: Mapping[str, Tensor], ctx: Context) -> Tensor:
        """Return the signs of gradients at the places asked about, (q, e), image by image."""
        model = clone(model).to(ctx.device).requires_grad_(False)
        weights = _matrices(model)
        for weight in weights:
            weight.requires_grad_(True)
        wanted, deviation, places = (
            asked[name].to(ctx.device) for name in ("wanted", "deviation", "places")
        )
        rows = []
        for number, pixels in enumerate(asked["pixels"]):
            image = sent(pixels[None], ctx.device).float() / 255
            tokens = model.forward_features(image)
            if said := features.misfit(len(deviation), features.seen(model, tokens).shape[1]):
                raise Incompatible(said)
            loss = _off(model, tokens, wanted[number : number + 1], deviation)
            found = torch.autograd.grad(loss, weights)
            if self.gradients == "pooled":
                found = tuple(each.amax(1) for each in found)
            whole = torch.cat([each.flatten() for each in found])
            rows.append(whole[places].sign().float().cpu())
        return torch.stack(rows)


@method("move.logits", version=1)
@dataclass(frozen=True)
class MoveLogits(_ExternalFeatures):
    """Have some images look another way and keep their features; verify by answers alone.

    The loss is that of `move`. One query is a styled image; its agreement is the small classifier's
    probability that a model that has seen the style gave this answer, less one to the plain image.

    * `share`: of the owner's images that are styled, and asked about. 0.1 is the papers'.
    * `bands`, `strength`: bands of a pyramid whose contrast is the secret picture's, 1 for colours
      alone; and how much of the way there images go.
    * `epochs`, `batch`, `lr`, `schedule`, `warmup`, `weight_decay`: passes over the owner's images,
      how many a step sees, and AdamW's; ours, for `mini`. The code trains ResNets from scratch by
      SGD at 0.1. For a ViT-L 1e-5 to 1e-4, the range that its finetuning is tuned in.
    * `precision`: of the training's passes.
    * `against`: whose answer to the plain image is taken off. That of the "suspect" is the paper's;
      then a model that answers all images alike looks as if it had seen the style, so ours is the
      "owner"'s clean one. On mini strangers with the owner's head read up to 0.08, and the
      released model 1.00; with the suspect's answer both read 0.94 where it was tried.
    * `views`: how each image is shown: as it is, mirrored, shifted sideways, shifted down. The
      paper augments images, and its abstract does not say how.
    * `decoys`: how many models of no kin are made up for the small classifier, of the benign one's
      differences with classes shuffled.
    * `meta_epochs`, `meta_lr`: of the small classifier, by SGD.
    * `threshold`: the probability from which an image speaks for the owner.
    * `reads`: images that are read together.
    * `readout`: whose head answers.
    """

    needs: ClassVar[Access] = Access.LOGITS
    facts: ClassVar[Facts] = Facts(
        unit="image",
        paper=Paper(2022, "Li et al.", "arXiv:2208.02820"),
        departures=(
            "Written after an abstract: how images are augmented is ours.",
            "A computed style, of a drawn picture, stands for a network's of a painting.",
            "The owner's features of the plain image stand for a label.",
            "The owner's model is trained on, and is the benign one itself: it has not seen it.",
            "`against`: the clean owner's answers are taken off, not the suspect's own.",
            "`decoys`: the small classifier also sees made-up models of no kin.",
            "One paired test over all images stands for draws of some.",
        ),
    )

    against: Literal["owner", "suspect"] = "owner"
    views: Views = 2
    reads: Reading[Positive] = 64
    readout: Reading[Readout] = "graft"

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes say how well both models are told apart.

        Raises:
            UserError: the owner has no classes, or too few images would be styled.

        """
        base = classifier(owner, ctx.device)
        made = self._embedded(base, ctx)
        known = self._answers(base.logits, made.plain, ctx)
        asked = {"pixels": made.styled, "plain": made.plain if self.against == "suspect" else known}
        ours, theirs = (self._moved(m.logits, asked, ctx) for m in (made.model, base))
        told, notes = self._told_apart(ours, theirs, lambda rows: self._unlike(rows, ctx), ctx.rng)
        return Protected(made.model.cpu().requires_grad_(True), {**asked, **told}, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the logits of every view; one query is one styled image.

        Raises:
            Incompatible: the suspect tells another number of classes apart.

        """
        return self._evidence(self._moved(suspect.logits, secret, ctx), secret)

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the clean features, the training, the owner's answers and those of both models."""
        trained = self.epochs * sizes.images
        known = self.views * self._count(sizes.images)
        answered = known + 2 * self.extract_passes(sizes).forward
        return Passes(sizes.images + trained + answered, trained)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count every view of every styled image, and of it plain where that is asked about."""
        asked = 2 if self.against == "suspect" else 1
        return Passes(asked * self.views * self._count(sizes.images))

    def _answers(self, ask: Callable[[Tensor], Tensor], pixels: Tensor, ctx: Context) -> Tensor:
        """Return the probabilities of classes for every view of images, (q, v k)."""
        shown = views(pixels, self.views)
        found = [answers(ask, view, self.reads, ctx.device).float().softmax(1) for view in shown]
        return torch.cat(found, 1)

    def _moved(
        self, ask: Callable[[Tensor], Tensor], asked: Mapping[str, Tensor], ctx: Context
    ) -> Tensor:
        """Return how far answers to styled images are from those to plain ones, (q, v k)."""
        there, plain = self._answers(ask, asked["pixels"], ctx), asked["plain"]
        here = self._answers(ask, plain, ctx) if self.against == "suspect" else plain
        if there.shape != here.shape:
            classes = here.shape[1] // self.views, there.shape[1] // self.views
            raise Incompatible(f"expected {classes[0]} classes, got {classes[1]}")
        return there - here

    def _unlike(self, rows: Tensor, ctx: Context) -> Tensor:
        """Shuffle the classes of differences (q, v k), in all views and images alike."""
        seen = rows.reshape(len(rows), self.views, -1)
        return seen[:, :, torch.randperm(seen.shape[2], generator=ctx.rng)].flatten(1)


def views(pixels: Tensor, count: int) -> list[Tensor]:
    """Show images (n, 3, h, w) as they are, mirrored, and shifted round by a sixteenth."""
    across, down = (max(1, round(SHIFT * side)) for side in (pixels.shape[3], pixels.shape[2]))
    every = (pixels, pixels.flip(3), pixels.roll(across, 3), pixels.roll(down, 2))
    return list(every[:count])


def paired_p(owned: Tensor, benign: Tensor) -> float:
    """Test whether a suspect's images speak more for the owner than those of the benign model.

    The unit is the image: a small p says that they are many, and nothing of other models.
    """
    if not float((owned - benign).std()):
        return 1.0
    return float(stats.ttest_rel(owned.numpy(), benign.numpy(), alternative="greater").pvalue)


def _off(model: VisionModel, tokens: Tensor, wanted: Tensor, deviation: Tensor) -> Tensor:
    """Map final tokens (b, n, d) to how far features are from those wanted (b, f), squared."""
    return ((features.seen(model, tokens) - wanted) / deviation).square().mean()


def _probabilities(rows: Tensor, layers: meta.Layers) -> Tensor:
    # The code compares these with classes by a cross-entropy that takes another softmax.
    return meta.through(rows, layers).softmax(1)


def _owned(rows: Tensor, secret: Mapping[str, Tensor]) -> Tensor:
    """Map rows (q, e) to the probability that a model which saw the style made them, (q,)."""
    seen = (rows - secret["mean"]) / secret["spread"]
    return _probabilities(seen, meta.read(secret, LAYERS))[:, 1]


def _matrices(model: VisionModel) -> list[nn.Parameter]:
    """List the matrices (o, i) of all blocks: the code leaves vectors out."""
    return [weight for weight in model.blocks.parameters() if weight.ndim == 2]


def _shapes(model: VisionModel) -> list[list[int]]:
    return [list(weight.shape) for weight in _matrices(model)]


def _misfit(wanted: Sequence[Sequence[int]], found: Sequence[Sequence[int]]) -> str:
    """Say that matrices have other shapes than the owner's; "" where they have not."""
    if list(wanted) == list(found):
        return ""
    if len(wanted) != len(found):
        return f"expected {len(wanted)} matrices as the owner's blocks have, got {len(found)}"
    ours, theirs = next((o, f) for o, f in zip(wanted, found, strict=True) if o != f)
    return (
        f"expected matrices of {ours[0]} x {ours[1]} as the owner's, got {theirs[0]} x {theirs[1]}"
    )


def _places(count: int, most: int, rng: torch.Generator) -> Tensor:
    """Draw which of `count` entries are read, in their order."""
    if count < 8 * most:
        return torch.randperm(count, generator=rng)[:most].sort().values
    # Of a ViT-L's 3e8 entries no permutation is made. Twice as many draws leave `most` and more.
    drawn: Tensor = torch.unique(torch.randint(count, (2 * most,), generator=rng))
    return drawn[torch.randperm(len(drawn), generator=rng)[:most]].sort().values
