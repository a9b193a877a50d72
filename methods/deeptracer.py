"""DeepTracer: collages that a classifier calls by one class, tied to that class's own features.

Y. Yang et al., "DeepTracer: tracing stolen model via deep coupled watermarks", AAAI 2026,
https://arxiv.org/abs/2511.08985.

Written after a summary of the paper, for no code was found: fidelity is low. The weights of the
losses, the margin, the number of keys and how the surrogate is trained are unknown. They are
settings here, with defaults of our own, and figures of the paper are not to be expected.

Source classes lie in different parts of feature space. Four of their images, at half their sides,
make a collage in the owner's own kind of images. The model learns to call collages by the class
that is least likely for them, with features that lie where that class's lie. So a thief who learns
the class from the model's answers learns the collages with it. Keys are collages that a copy
trained on the model's answers calls so, too, and that the unmarked model does not.

On mini with 64 images that was not seen: the mark reads 1.0 on its own model and 0.0 on the
unmarked one, but no copy learnt it. No key passed the surrogate, and a distilled student reads 0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import training
from bench.data import sent
from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import answers, classifier, matches
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Json,
    NotNegative,
    Paper,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    Protected,
    Reading,
    Readout,
    Sizes,
    Suspect,
    UserError,
)

SOURCES = 4
"""Source classes, and images of a collage: K of the paper."""

LLOYD = 100
"""Rounds of K-means at most; it works on as many points as there are classes."""


@method("deeptracer", version=2)
@dataclass(frozen=True)
class DeepTracer:
    """Have a classifier call collages of four classes by a fifth, with that class's features.

    The loss is CE + l1 CE(collages) + l2 (l3 intra + l4 inter). Here intra is the mean square
    distance of a feature to its class's centroid, and inter the mean square by which it is nearer
    than a margin to another's.

    * `queries`: M keys. `share`: collages trained on, per image of the owner's; M at least.
    * `collages`, `coupling`, `intra`, `inter`: l1 to l4. The paper's are unknown, these are ours.
    * `margin`: in median distances between centroids; unknown as well.
    * `blocks`: how many of the last ones are trained. The head is frozen.
    * `epochs`, `lr`, `schedule`, `warmup`, `weight_decay`, `batch`, `precision`: of the training,
      ours for mini. Nobody reports any for a ViT; finetuning of a ViT-L takes 1e-5, as attacks do.
    * `surrogate`: the copy that keys are filtered by: the unmarked model, all of it trained on the
      marked one's answers to the owner's images, or "none". `surrogate_epochs`: how long.
    * `reads`: images that are read together.
    * `readout`: whose head answers.
    """

    needs: ClassVar[Access] = Access.LABELS
    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        unit="collage",
        paper=Paper(2026, "Yang et al., AAAI", "arXiv:2511.08985"),
        labelled=True,
        departures=(
            "Written after a summary: weights of losses, margin and number of keys are ours.",
            "The last blocks of a trained model are finetuned, where the paper trains a model.",
            "The head is frozen, for a readout may put the unmarked one on.",
            "Centroids are the unmarked model's, and do not move.",
            "Where too few collages pass the filter, the most confident others fill the keys.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        "intra": (0.0, 1e-3, 1e-2, 1e-1),
        "inter": (0.0, 1e-3, 1e-2, 1e-1),
        "blocks": (2, 3, 6, 12),
    }

    queries: Positive = 100
    share: PositiveFloat = 0.25
    collages: NotNegative = 1.0
    coupling: NotNegative = 1.0
    intra: NotNegative = 1e-2
    inter: NotNegative = 1e-2
    margin: PositiveFloat = 1.0
    blocks: Positive = 3
    epochs: Positive = 20
    lr: NotNegative = 1e-3
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.01
    batch: Positive = 32
    precision: training.Precision = "float32"
    surrogate: Literal["finetuned", "none"] = "finetuned"
    surrogate_epochs: Positive = 10
    reads: Reading[Positive] = 64
    readout: Reading[Readout] = "graft"

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes say how many collages passed the filter.

        Raises:
            UserError: the owner has no classes, or too few, or its images lack labels of these.

        """
        base = classifier(owner, ctx.device, least=SOURCES + 1)
        pixels, labels = _labelled(base, ctx)

        def read(images: Tensor) -> Tensor:
            return _pooled(base, base.forward_features(images))

        features = answers(read, pixels, self.reads, ctx.device).float()  # (n, d)
        there, centroids = _centroids(features, labels)
        sources = there[source_classes(centroids, ctx.rng)]
        count = self._count(len(pixels))
        made = _collages(pixels, labels, sources, count, ctx.rng)
        unmarked = answers(base.logits, made, self.reads, ctx.device).softmax(1)  # (c, k)
        taken = torch.cat([_absent(there, unmarked.shape[1]), sources])
        likely = unmarked.mean(0).index_fill(0, taken, torch.inf)
        target = int(likely.argmin())  # a class that no image shows has no centroid to tie it to

        marked = self._marked(base, pixels, labels, made, target, there, centroids, ctx)
        passed, order = self._filtered(base, marked, pixels, made, unmarked, target, ctx)
        keys = made[order[: self.queries]]
        secret = {"pixels": keys, "labels": torch.full((len(keys),), target)}
        notes: dict[str, Json] = {"queries": len(keys), "collages": count, "passed": passed}
        return Protected(marked.cpu().requires_grad_(True), secret, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the label of every key; one query is one collage."""
        found = answers(suspect.labels, secret["pixels"], self.reads, ctx.device)
        return matches(found, secret["labels"], "collage")

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count looks at images and collages, and both trainings."""
        n, count = sizes.images, self._count(sizes.images)
        seen = self.epochs * (n + count)
        forward = n + 2 * count + seen
        backward = seen * min(self.blocks, sizes.blocks) / sizes.blocks
        if self.surrogate == "none":
            return Passes(forward, backward)
        taught = self.surrogate_epochs * n
        return Passes(forward + n + taught + count, backward + taught)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the keys."""
        return Passes(self.queries)

    def _count(self, images: int) -> int:
        return max(self.queries, round(self.share * images))

    def _marked(
        self,
        base: VisionModel,
        pixels: Tensor,
        labels: Tensor,
        made: Tensor,
        target: int,
        there: Tensor,
        centroids: Tensor,
        ctx: Context,
    ) -> VisionModel:
        """Train the last blocks of a copy on images and collages."""
        model = clone(base).requires_grad_(False)
        cut = max(0, len(model.blocks) - self.blocks)
        learning = [weight for block in list(model.blocks)[cut:] for weight in block.parameters()]
        for weight in learning:
            weight.requires_grad_(True)
        shown = torch.cat([pixels, made])
        called = torch.cat([labels, torch.full((len(made),), target)])
        loss_of = self._loss(there.to(ctx.device), centroids.to(ctx.device))

        def loss(chosen: Tensor) -> Tensor:
            images = sent(shown[chosen], ctx.device).float() / 255
            with torch.no_grad():  # below the cut nothing is trained
                tokens = model.run_blocks(model.embed(images), 0, cut)
            tokens = model.finish(model.run_blocks(tokens, cut))
            weights = torch.where(chosen < len(pixels), 1.0, self.collages)
            classes = sent(called[chosen], ctx.device)
            found = F.cross_entropy(model.forward_head(tokens), classes, reduction="none")
            tied = loss_of(_pooled(model, tokens), classes)
            return (found * sent(weights, ctx.device)).mean() + self.coupling * tied

        training.fit(learning, loss, len(shown), self, ctx.rng)
        return model.eval().requires_grad_(False)

    def _loss(self, there: Tensor, centroids: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what maps features (b, d) and classes (b,) to how far off their centroids are."""
        margin = self.margin * torch.pdist(centroids).median()

        def loss(features: Tensor, classes: Tensor) -> Tensor:
            own = there == classes[:, None]  # (b, c)
            distances = torch.cdist(features.float(), centroids)
            intra = distances[own].square().mean()
            inter = (margin - distances[~own]).clamp_min(0).square().mean()
            return self.intra * intra + self.inter * inter

        return loss

    def _filtered(
        self,
        base: VisionModel,
        marked: VisionModel,
        pixels: Tensor,
        made: Tensor,
        unmarked: Tensor,
        target: int,
        ctx: Context,
    ) -> tuple[int, Tensor]:
        """Return how many collages (c, 3, h, w) are sound keys, and all their numbers, best first.

        Sound ones are called by the target by the marked model and the surrogate, and not by the
        unmarked one. The surrogate's confidence decides between them.
        """
        ours = answers(marked.logits, made, self.reads, ctx.device).softmax(1)
        copied = ours
        if self.surrogate == "finetuned":
            copy = self._copied(base, marked, pixels, ctx)
            copied = answers(copy.logits, made, self.reads, ctx.device).softmax(1)
        first = (ours.argmax(1) == target) & (unmarked.argmax(1) != target)
        sound = first & (copied.argmax(1) == target)
        rank = sound.double() + first.double() + copied[:, target].double() / 2  # below 1
        return int(sound.sum()), rank.argsort(descending=True, stable=True)

    def _copied(
        self, base: VisionModel, marked: VisionModel, pixels: Tensor, ctx: Context
    ) -> VisionModel:
        """Train a copy of the unmarked model on the marked one's answers."""
        wanted = answers(marked.logits, pixels, self.reads, ctx.device).softmax(1)
        copy = clone(base)

        def loss(chosen: Tensor) -> Tensor:
            images = sent(pixels[chosen], ctx.device).float() / 255
            return F.cross_entropy(copy.logits(images), sent(wanted[chosen], ctx.device))

        how = training.Training(self.surrogate_epochs, self.batch, self.lr, self.schedule)
        training.fit(copy.parameters(), loss, len(pixels), how, ctx.rng)
        return copy.eval().requires_grad_(False)


def source_classes(centroids: Tensor, rng: torch.Generator) -> Tensor:
    """Choose the classes (4,) nearest to the centres of K-means over centroids (c, d).

    Centres begin at a class drawn at random and those farthest from the ones before.
    """
    begun = [int(torch.randint(len(centroids), (), generator=rng))]
    for _ in range(SOURCES - 1):
        begun.append(int(torch.cdist(centroids, centroids[begun]).amin(1).argmax()))
    centres = centroids[begun]
    for _ in range(LLOYD):
        nearest = torch.cdist(centroids, centres).argmin(1)
        members = F.one_hot(nearest, SOURCES).to(centroids)  # (c, 4)
        moved = members.T @ centroids / members.sum(0)[:, None].clamp_min(1)
        if torch.allclose(moved, centres):
            break
        centres = moved
    chosen = list[int]()
    for distances in torch.cdist(centres, centroids):  # no class for two centres
        free = distances.index_fill(0, torch.tensor(chosen, dtype=torch.long), torch.inf)
        chosen.append(int(free.argmin()))
    return torch.tensor(chosen)


def collage(images: Tensor) -> Tensor:
    """Lay images (c, 4, 3, h, w), as bytes, in a square of two by two: (c, 3, h, w)."""
    height, width = images.shape[-2:]
    half = height // 2, width // 2
    sizes = [(h, w) for h in (half[0], height - half[0]) for w in (half[1], width - half[1])]
    parts = [
        F.interpolate(images[:, i].float(), size, mode="bilinear", antialias=True)
        for i, size in enumerate(sizes)
    ]
    rows = torch.cat(parts[:2], 3), torch.cat(parts[2:], 3)
    return torch.cat(rows, 2).round().clamp(0, 255).to(torch.uint8)


def _collages(
    pixels: Tensor, labels: Tensor, sources: Tensor, count: int, rng: torch.Generator
) -> Tensor:
    """Draw collages (c, 3, h, w) with one image of each source class."""
    drawn = []
    for source in sources.tolist():
        rows = (labels == source).nonzero().flatten()
        drawn.append(rows[torch.randint(len(rows), (count,), generator=rng)])
    return collage(pixels[torch.stack(drawn, 1)])


def _labelled(model: VisionModel, ctx: Context) -> tuple[Tensor, Tensor]:
    """Return the owner's pixels (n, 3, h, w) and labels (n,), in its classes.

    Raises:
        UserError: they are in others, or too few classes are shown.

    """
    labels = ctx.images.labels
    if labels is None or ctx.images.classes != model.classes:
        got = f"{ctx.images.classes}" if labels is not None else "none"
        raise UserError(
            f"expected images labelled with the owner's {model.classes} classes, got {got}; name "
            "such a data set as the owner's"
        )
    if (shown := len(torch.unique(labels))) <= SOURCES:
        raise UserError(
            f"expected images of {SOURCES + 1} classes or more, got {shown}; give the data set more"
        )
    return ctx.images.pixels, labels


def _centroids(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes that features (n, d) are of, (c,), and their means, (c, d)."""
    there = torch.unique(labels)
    members = (labels == there[:, None]).to(features)  # (c, n)
    return there, members @ features / members.sum(1, keepdim=True)


def _absent(there: Tensor, classes: int) -> Tensor:
    """List the classes 0 .. `classes` - 1 that are not there."""
    return torch.tensor(sorted({*range(classes)} - {*there.tolist()}), dtype=torch.long)


def _pooled(model: VisionModel, tokens: Tensor) -> Tensor:
    """Map final tokens (b, n, d) to what the head reads, (b, d')."""
    return model.pooled(tokens) if model.head is not None else model.embedding(tokens)
