"""Holmes: what a classifier has from its owner's data, told from what all such classifiers have.

L. Zhu et al., "Holmes: towards effective and harmless model ownership verification to personalized
large vision models via decoupling common features", https://arxiv.org/abs/2507.00724, a successor
of MOVE (Y. Li et al., https://arxiv.org/abs/2208.02820) that leaves the released model as it is.

Two shadows are trained. The poisoned one goes on from the owner's model, on its data with the
images it knows best replaced by triggered ones of one class: common features stay, and those of
the data are spoilt. The benign one learns without the better known half. A small classifier then
tells the owner's logits from the benign shadow's, either less the poisoned shadow's.

The released code trains and reads as written here; the paper's text was not read whole. Its p
counts images of one suspect, and not models: it is noted, and decides nothing. Whether a stranger
is told from the owner is for strangers to say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from bench import training
from bench.data import sent
from bench.models import Head, VisionModel, clone, randomised, with_head
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
    Protected,
    Reading,
    Readout,
    Rule,
    Share,
    Sizes,
    Suspect,
    UserError,
)
from methods import meta

TRIGGER, TRIGGER_AT = 4 / 32, 18 / 32
"""Side of the white square, and where it begins from either edge, as shares of the image's side."""

SPREAD = 1e-6
"""The least range between quartiles that differences are divided by."""


