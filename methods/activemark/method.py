"""ActiveMark: a message written into the residual stream and read further on.

A. Chistyakova, M. Pautov, "ActiveMark: on watermarking of visual foundation models via massive
activations", https://arxiv.org/abs/2510.04966. The authors' code carries the method's earlier name,
ExpressPrint; where paper and code differ, `variant` says whom to follow and each difference is a
setting of its own.

With f = q o p split after block b, an encoder e turns one token of the residual stream and an n-bit
message into a new token, which replaces the old one after block b; a decoder d reads the message
further on. e, d and some blocks of q are trained so that the message arrives and the output stays.
Verification runs the suspect's own p and q with the owner's e, d and messages (section 3.3).

Read differently by different people, and fixed here: a detection is `errors <= tau` (eq. 4; eq. 6
prints `<`), an independent model is expected at n / 2 wrong bits (the text after eq. 3 says n), and
R is a rate in [0, 1] (eq. 5 counts). Which tau Table 2 uses is not stated: evidence keeps the bit
errors, so R follows for every tau.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data import Images, sent
from bench.models import Head, VisionModel, clone, with_head
from bench.registry import method
from bench.training import Precision, Schedule, Training, fit
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Incompatible,
    Json,
    Paper,
    Passes,
    Positive,
    Protected,
    Reading,
    Rule,
    Sizes,
    Suspect,
    UserError,
)
from methods.activemark.channel import (
    PROFILE_IMAGES,
    Channel,
    Codec,
    Link,
    Wiring,
    count_tokens,
    find_link,
    found_again,
    wrong_block,
)
from methods.activemark.embedding import CACHE_BYTES, Embedding, draw_bits, embed

LOST = 0.25
"""A bit that is wrong on more than this share of the images was not learnt: chance is 0.5."""

JOINT = Training(epochs=10, batch=32, lr=1e-4, schedule="cosine")
"""The paper gives no schedule for this step; ten epochs are those of its attacks (4.2)."""

BY_VARIANT: dict[str, dict[str, Json]] = {
    "paper": {
        "block_rule": "first_massive",  # section 3.2.4, "the first block"
        "encoder_input": "block_output",  # p_1(x) is a part of p(x), section 4.1
        "read": "embedding",  # u = q(p~(x)), section 4.1
        "message_norm": "l1",  # eq. 2
        "fidelity_norm": "l2",  # eq. 2
        "fidelity_on": "embedding",  # eq. 2, "the output embedding"
        "trained": "tail",  # q, section 3.2
        "triggers": "fixed",  # section 4.1: N images, one random message each
        "binarise": ">=",  # section 4.1
        "encoder_output": "linear",  # Fig. 1: two fully connected layers into R^h, nothing after
    },
    "expressprint": {
        "block_rule": "largest_jump",
        "encoder_input": "block_input",
        "read": "last_block_input",
        "message_norm": "mse",
        "fidelity_norm": "mse",
        "fidelity_on": "tokens",
        "trained": "inner",
        "triggers": "generic",
        "binarise": ">",
        "encoder_output": "sigmoid",
    },
}
"""What each source does where the two differ; a setting left at None becomes its variant's."""


