"""Teach an untrained student a stolen model's answers, so that none of its weights is passed on.

The student has the victim's architecture and fresh weights drawn from the thief's generator; it
sees the thief's images as they are, without labels and without augmentation. What the victim
answers is therefore computed once. The sources train with SGD or Adam on surrogate sets up to the
size of ImageNet; here as elsewhere in the bench it is AdamW, on the thief's pool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import training
from bench.data import Images, sent
from bench.models import Head, VisionModel, clone, narrow, randomised, with_head
from bench.registry import attack
from bench.training import in_batches
from bench.types import (
    Access,
    Change,
    Context,
    Incompatible,
    NotNegative,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    Sizes,
    UserError,
)

TEACHER_BATCH = 64
"""Images the victim answers for at a time; no answer depends on it."""


@attack("distill.features")
@dataclass(frozen=True, slots=True)
class DistilFeatures:
    """Train a student to give the victim's final tokens, the CLS token and the patches alike.

    The loss is 1 - cosine + mean squared error, of the CLS token (and registers) and of the
    patches, each averaged over its tokens, then added.

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

    offers: ClassVar[Access] = Access.ENCODER
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = True
    change: ClassVar[Change] = "extraction"

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, and every epoch of the student there and back."""
        return _passes(self, sizes)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the student, which has no head; notes say the last epoch's loss."""
        student = _student(victim, None, ctx)
        if self.width is not None:
            _make_narrower(student, self.width)
        widen = _map(student.num_features, victim.num_features, ctx)
        wanted = _answers(victim, ctx.images, _tokens, ctx.device)  # (n, t, d)
        prefix = victim.prefix

        def loss_of(chosen: Tensor) -> Tensor:
            found = widen(_tokens(student, ctx.images.batch(chosen, ctx.device)))  # (b, t, d)
            target = sent(wanted[chosen], ctx.device)
            loss = _distance(found[:, prefix:], target[:, prefix:])
            return loss + _distance(found[:, :prefix], target[:, :prefix]) if prefix else loss

        return _taught(student, [*student.parameters(), *widen.parameters()], loss_of, self, ctx)


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

    def passes(self, sizes: Sizes) -> Passes:
        """Count the victim's answers, and every epoch of the student there and back."""
        return _passes(self, sizes)

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        """Return the student with its head; notes say the last epoch's loss."""
        head, t = victim.architecture.head, self.temperature
        if not (head == "own" or isinstance(head, Head)):
            raise Incompatible(
                f"distill.logits: expected a victim that classifies, got {victim.architecture.name}"
                " without a classification head; put finetune.classify before it"
            )
        student = _student(victim, head, ctx)
        logits = _answers(victim, ctx.images, VisionModel.logits, ctx.device)  # (n, k)
        wanted = F.log_softmax(logits / t, dim=1)

        def loss_of(chosen: Tensor) -> Tensor:
            found = student.logits(ctx.images.batch(chosen, ctx.device)) / t  # (b, k)
            target = sent(wanted[chosen], ctx.device)
            known = F.log_softmax(found, dim=1, dtype=torch.float32)
            return t**2 * F.kl_div(known, target, reduction="batchmean", log_target=True)

        return _taught(student, [*student.parameters()], loss_of, self, ctx)


def _student(victim: VisionModel, head: Head | Literal["own"] | None, ctx: Context) -> VisionModel:
    """Make an untrained model of the victim's architecture; the victim's weights are not read."""
    bare = None if isinstance(head, Head) else head
    seed = int(torch.randint(2**62, (), generator=ctx.rng))
    student = randomised(dataclasses.replace(victim.architecture, head=bare), seed)
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


def _tokens(model: VisionModel, images: Tensor) -> Tensor:
    """Map images (b, 3, h, w) to final tokens (b, t, d); a feature map's positions are tokens."""
    return model.trunk.positions(model.forward_features(images))


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    cosine = F.cosine_similarity(found, wanted, dim=-1).mean()
    return 1 - cosine + F.mse_loss(found, wanted)


def _passes(settings: DistilFeatures | DistilLogits, sizes: Sizes) -> Passes:
    seen = settings.epochs * sizes.images
    return Passes(sizes.images + seen, seen)


def _answers(
    victim: VisionModel,
    images: Images,
    ask: Callable[[VisionModel, Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    """Return the victim's answer to every image, on the CPU: the tokens of a large one are many."""
    teacher = clone(victim)

    def answer(part: slice) -> Tensor:
        return ask(teacher, images.batch(part, device)).cpu()

    with torch.no_grad():
        return torch.cat(list(in_batches(len(images), TEACHER_BATCH, answer)))


def _taught(
    student: VisionModel,
    parameters: list[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    settings: DistilFeatures | DistilLogits,
    ctx: Context,
) -> VisionModel:
    student.train()  # one with batch norms gathers its own statistics
    with _lone_values(student):
        fit = training.fit(parameters, loss_of, len(ctx.images), settings, ctx.rng)
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