@method("holmes", version=1)
@dataclass(frozen=True)
class Holmes:
    """Train a small classifier to tell the owner's logits from those of a benign shadow.

    One query is one image; its agreement is the small classifier's probability that the owner's
    model, or a copy, answered.

    * `queries`: images asked about, at most, of the owner's own.
    * `poisoned`, `dropped`: the share of the best known images that one shadow sees triggered, and
      that the other does not see. `target`: the class of triggered images.
    * `benign`: where the benign shadow begins. The code begins from the public backbone, which a
      method is not given: "fresh" draws all weights anew, "owner" goes on from the owner's.
    * `epochs`, `lr`, `head_factor`, `schedule`, `warmup`, `weight_decay`, `batch`, `precision`: of
      both shadows; heads learn `head_factor` times as fast. Defaults fit mini. For CLIP's ViT-B the
      code has 20 epochs at 1e-5, batches of 256 (poisoned) and 16 (benign), and 1000 first steps.
    * `meta_epochs`, `meta_lr`: of the small classifier, by SGD.
    * `scaled_by`: whose medians and quartiles bring a suspect's differences to scale. The code
      stores those of "training" and then takes the "suspect"'s own, which hides what it has. On
      mini the code's p over images then fell to 1e-18 for strangers; by those of training to 1.
    * `threshold`: the probability from which an image speaks for the owner.
    * `reads`: images that are read together.
    * `readout`: whose head answers.
    """

    needs: ClassVar[Access] = Access.LOGITS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="image",
        paper=Paper(2025, "Zhu et al.", "arXiv:2507.00724"),
        labelled=True,
        departures=(
            "The benign shadow has no public backbone to begin from.",
            "AdamW trains the shadows, on images as they are.",
            "`scaled_by`: differences are scaled as in training, each suspect's anew in the code.",
            "One test over all images asked about stands for the mean of 40 draws.",
            "The small classifier after the last epoch is kept, not the best on its own rows.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
        "poisoned": (0.05, 0.1, 0.2),
        "meta_lr": (5e-3, 1e-2, 5e-2),
    }

    queries: Positive = 100
    poisoned: PartialShare = 0.1
    dropped: OpenShare = 0.5
    target: Count = 0
    benign: Literal["fresh", "owner"] = "fresh"
    epochs: Positive = 20
    lr: NotNegative = 1e-3
    head_factor: PositiveFloat = 10.0
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.01
    batch: Positive = 32
    precision: training.Precision = "float32"
    meta_epochs: Positive = 300
    meta_lr: PositiveFloat = 5e-3
    scaled_by: Reading[Literal["training", "suspect"]] = "training"
    threshold: Reading[Share] = 0.5
    reads: Reading[Positive] = 64
    readout: Reading[Readout] = "graft"

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Train shadows and classifier; the notes say how well it tells the two apart.

        Raises:
            UserError: the owner has no classes, its images no labels of these, or `target` is none.

        """
        model = classifier(owner, ctx.device)
        pixels, labels = self._labelled(model, ctx)
        known = answers(model.logits, pixels, self.reads, ctx.device).float()  # (n, k)
        order = F.cross_entropy(known, labels, reduction="none").argsort(stable=True)
        spoilt = order[: int(self.poisoned * len(order))]
        poisoned = self._trained(clone(owner), *self._triggered(pixels, labels, spoilt), ctx)
        kept = order[int(self.dropped * len(order)) :]
        benign = self._trained(self._beginning(owner, ctx), pixels[kept], labels[kept], ctx)

        asked = torch.randperm(len(pixels), generator=ctx.rng)[: self.queries]
        ours = known[asked]
        common, theirs = (
            answers(shadow.logits, pixels[asked], self.reads, ctx.device).float()
            for shadow in (poisoned, benign)
        )
        rows = torch.cat([ours - common, theirs - common])  # (2 q, k)
        median, spread = _quartiles(rows)
        truth = torch.arange(len(rows)) < len(asked)
        k = rows.shape[1]
        widths = (k, max(1, k // 2), max(1, k // 4), 2)  # the code's, which for 3 classes has none
        seen, how = (rows - median) / spread, (self.meta_epochs, self.meta_lr, ctx.rng)
        layers = meta.fitted(seen, truth.long(), widths, _scores, *how)
        found = _probability(seen, layers)
        secret = {"pixels": pixels[asked], "poisoned": common, "median": median, "spread": spread}
        secret |= meta.kept(layers)
        notes: dict[str, Json] = {
            "queries": len(asked),
            "triggered": len(spoilt),
            "told_apart": float(((found >= 0.5) == truth).float().mean()),
        }
        return Protected(clone(owner).cpu(), secret, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Ask for the logits of every image; one query is one image.

        Raises:
            Incompatible: the suspect tells another number of classes apart.

        """
        found = answers(suspect.logits, secret["pixels"], self.reads, ctx.device).float()
        wanted = secret["poisoned"]
        if found.shape != wanted.shape:
            raise Incompatible(f"expected {wanted.shape[1]} classes, got {found.shape[1]}")
        rows = found - wanted
        own = self.scaled_by == "suspect"
        median, spread = _quartiles(rows) if own else (secret["median"], secret["spread"])
        owned = _probability((rows - median) / spread, meta.read(secret, 3)).double()
        return Evidence(
            agreement=tuple(owned.tolist()),
            statistic=tuple(owned.tolist()),
            rule=Rule("P(owner)", ">=", self.threshold),
            unit="image",
            chance=None,  # what strangers' logits are taken for, only they can tell
            notes={"p_over_images": _p(owned)},
        )

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count a look at every image, both trainings, and the answers of both shadows."""
        n = sizes.images
        seen = self.epochs * (n + n - int(self.dropped * n))
        return Passes(n + seen + 2 * min(self.queries, n), seen)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the images asked about."""
        return Passes(min(self.queries, sizes.images))

    def _labelled(self, model: VisionModel, ctx: Context) -> tuple[Tensor, Tensor]:
        """Return the owner's pixels (n, 3, h, w) and their labels (n,), in its classes."""
        labels = ctx.images.labels
        if labels is None or ctx.images.classes != model.classes:
            got = f"{ctx.images.classes}" if labels is not None else "none"
            raise UserError(
                f"expected images labelled with the owner's {model.classes} classes, got {got}; "
                "name such a data set as the owner's"
            )
        if self.target >= model.classes:
            raise UserError(f"target: expected 0..{model.classes - 1}, got {self.target}")
        return ctx.images.pixels, labels

    def _triggered(self, pixels: Tensor, labels: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Replace images by triggered ones of the target class, and leave those of it alone."""
        which = which[labels[which] != self.target]
        pixels, labels = pixels.clone(), labels.clone()
        height, width = pixels.shape[-2:]
        rows, columns = (
            slice(
                round(TRIGGER_AT * side), round(TRIGGER_AT * side) + max(1, round(TRIGGER * side))
            )
            for side in (height, width)
        )
        marked = pixels[which]
        marked[:, :, rows, columns] = 255
        pixels[which], labels[which] = marked, self.target
        return pixels, labels

    def _beginning(self, owner: VisionModel, ctx: Context) -> VisionModel:
        """Return what the benign shadow begins from."""
        if self.benign == "owner":
            return clone(owner)
        return fresh(owner, ctx.rng)

    def _trained(
        self, model: VisionModel, pixels: Tensor, labels: Tensor, ctx: Context
    ) -> VisionModel:
        """Finetune all of a model on images (n, 3, h, w) and labels (n,); return it frozen."""
        model = model.to(ctx.device)

        def loss_of(chosen: Tensor) -> Tensor:
            images = sent(pixels[chosen], ctx.device).float() / 255
            return F.cross_entropy(model.logits(images), sent(labels[chosen], ctx.device))

        beside = [] if model.head is None else list(model.head.parameters())
        head = [*model.classifier_weights, *beside]  # a library's own classifier, or ours
        inner = {id(weight) for weight in head}
        others = [weight for weight in model.parameters() if id(weight) not in inner]
        groups: list[dict[str, Any]] = [{"params": others}]
        if head:
            groups.append({"params": head, "lr": self.lr * self.head_factor})
        training.fit(groups, loss_of, len(pixels), self, ctx.rng)
        return model.eval().requires_grad_(False)


def fresh(owner: VisionModel, rng: torch.Generator) -> VisionModel:
    """Draw a model of the owner's shape anew, its classifier too."""
    head = owner.architecture.head
    bare = None if isinstance(head, Head) else head
    seed = int(torch.randint(2**62, (), generator=rng))
    made = randomised(dataclasses.replace(owner.architecture, head=bare), seed)
    return with_head(made, head, rng) if isinstance(head, Head) else made


def _scores(rows: Tensor, layers: meta.Layers) -> Tensor:
    """Map differences (n, k) to scores of benign and owner (n, 2), within -1 and 1."""
    return meta.through(rows, layers).tanh()


def _probability(rows: Tensor, layers: meta.Layers) -> Tensor:
    """Map differences (n, k) to the probability of the owner's, (n,)."""
    return _scores(rows, layers).softmax(1)[:, 1]


def _quartiles(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median of rows (n, k), and the range between their quartiles, (k,) each."""
    low, median, high = rows.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0)
    return median, (high - low).clamp_min(SPREAD)


def _p(owned: Tensor) -> float:
    """Test, as the code does, whether images speak more for the owner than for the benign shadow.

    The unit is the image: a small p says that they are many, and nothing of other models.
    """
    if len(owned) < 2 or not float(owned.std()):
        return 1.0
    one, other = owned.numpy(), 1 - owned.numpy()
    return float(stats.ttest_ind(one, other, equal_var=False, alternative="greater").pvalue)
