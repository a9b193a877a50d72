"""Teach an untrained student a stolen model's answers, so that none of its weights is passed on.

The student has the victim's architecture, or one of the thief's own choice, and fresh weights drawn
from the thief's generator. It sees the thief's images without labels and, unless told otherwise, as
they are. What the victim answers is asked once. The sources train with SGD or Adam on surrogate
sets up to the size of ImageNet; here as elsewhere in the bench it is AdamW, on the thief's pool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.inputs import view
from attacks.matching import Comparison, answers, compare, final_tokens, token_distance
from bench import training
from bench.data import Images, sent
from bench.models import Architecture, Head, VisionModel, aside, narrow, randomised, with_head
from bench.registry import attack
from bench.types import (
    Access,
    Change,
    Context,
    Count,
    Incompatible,
    Later,
    NotNegative,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    Sizes,
    UserError,
)


@attack("distill.features")
@dataclass(frozen=True, slots=True)
class DistilFeatures:
    """Train a student to give the victim's final tokens, the CLS token and the patches alike.

    The loss is 1 - cosine + mean squared error, of the CLS token (and registers) and of the
    patches, each averaged over its tokens, then added. Others match the embedding alone, which is
    all that a service hands out.

    Source: Y. Liu, J. Jia, H. Liu, N. Z. Gong, "StolenEncoder: stealing pre-trained encoders in
    self-supervised learning", arXiv:2201.05889; there the embedding alone is matched.

    * `data`: the data set whose images the thief asks about; none: the probe's.
    * `width`: that of a narrower student (timm's vision transformers only); it answers through a
      linear map, which is thrown away.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises.
    * `weight_decay`: AdamW's.
    * `precision`: of the student's passes.
    * `loss`: of final "tokens", or of the embedding: "mse", "cosine", "infonce" among the images of
      a batch, or "relational", which adds a relation to one of its own image.
    * `temperature`: of "infonce" and "relational".
    * `queries`: how many answers the thief asks for, at most; none: one, or one a view, for every
      image. 500, 5,000 and 50,000 are a sweep.
    * `views`: crops of each image that the victim is asked about; 0: the image itself. The student
      learns one of them in a step, and with "relational" the mean of their directions.
    * `augment`: what the student sees: images as they are, crops ("student"), or both ("beside").
    * `augment_weight`: of the crops' loss beside the other.
    * `student`, `student_size`: its architecture, "library:name" or a name of the victim's library,
      and the side of its images; none: the victim's, or what the library says.
    """

    data: str | None = None
    width: Positive | None = None
    epochs: Positive = 20
    lr: NotNegative = 1e-3
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.05
    precision: training.Precision = "float32"
    loss: Later[Literal["tokens", "mse", "cosine", "infonce", "relational"]] = "tokens"
    temperature: Later[PositiveFloat] = 0.07
    queries: Later[Positive | None] = None
    views: Later[Count] = 0
    augment: Later[Literal["none", "student", "beside"]] = "none"
    augment_weight: Later[PositiveFloat] = 1.0
    student: Later[str | None] = None
    student_size: Later[Positive | None] = None

    offers: ClassVar[Access] = Access.ENCODER
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "extraction"

    def looks_at(self, images: int) -> int:
        """Count the images that the victim is asked about."""
        return min(images, _affordable(self.queries, self.views, images))

    def victim_queries(self, images: int) -> int:
        """Count the victim's answers, of every view one."""
        return self.looks_at(images) * max(1, self.views)

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, and every epoch of the student there and back."""
        seen = self.epochs * self.looks_at(sizes.images) * (2 if self.augment == "beside" else 1)
        return Passes(self.victim_queries(sizes.images) + seen, seen)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the student, which has no head; notes say the last epoch's loss."""
        if self.loss == "tokens" and (self.views or self.augment != "none"):
            raise UserError(
                "distill.features: loss: expected mse, cosine, infonce or relational with views or "
                "augment, got tokens, which lie elsewhere in a crop"
            )
        student = student_of(victim, None, ctx, self.student, self.student_size)
        if self.width is not None:
            _make_narrower(student, self.width)
        images = asked_about(ctx, self.queries, self.views)
        if self.loss == "tokens":
            widen, loss_of = self._by_token(victim, student, images, ctx)
        else:
            widen, loss_of = self._by_embedding(self.loss, victim, student, images, ctx)
        learnt = [*student.parameters(), *widen.parameters()]
        return taught(student, learnt, loss_of, len(images), self, ctx)

    def _by_token(
        self, victim: VisionModel, student: VisionModel, images: Images, ctx: Context
    ) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """Return a map to the victim's width, and the loss of indices (b,)."""
        widen = _map(student.num_features, victim.num_features, ctx)
        wanted = answers(victim, images, final_tokens, ctx.device)  # (n, t, d)
        if self.student is not None and _shape(student, ctx, final_tokens)[0] != wanted.shape[1]:
            raise UserError(
                f"distill.features: student: expected {wanted.shape[1]} tokens like the victim's, "
                f"got a {student.architecture.name}; take another, or loss: mse"
            )

        def loss_of(chosen: Tensor) -> Tensor:
            found = widen(final_tokens(student, images.batch(chosen, ctx.device)))  # (b, t, d)
            return token_distance(found, sent(wanted[chosen], ctx.device), victim.prefix)

        return widen, loss_of

    def _by_embedding(
        self,
        kind: Comparison,
        victim: VisionModel,
        student: VisionModel,
        images: Images,
        ctx: Context,
    ) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """Return a map to the victim's width, and the loss of indices (b,)."""
        told = [answers(victim, images, ask, ctx.device) for ask in self._asks(ctx.rng)]
        known = torch.stack(told, dim=1)  # (n, v, d)
        if kind == "relational":
            known = F.normalize(known.float(), dim=-1).mean(1, keepdim=True)
        (own,) = _shape(student, ctx, VisionModel.features)
        widen = _map(own, known.shape[-1], ctx)

        def apart(seen: Tensor, wanted: Tensor) -> Tensor:
            return compare(kind, widen(student.features(seen)), wanted, self.temperature)

        def loss_of(chosen: Tensor) -> Tensor:
            which = torch.randint(known.shape[1], (len(chosen),), generator=ctx.rng)
            wanted = sent(known[chosen, which], ctx.device)  # (b, d)
            plain = images.batch(chosen, ctx.device)
            if self.augment == "none":
                return apart(plain, wanted)
            beside = apart(view(plain, ctx.rng), wanted)
            if self.augment == "student":
                return beside
            return apart(plain, wanted) + self.augment_weight * beside

        return widen, loss_of

    def _asks(self, rng: torch.Generator) -> list[Callable[[VisionModel, Tensor], Tensor]]:
        """List how the victim is asked for an embedding: of images as they are, or of views."""

        def crop(model: VisionModel, images: Tensor) -> Tensor:
            return model.features(view(images, rng))

        return [crop] * self.views if self.views else [VisionModel.features]


@attack("distill.logits")
@dataclass(frozen=True, slots=True)
class DistilLogits:
    """Train a student, with a head like the victim's, to give the victim's softened scores.

    The loss is T^2 KL(victim || student) at temperature T, and no label is seen.

    Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network",
    arXiv:1503.02531; as an attack with T = 3, soft labels only and 60 epochs in N. Lukas et al.,
    "SoK: how robust is image classification deep neural network watermarking?", arXiv:2108.04974.

    * `data`: the data set whose images the thief asks about; none: the probe's.
    * `temperature`: T.
    * `epochs`, `batch`: passes over the thief's images, and images in a step.
    * `lr`, `schedule`, `warmup`: the peak learning rate, how it goes on, and the share of the steps
      in which it rises.
    * `weight_decay`: AdamW's.
    * `precision`: of the student's passes.
    """

    data: str | None = None
    temperature: PositiveFloat = 3.0
    epochs: Positive = 60
    lr: NotNegative = 1e-3
    batch: Positive = 32
    schedule: training.Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.05
    precision: training.Precision = "float32"

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "extraction"
    uses_head: ClassVar[bool] = True

    def victim_queries(self, images: int) -> int:
        """Count the victim's answers, one an image."""
        return images

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, and every epoch of the student there and back."""
        seen = self.epochs * sizes.images
        return Passes(sizes.images + seen, seen)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the student with its head; notes say the last epoch's loss."""
        head, t = classifier_of(victim, "distill.logits"), self.temperature
        student = student_of(victim, head, ctx)
        logits = answers(victim, ctx.images, VisionModel.logits, ctx.device)  # (n, k)
        wanted = F.log_softmax(logits / t, dim=1)

        def loss_of(chosen: Tensor) -> Tensor:
            found = student.logits(ctx.images.batch(chosen, ctx.device)) / t  # (b, k)
            target = sent(wanted[chosen], ctx.device)
            known = F.log_softmax(found, dim=1, dtype=torch.float32)
            return t**2 * F.kl_div(known, target, reduction="batchmean", log_target=True)

        return taught(student, [*student.parameters()], loss_of, len(ctx.images), self, ctx)


def classifier_of(victim: VisionModel, who: str) -> Head | Literal["own"]:
    """Return the victim's classifier in words.

    Raises:
        Incompatible: it has none.

    """
    head = victim.architecture.head
    if head == "own" or isinstance(head, Head):
        return head
    raise Incompatible(
        f"{who}: expected a victim that classifies, got {victim.architecture.name}"
        " without a classification head; put finetune.classify before it"
    )


def asked_about(ctx: Context, queries: int | None, views: int) -> Images:
    """Draw the images that so many queries pay for; all of them, and no draw, without a limit.

    Raises:
        UserError: the thief has fewer images, or too few queries for one.

    """
    if queries is None:
        return ctx.images
    each, most = max(1, views), len(ctx.images) * max(1, views)
    if not each <= queries <= most:
        raise UserError(
            f"distill: queries: expected {each} to {most}, for the thief has {len(ctx.images)} "
            f"images, got {queries}; take as many, or give the data set more"
        )
    chosen = torch.randperm(len(ctx.images), generator=ctx.rng)[: queries // each]
    return ctx.images.subset(chosen.tolist())


def _affordable(queries: int | None, views: int, images: int) -> int:
    return images if queries is None else queries // max(1, views)


def student_of(
    victim: VisionModel,
    head: Head | Literal["own"] | None,
    ctx: Context,
    name: str | None = None,
    size: int | None = None,
) -> VisionModel:
    """Make an untrained model of the victim's architecture, whose weights are not read.

    `name` is that of another architecture, "library:name" or one of the victim's library.
    """
    bare = None if isinstance(head, Head) else head
    seed = int(torch.randint(2**62, (), generator=ctx.rng))
    if name is None:
        student = randomised(dataclasses.replace(victim.architecture, head=bare), seed)
    else:
        library, _, model = name.rpartition(":")
        described = Architecture(library or victim.architecture.library, model, size, bare)
        try:
            student = randomised(described, seed)
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:  # libraries say in many ways that they lack it
            raise UserError(
                f"distill: student: expected a model of {described.library}'s, got '{model}' "
                f"({error})"
            ) from error
    if isinstance(head, Head):
        student = with_head(student, head, ctx.rng)
    return student.to(ctx.device)


def _make_narrower(student: VisionModel, width: int) -> None:
    if width > student.width:
        raise UserError(
            f"distill.features: width: expected the victim's {student.width} or less, got {width}"
        )
    narrow(student, "width", width)


def _map(width: int, wider: int, ctx: Context) -> nn.Module:
    """Draw what brings tokens (b, t, width) to the victim's width; nothing if they have it."""
    if width == wider:
        return nn.Identity()
    # By way of "meta": a layer made on the CPU draws its first weights on the global generator.
    made = nn.Linear(width, wider, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        made.weight.normal_(std=width**-0.5, generator=ctx.rng)
        made.bias.zero_()
    return made.to(ctx.device)


def _shape(
    student: VisionModel, ctx: Context, ask: Callable[[VisionModel, Tensor], Tensor]
) -> Sequence[int]:
    """Return the shape of a student's answer to one image, by a pass that nobody counts."""
    blank = torch.zeros(1, 3, *student.preprocess.size, device=ctx.device)
    with aside(ctx.device), torch.no_grad():
        return ask(student.eval(), blank).shape[1:]


def taught(
    student: VisionModel,
    parameters: list[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    count: int,
    how: training.TrainingSettings,
    ctx: Context,
) -> VisionModel:
    """Train a student on the indices 0 .. count - 1; notes say the last epoch's loss."""
    student.train()  # one with batch norms gathers its own statistics
    with _lone_values(student):
        fit = training.fit(parameters, loss_of, count, how, ctx.rng)
    student.notes = {"final_loss": fit.losses[-1], "steps": fit.steps}
    return student.eval()


@contextmanager
def _lone_values(model: nn.Module) -> Iterator[None]:
    """Have batch norms take what they know where a batch has one value a channel, and no spread.

    Behind a pooled map one image is such a batch, which PyTorch refuses.
    """
    asleep = set[nn.Module]()

    def before(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        if norm.training and given[0].numel() == given[0].shape[1]:
            asleep.add(norm.eval())

    def after(norm: nn.Module, _given: object, _found: object) -> None:
        if norm in asleep:
            asleep.remove(norm.train())

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(before) for norm in norms]
    hooks += [norm.register_forward_hook(after) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