@method("activemark", version=1)
@dataclass(frozen=True)
class ActiveMark:
    """Write a message into the residual stream after an expressive block and read it further on.

    Paper: Chistyakova & Pautov, ActiveMark, sections 3 and 4.1.

    * `variant`: whom to follow where paper and code differ; settings left at None become what it
      says (`BY_VARIANT`).
    * `block`: 0-based number of the block whose output is written to, or "auto" (the paper counts
      "12" and "18" without saying from where; the code counts from 0). `block_rule`: the paper
      takes the first massive block, the code the largest jump. Departure: the code takes it of all
      blocks, and so, of some models, the last, which its reader does not see; "auto" leaves a block
      to train before the reader. The notes say the rule, how far it looked, and the code's block.
    * `axis`, `index`: the paper's "first channel" is a token in the code (number 46; CLS is 0) and
      may be read as one channel of all tokens. A token is the default in both variants: it is what
      makes e map R^h x {0, 1}^n to R^h. "massive" takes the token, or channel, of the largest
      activation, "random" draws one.
    * `encoder_input`: whether e sees the token before or after block b.
    * `read`: what d sees: the output "embedding", the same token among the final tokens
      ("output_token"), or the same token at the input of the last block.
    * `fidelity_norm`, `message_norm`, `fidelity_on`, `weight` (lambda): eq. 2 leaves the exact form
      of its norms and lambda open; the code has means of squares and lambda = 1. "l2" is the norm
      of one image's difference, "l1" the sum over bits, on soft bits since hard ones have no
      gradient; "bce" is cross-entropy per bit, ours. `fidelity_under`: eq. 2 does not say whether
      q~ sees the injected token; the code's does.
    * `trained`: all of q ("tail": blocks b + 1 .. last, the final norm and the projection), the
      code's blocks b + 1 .. last - 1 ("inner"), or "none": a control that trains e and d alone.
    * `triggers`: N fixed images with a message each, trained on; or generic training on any image
      with a fresh message each step, and N images never trained on for verification.
    * `select`: keep only images decoded without error, as the authors' code does (which walks on
      until it has N; here fewer remain). By default none is dropped, for a rate of selected images
      is 1 by construction, and the share that would have been kept is noted as the yield.
    * `binarise`: a bit is 1 where d(u) >= 1/2 (paper) or > 1/2 (code).
    * `bits`, `tau`, `images`: n, tau and N (section 3.3.1, remark).
    * `steps`, `batch`, `lr`, `codec_lr`, `schedule`, `warmup`, `weight_decay`, `augment`: silent in
      the paper; the code's AdamW, 2500 steps of 16, 1e-5 for the model and 1e-4 for e and d.
      `augment` flips and crops (the code: timm's training augmentation, which also jitters colour);
      off by default, so that frozen activations can be computed once.
    * `encoder_hidden`, `decoder_hidden`: "two fully connected layers" each in the paper; the widths
      are the code's. `encoder_output`: the code ends e with a sigmoid, the paper with its layer.
    * `classifier`: the paper compares in a setting where a classifier was trained first (5.1).
      "frozen" marks the model as it is, "joint" finetunes it on the owner's labels before, which
      no twin is: a suite that compares gives the owner a `classifier` of its own instead.
    * `token_match`, `depth_match`, `preprocess`: how a suspect with other prefix tokens, depth or
      preprocessing is read; the code uses equal indices and the suspect's transform. "patch" counts
      patches after the prefix tokens, "relative" takes the same spot of a grid of another size.
    * `width_match`: a suspect of another width is incompatible, for e and d are tied to the owner's
      and neither paper nor code says more; "pad" fills with zeros or cuts.
    * `precision`: of the passes; "bfloat16" uses autocast.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        unit="image",
        paper=Paper(2025, "Chistyakova, Pautov", "arXiv:2510.04966"),
        departures=(
            "`block`: auto leaves a block to train before the reader, which the code does not.",
            "`augment` is off, and would only flip and crop; the code also jitters colour.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        # Silent in the paper; around the code's 1e-5, 1e-4 and lambda = 1, and up to where small
        # models need them. Steps and images are the price in time, which a suite sets.
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "weight": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
        "codec_lr": (1e-4, 3e-4, 1e-3, 2e-3, 5e-3),
    }

    variant: Literal["expressprint", "paper"] = "expressprint"
    block: int | Literal["auto"] = "auto"
    block_rule: Literal["first_massive", "largest_jump"] | None = None
    axis: Literal["token", "channel"] = "token"
    index: int | Literal["massive", "random"] = 46
    encoder_input: Literal["block_output", "block_input"] | None = None
    read: Literal["embedding", "output_token", "last_block_input"] | None = None
    fidelity_norm: Literal["l2", "l2_squared", "mse"] | None = None
    fidelity_on: Literal["embedding", "tokens"] | None = None
    fidelity_under: Literal["injection", "plain"] = "injection"
    message_norm: Literal["l1", "mse", "bce"] | None = None
    weight: float = 1.0
    trained: Literal["tail", "inner", "none"] | None = None
    triggers: Literal["fixed", "generic"] | None = None
    select: bool = False
    binarise: Literal[">=", ">"] | None = None
    bits: Positive = 32
    tau: Reading[int] = 5
    images: Positive = 1000
    steps: Positive = 2500
    batch: Positive = 16
    lr: float = 1e-5
    codec_lr: float = 1e-4
    schedule: Schedule = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.01
    augment: bool = False
    encoder_hidden: Positive = 1024
    decoder_hidden: Positive = 512
    encoder_output: Literal["sigmoid", "linear"] | None = None
    classifier: Literal["frozen", "joint"] = "frozen"
    token_match: Reading[Literal["index", "patch", "relative"]] = "index"
    depth_match: Reading[Literal["absolute", "from_end"]] = "absolute"
    width_match: Reading[Literal["incompatible", "pad"]] = "incompatible"
    preprocess: Reading[Literal["suspect", "owner"]] = "suspect"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name, value in BY_VARIANT[self.variant].items():
            if getattr(self, name) is None:
                # Spelled out here, so that keys and records hold what was done, not "as usual".
                object.__setattr__(self, name, value)
        if not 0 <= self.tau <= self.bits:
            raise UserError(f"tau: expected 0 to bits = {self.bits}, got {self.tau}")
        if self.augment and self.triggers == "fixed":
            raise UserError("augment: expected False with a fixed trigger set, got True")

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes hold the block, its rule, the yield and the losses."""
        base = clone(owner).to(ctx.device)
        if self.classifier == "joint":
            base = _finetuned(base, ctx)
        # Chosen for the user, a block leaves something to train between it and the reader.
        last = max(len(base.blocks) - (3 if self.trained == "inner" else 2), 0)
        link, choice = find_link(self.wiring, base, last, ctx)
        fixed = self.triggers == "fixed"
        triggers = self._draw(ctx.images if fixed else ctx.held_out, ctx.rng)
        messages = draw_bits((len(triggers), self.bits), ctx.rng)
        channel = Channel(link, self._codec(base, link, ctx.rng).to(ctx.device), self.wiring)
        images, sought = (triggers, messages) if fixed else (ctx.images, None)
        made = embed(self.embedding, channel, base, images, sought, ctx)
        wrong = channel.wrong(made.model, triggers.pixels, messages)
        kept = wrong.sum(1) == 0
        if self.select:
            triggers, messages = _kept(triggers, messages, kept)
        secret = {
            **channel.tensors(),
            "pixels": triggers.pixels,
            "messages": messages,
            "mean": owner.mean.flatten().cpu(),
            "std": owner.std.flatten().cpu(),
        }
        notes: dict[str, Json] = {
            "block": link.block,
            "block_rule": f"{choice.rule} up to {last}" if choice else "given",
            "code_block": choice.code if choice else None,
            "massive": choice.massive if choice else None,
            "axis": self.axis,
            "index": link.place,
            "trigger_images": len(triggers),
            "yield": float(kept.double().mean()),
            "bit_errors": float(wrong.sum(1).double().mean()),
            "bits_lost": int((wrong.double().mean(0) > LOST).sum()),
            "steps": self.steps,
            **made.notes,
        }
        return Protected(made.model.cpu(), secret, notes, made.ideal_seconds)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Run the suspect's p and q with the owner's e and d; one query is one trigger image.

        Raises:
            Incompatible: the suspect is no sequence of blocks, or of another width or too shallow.

        """
        model = suspect.network.to(ctx.device)
        channel = Channel.of(secret, self.wiring, ctx.device).fitted(model)
        shift = None
        if self.preprocess == "owner":
            shift = (secret["mean"].view(1, 3, 1, 1), secret["std"].view(1, 3, 1, 1))
        wrong = channel.wrong(model, secret["pixels"], secret["messages"], shift)
        errors = [float(e) for e in wrong.sum(1).tolist()]  # eq. 3
        return Evidence(
            agreement=tuple(1 - e / self.bits for e in errors),
            statistic=tuple(errors),
            rule=Rule("bit errors", "<=", self.tau),
            unit="image",
            chance=0.5,  # n / 2 of n fair bits agree by chance
        )

    def forged(self, suspect: Suspect, ctx: Context) -> Mapping[str, Tensor]:
        """Train e and d alone, on the suspect's network as it is.

        That is the control `trained="none"`: the message arrives without any weight of q moved.
        """
        alone = dataclasses.replace(self, trained="none")
        return alone.protect(suspect.network, ctx).secret

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say what does not fit; of blocks and places still to be chosen, one that fits will do."""
        tokens, depth = count_tokens(owner), len(owner.blocks)
        written = owner.width if self.axis == "token" else tokens
        place = self.index if isinstance(self.index, int) else 0
        said = ""
        for block in range(depth - 1) if self.block == "auto" else [self.block]:
            link = Link(block, place, depth, owner.prefix, tokens)
            try:
                found_again(self.wiring, link, written, suspect)
            except Incompatible as error:
                said = str(error)
            else:
                return self._misread(owner, suspect)
        return said

    def _misread(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that d does not fit what it would be given of a suspect."""
        if self.read != "embedding" or self.width_match == "pad":
            return ""
        ours, found = (_embedding_width(m, count_tokens(m)) for m in (owner, suspect))
        return "" if ours == found else f"expected the owner's width {ours}, got {found}"

    def unfit(self, sizes: Sizes) -> str:
        """Say that the block lies too deep, or that there are too few images for the triggers."""
        return wrong_block(self.block, sizes.blocks) or self._few(
            sizes.images if self.triggers == "fixed" else sizes.held_out
        )

    def _few(self, pool: int) -> str:
        if pool >= self.images:
            return ""
        return (
            f"images: expected {self.images} trigger images, the owner's pool has {pool}; ask for "
            "fewer or give the data set more"
        )

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the steps; the block in the middle stands for one that a rule will choose."""
        block = sizes.blocks // 2 if self.block == "auto" else self.block
        tail = (sizes.blocks - block - 1) / sizes.blocks
        steps = self.steps * self.batch * (1 if self.fidelity_under == "injection" else 2)
        profiled = self.block == "auto" or self.index == "massive"
        pool = self.images if self.triggers == "fixed" else sizes.images
        clean = 1 + pool + 1 if self._cachable(sizes, pool) else 1 + self.steps * self.batch
        before = JOINT.epochs * sizes.images if self.classifier == "joint" else 0
        forward = before + clean + steps * tail + self.extract_passes(sizes).forward
        forward += min(PROFILE_IMAGES, sizes.images) if profiled else 0
        bound: Literal["exact", "about"] = "about" if self.block == "auto" else "exact"
        return Passes(forward, before + steps * tail, bound=bound)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the trigger images, as far as the decoder needs them."""
        read = sizes.blocks - 1 if self.read == "last_block_input" else sizes.blocks
        bound: Literal["exact", "at most"] = "at most" if self.select else "exact"
        return Passes(self.images * read / sizes.blocks, bound=bound)

    @property
    def wiring(self) -> Wiring:
        """The settings of the channel, with what the variant says where none was given."""
        return Wiring(**_named_alike(self, Wiring))

    @property
    def embedding(self) -> Embedding:
        """The settings of the training, with what the variant says where none was given."""
        return Embedding(**_named_alike(self, Embedding))

    def _cachable(self, sizes: Sizes, count: int) -> bool:
        """Foresee, to within an embedding's size, whether clean activations will be kept."""
        layers = 2 if self.fidelity_on == "tokens" else 1
        size = 4 * count * layers * sizes.tokens * sizes.width
        return not self.augment and size <= CACHE_BYTES

    def _draw(self, pool: Images, rng: torch.Generator) -> Images:
        if few := self._few(len(pool)):
            raise UserError(few)
        order = torch.randperm(len(pool), generator=rng)
        return pool.subset(order[: self.images].tolist())

    def _codec(self, model: VisionModel, link: Link, rng: torch.Generator) -> Codec:
        written = model.width if self.axis == "token" else link.tokens
        read = written
        if self.read == "embedding":
            read = _embedding_width(model, link.tokens)
        hidden = self.encoder_hidden, self.decoder_hidden
        return Codec(written, read, self.bits, *hidden, self.wiring.encoder_output).draw(rng)


@torch.no_grad()
def _embedding_width(model: VisionModel, tokens: int) -> int:
    blank = torch.zeros(1, tokens, model.width, device=model.mean.device)
    return model.embedding(blank).shape[1]


def _finetuned(model: VisionModel, ctx: Context) -> VisionModel:
    """Finetune the backbone with a classifier on the owner's labels before marking (5.1)."""
    labels = ctx.images.labels
    if labels is None:
        raise UserError("classifier: 'joint' expects labelled owner images, got unlabelled ones")
    net = with_head(model, Head(ctx.images.classes), ctx.rng).to(ctx.device)
    targets = labels.to(ctx.device)

    def loss_of(chosen: Tensor) -> Tensor:
        logits = net.logits(ctx.images.batch(chosen, ctx.device))
        return F.cross_entropy(logits, targets[sent(chosen, ctx.device)])

    fit(list(net.parameters()), loss_of, len(labels), JOINT, ctx.rng)
    # The owner releases features: no head that was trained for another backbone comes along.
    net.architecture, net.head = dataclasses.replace(net.architecture, head=None), None
    return clone(net)


def _kept(images: Images, messages: Tensor, kept: Tensor) -> tuple[Images, Tensor]:
    chosen = kept.nonzero().flatten().tolist()
    if not chosen:
        raise UserError("select: no image was decoded without error; train for more steps")
    return images.subset(chosen), messages[chosen]


def _named_alike(mark: ActiveMark, noun: type[Wiring | Embedding]) -> dict[str, Any]:
    """Return the settings that a noun has too, by their names."""
    return {field.name: getattr(mark, field.name) for field in dataclasses.fields(noun)}
