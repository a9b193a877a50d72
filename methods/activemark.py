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
import functools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data import Images, sent
from bench.models import VisionModel, aside, clone, timed
from bench.registry import method
from bench.training import (
    Choice,
    MicroBatches,
    Precision,
    activation_profile,
    choose_block,
    in_batches,
    passes,
)
from bench.training import schedule as schedule_factor
from bench.types import (
    Access,
    Context,
    Evidence,
    Incompatible,
    Json,
    Passes,
    Protected,
    Rule,
    Sizes,
    Suspect,
    UserError,
)

T = TypeVar("T")

CACHE_BYTES = 8 * 2**30
"""Frozen activations are kept up to this size and recomputed step by step beyond it."""

LOST = 0.25
"""A bit that is wrong on more than this share of the images was not learnt: chance is 0.5."""

PROFILE_IMAGES = 100
"""Images of the activation profile (section 3.2.4)."""

TIMED_ROUNDS = 15
"""Steps timed beside the fewest passes they need, spread over the training."""

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

    Paper: Chistyakova & Pautov, ActiveMark, sections 3 and 4.1. Settings left at None become
    what `variant` says (`BY_VARIANT`). In the order of the fields:

    * `block`: 0-based number of the block whose output is written to, or "auto" (the paper counts
      "12" and "18" without saying from where; the code counts from 0). `block_rule`: the paper
      takes the first massive block, the code the largest jump.
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
    * `trained`: all of q ("tail": blocks b + 1 .. last, the final norm
      and the projection), the code's blocks
      b + 1 .. last - 1 ("inner"), or "none": a control that trains e and d alone.
    * `triggers`: N fixed images with a message each, trained on; or generic training on any image
      with a fresh message each step, and N images never trained on for verification. `select`
      keeps only images decoded without error, as the authors' code does (which walks on until it
      has N; here fewer remain); by default none is dropped, for a rate of selected images is 1 by
      construction, and the share that would have been kept is noted as the yield.
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
    bits: int = 32
    tau: int = 5
    images: int = 1000
    steps: int = 2500
    batch: int = 16
    lr: float = 1e-5
    codec_lr: float = 1e-4
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.01
    augment: bool = False
    encoder_hidden: int = 1024
    decoder_hidden: int = 512
    encoder_output: Literal["sigmoid", "linear"] | None = None
    classifier: Literal["frozen", "joint"] = "frozen"
    token_match: Literal["index", "patch", "relative"] = "index"
    depth_match: Literal["absolute", "from_end"] = "absolute"
    width_match: Literal["incompatible", "pad"] = "incompatible"
    preprocess: Literal["suspect", "owner"] = "suspect"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name, value in BY_VARIANT[self.variant].items():
            if getattr(self, name) is None:
                # Spelled out here, so that keys and records hold what was done, not "as usual".
                object.__setattr__(self, name, value)
        for name in ("bits", "images", "steps", "batch", "encoder_hidden", "decoder_hidden"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.tau <= self.bits:
            raise UserError(f"tau: expected 0 to bits = {self.bits}, got {self.tau}")
        if self.augment and self.triggers == "fixed":
            raise UserError("augment: expected False with a fixed trigger set, got True")

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes hold the block, its rule, the yield and the losses."""
        base = clone(owner).to(ctx.device)
        if self.classifier == "joint":
            base = _finetuned(base, ctx)
        link, choice = self._link(base, ctx)
        pool = ctx.images if self.triggers == "fixed" else ctx.held_out
        triggers = self._draw(pool, ctx.rng)
        messages = _bits((len(triggers), self.bits), ctx.rng)
        codec = self._codec(base, link, ctx.rng).to(ctx.device)
        marked = clone(base)
        training = triggers if self.triggers == "fixed" else ctx.images
        fixed = messages if self.triggers == "fixed" else None
        course = self._train(base, marked, codec, link, training, fixed, ctx)
        wrong = self._wrong(marked, codec, link, triggers.pixels, messages, ctx.device)
        kept = wrong.sum(1) == 0
        if self.select:
            triggers, messages = _kept(triggers, messages, kept)
        secret = {
            **{f"codec.{k}": v.detach().cpu() for k, v in codec.state_dict().items()},
            "link": torch.tensor(link),
            "pixels": triggers.pixels,
            "messages": messages,
            "mean": owner.mean.flatten().cpu(),
            "std": owner.std.flatten().cpu(),
        }
        notes: dict[str, Json] = {
            "block": link.block,
            "block_rule": choice.rule if choice else "given",
            "massive": choice.massive if choice else None,
            "axis": self.axis,
            "index": link.place,
            "trigger_images": len(triggers),
            "yield": float(kept.double().mean()),
            "bit_errors": float(wrong.sum(1).double().mean()),
            "bits_lost": int((wrong.double().mean(0) > LOST).sum()),
            "steps": self.steps,
            **course.notes,
        }
        return Protected(marked.cpu(), secret, notes, course.ideal_seconds)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Run the suspect's p and q with the owner's e and d; one query is one trigger image.

        Raises:
            Incompatible: the suspect is no sequence of blocks, or of another width or too shallow.

        """
        model = suspect.network.to(ctx.device)
        link = self._fit(Link(*secret["link"].tolist()), model, secret)
        state = {k.removeprefix("codec."): v for k, v in secret.items() if k.startswith("codec.")}
        codec = Codec.of(state, _given(self.encoder_output)).to(ctx.device)
        pixels, messages = secret["pixels"], secret["messages"]
        shift = None
        if self.preprocess == "owner":
            shift = (secret["mean"].view(1, 3, 1, 1), secret["std"].view(1, 3, 1, 1))
        wrong = self._wrong(model, codec, link, pixels, messages, ctx.device, shift)
        errors = [float(e) for e in wrong.sum(1).tolist()]  # eq. 3
        return Evidence(
            agreement=tuple(1 - e / self.bits for e in errors),
            statistic=tuple(errors),
            rule=Rule("bit errors", "<=", self.tau),
            unit="image",
            chance=0.5,  # n / 2 of n fair bits agree by chance
        )

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the steps; the block in the middle stands for one that a rule will choose."""
        block = sizes.blocks // 2 if self.block == "auto" else self.block
        tail = (sizes.blocks - block - 1) / sizes.blocks
        steps = self.steps * self.batch * (1 if self.fidelity_under == "injection" else 2)
        profiled = self.block == "auto" or self.index == "massive"
        pool = self.images if self.triggers == "fixed" else sizes.images
        clean = 1 + pool + 1 if self._cachable(sizes, pool) else 1 + self.steps * self.batch
        before = 10 * sizes.images if self.classifier == "joint" else 0
        forward = before + clean + steps * tail + self.extract_passes(sizes).forward
        forward += min(PROFILE_IMAGES, sizes.images) if profiled else 0
        bound: Literal["exact", "about"] = "about" if self.block == "auto" else "exact"
        return Passes(forward, before + steps * tail, bound=bound)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the trigger images, as far as the decoder needs them."""
        read = sizes.blocks - 1 if self.read == "last_block_input" else sizes.blocks
        bound: Literal["exact", "at most"] = "at most" if self.select else "exact"
        return Passes(self.images * read / sizes.blocks, bound=bound)

    def _cachable(self, sizes: Sizes, count: int) -> bool:
        """Foresee, to within an embedding's size, whether clean activations will be kept."""
        layers = 2 if self.fidelity_on == "tokens" else 1
        size = 4 * count * layers * sizes.tokens * sizes.width
        return not self.augment and size <= CACHE_BYTES

    def _link(self, model: VisionModel, ctx: Context) -> tuple[Link, Choice | None]:
        depth = len(model.blocks)
        if self.block != "auto" and not 0 <= self.block <= depth - 2:
            raise UserError(
                f"block: expected 0 to {depth - 2} in a model of {depth} blocks, got {self.block}"
            )
        # Chosen for the user, a block leaves something to train between it and the reader.
        last = max(depth - 3 if self.trained == "inner" else depth - 2, 0)
        choice = None
        profiled = self.block == "auto" or self.index == "massive"
        if profiled:
            sample = ctx.images.subset(_sample(len(ctx.images), PROFILE_IMAGES, ctx.rng))
            profile = activation_profile(model, sample, ctx.device)
        if self.block == "auto":
            choice = choose_block(profile, _given(self.block_rule), last)
        block = choice.block if choice else int(self.block)
        with torch.no_grad():
            tokens = model.embed(ctx.images.batch(slice(0, 1), ctx.device)).shape[1]
        size = tokens if self.axis == "token" else model.width
        if self.index == "random":
            index = int(torch.randint(size, (), generator=ctx.rng))
        elif self.index == "massive":
            index = profile[block].token if self.axis == "token" else profile[block].channel
        else:
            index = self.index
        if not 0 <= index < size:
            raise UserError(f"index: expected 0 to {size - 1} ({self.axis} axis), got {index}")
        return Link(block, index, depth, model.prefix, tokens), choice

    def _fit(self, link: Link, model: VisionModel, secret: Mapping[str, Tensor]) -> Link:
        """Find the owner's place in a suspect, or say why there is none."""
        depth = len(model.blocks)
        block = link.block + (depth - link.depth if self.depth_match == "from_end" else 0)
        if not 0 <= block < depth - 1:
            raise Incompatible(f"expected more than {block + 1} blocks, got {depth}")
        with torch.no_grad():
            side = model.preprocess.size
            tokens = model.embed(torch.zeros(1, 3, *side, device=model.mean.device)).shape[1]
        index = link.place
        if self.axis == "token" and index >= link.prefix:
            if self.token_match == "patch":
                index += model.prefix - link.prefix
            elif self.token_match == "relative":
                index = model.prefix + _same_spot(
                    index - link.prefix, link.tokens - link.prefix, tokens - model.prefix
                )
        width = secret["codec.encoder.2.bias"].shape[0]
        found = model.width if self.axis == "token" else tokens
        if found != width and self.width_match == "incompatible":
            what = "width" if self.axis == "token" else "token count"
            raise Incompatible(f"expected the owner's {what} {width}, got {found}")
        if index >= (tokens if self.axis == "token" else model.width):
            raise Incompatible(f"expected a {self.axis} {index}, the suspect has none")
        return Link(block, index, depth, model.prefix, tokens)

    def _draw(self, pool: Images, rng: torch.Generator) -> Images:
        if len(pool) < self.images:
            raise UserError(
                f"images: expected {self.images} trigger images, the owner's pool has {len(pool)}; "
                "ask for fewer or give the data set more"
            )
        return pool.subset(_sample(len(pool), self.images, rng))

    def _codec(self, model: VisionModel, link: Link, rng: torch.Generator) -> Codec:
        written = model.width if self.axis == "token" else link.tokens
        read = written
        if self.read == "embedding":
            with torch.no_grad():
                flat = torch.zeros(1, link.tokens, model.width, device=model.mean.device)
                read = model.embedding(flat).shape[1]
        codec = Codec(
            written,
            read,
            self.bits,
            self.encoder_hidden,
            self.decoder_hidden,
            _given(self.encoder_output),
        )
        return codec.draw(rng)

    def _trained(self, model: VisionModel, link: Link) -> list[nn.Parameter]:
        """Freeze the model but for what the settings train, and return that."""
        model.requires_grad_(False)
        kind = _given(self.trained)
        last = {"tail": link.depth, "inner": link.depth - 1, "none": 0}[kind]
        parts: list[nn.Module] = list(model.blocks)[link.block + 1 : last]
        chosen = [p for part in parts for p in part.parameters()]
        if kind == "tail":  # the final norm is part of q
            chosen += [p for n, p in model.trunk.named_parameters() if _after_blocks(n)]
        for parameter in chosen:
            parameter.requires_grad_(True)
        return chosen

    def _train(
        self,
        base: VisionModel,
        marked: VisionModel,
        codec: Codec,
        link: Link,
        images: Images,
        messages: Tensor | None,
        ctx: Context,
    ) -> Course:
        """Train e, d and the chosen blocks of `marked` in place (eq. 2)."""
        base.requires_grad_(False)
        optimiser = self._optimiser(codec, self._trained(marked, link), ctx.device)
        rates = [group["lr"] for group in optimiser.param_groups]
        # Every draw but augmentation's is made before the loop, which then does not wait for them.
        order = _order(len(images), self.steps * self.batch, ctx.rng).view(self.steps, self.batch)
        sought = _bits((*order.shape, self.bits), ctx.rng) if messages is None else messages[order]
        frozen = Frozen(self, base, link, images, ctx)
        warmup = round(self.warmup * self.steps)
        losses = torch.zeros(self.steps, 2, device=ctx.device)
        micro = MicroBatches(self.batch)

        def clear() -> None:
            optimiser.zero_grad(set_to_none=True)

        def step(number: int) -> None:
            message, clean = sent(sought[number], ctx.device), frozen(order[number])

            def loss_of(part: slice) -> tuple[Tensor, Tensor]:
                return self._loss(marked, codec, link, clean.part(part), message[part])

            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * schedule_factor(self.schedule, number, self.steps, warmup)
            clear()
            losses[number] = micro.accumulate(len(message), loss_of, clear, ctx.device)
            optimiser.step()

        def bare(number: int) -> None:
            clean = frozen(order[number])
            bounce = functools.partial(self._there_and_back, marked, link, clean)
            for _ in micro.over(self.batch, bounce):
                pass
            clear()

        real, ideal = _repeat(step, bare, self.steps, ctx)
        ratios = [a / b for a, b in zip(real, ideal, strict=True)]
        notes: dict[str, Json] = {
            **self._arrived(losses),
            "step_ratio_to_ideal": statistics.median(ratios),
            "frozen_cached": frozen.cached,
        }
        return Course(notes, statistics.median(ideal) * self.steps)

    def _optimiser(
        self, codec: Codec, trained: list[nn.Parameter], device: torch.device
    ) -> torch.optim.AdamW:
        """Let e and d learn at a rate of their own, the chosen part of the model at another."""
        groups = [{"params": list(codec.parameters()), "lr": self.codec_lr}]
        if trained:
            groups.append({"params": trained, "lr": self.lr})
        fused = device.type in ("cpu", "cuda")
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay, fused=fused)

    def _there_and_back(self, model: VisionModel, link: Link, clean: Clean, part: slice) -> None:
        """Make the fewest passes that a step needs for some images of its batch."""
        with passes(clean.after.device, self.precision):
            tokens = clean.after[part].detach().requires_grad_(True)
            out, read = self._tail(model, tokens, link)
            if self.fidelity_under == "plain":
                out, _ = self._tail(model, clean.after[part], link)
            read.sum().add(out.sum()).backward()  # type: ignore[no-untyped-call]

    def _arrived(self, losses: Tensor) -> dict[str, Json]:
        """Say where the losses (steps, 2) came to, over the last twentieth of the steps."""
        final = losses[-max(1, self.steps // 20) :].mean(0).tolist()
        if not all(map(math.isfinite, final)):
            raise FloatingPointError(
                f"the embedding diverged: loss {final}; lower lr = {self.lr} or "
                f"codec_lr = {self.codec_lr}"
            )
        return {"loss_fidelity": final[0], "loss_message": final[1]}

    def _loss(
        self, model: VisionModel, codec: Codec, link: Link, clean: Clean, message: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eq. 2 on one batch; returns the loss and its two parts (2,)."""
        with passes(clean.after.device, self.precision):
            token = codec.encode(clean.source, message)
            out, read = self._tail(model, link.put(clean.after, token, self.axis), link)
            logits = codec.decode(read)
            if self.fidelity_under == "plain":
                out, _ = self._tail(model, clean.after, link)
        fidelity = _fidelity(out.float() - clean.target.float(), _given(self.fidelity_norm))
        written = _message_loss(logits.float(), message.float(), _given(self.message_norm))
        parts = torch.stack([fidelity.detach(), written.detach()])
        return fidelity + self.weight * written, parts

    def _tail(self, model: VisionModel, tokens: Tensor, link: Link) -> tuple[Tensor, Tensor]:
        """Run the blocks after b: what fidelity compares, and what the decoder reads."""
        before = model.run_blocks(tokens, link.block + 1, link.depth - 1)
        after = model.run_blocks(before, link.depth - 1, link.depth)
        read, on = _given(self.read), _given(self.fidelity_on)
        final = model.finish(after) if read != "last_block_input" or on == "embedding" else after
        embedding = model.embedding(final) if "embedding" in (read, on) else final
        seen = {
            "last_block_input": lambda: link.pick(before, self.axis),
            "output_token": lambda: link.pick(final, self.axis),
            "embedding": lambda: embedding,
        }[read]()
        return (embedding if on == "embedding" else after), seen

    def _wrong(
        self,
        model: VisionModel,
        codec: Codec,
        link: Link,
        pixels: Tensor,
        messages: Tensor,
        device: torch.device,
        owner_norm: tuple[Tensor, Tensor] | None = None,
        batch: int = 64,
    ) -> Tensor:
        """Say which bits arrive wrong (n, bits): the suspect's p and q, the owner's e and d."""

        def wrong(part: slice) -> Tensor:
            images = sent(pixels[part], device).float() / 255
            if owner_norm is not None:
                # The suspect's own normalisation undoes itself: the owner's is left. Resized
                # before, because that clamps to [0, 1].
                mean, std = (sent(value, device) for value in owner_norm)
                images = model.normalise(images) * model.std + model.mean
                images = (images - mean) / std * model.std + model.mean
            message = sent(messages[part], device)
            before = model.run_blocks(model.embed(images), 0, link.block)
            after = model.run_blocks(before, link.block, link.block + 1)
            source = before if self.encoder_input == "block_input" else after
            picked = link.pick(source, self.axis)
            token = codec.encode(self._sized(picked, codec.written), message)
            put = link.put(after, self._sized(token, picked.shape[1]), self.axis)
            logits = codec.decode(self._sized(self._read(model, put, link), codec.read))
            read = logits >= 0 if self.binarise == ">=" else logits > 0
            return read != message.bool()

        with torch.inference_mode(), passes(device, self.precision):
            found = list(in_batches(len(pixels), batch, wrong))
        return torch.cat(found).cpu()  # the only wait for the device

    def _sized(self, value: Tensor, width: int) -> Tensor:
        """Bring (b, w) to (b, `width`), with zeros or by cutting, where the settings allow it."""
        if value.shape[1] == width:
            return value
        if self.width_match == "incompatible":
            raise Incompatible(f"expected the owner's width {width}, got {value.shape[1]}")
        return F.pad(value, (0, width - value.shape[1]))  # a negative pad cuts

    def _read(self, model: VisionModel, tokens: Tensor, link: Link) -> Tensor:
        """Run the tail no further than the decoder needs it."""
        tokens = model.run_blocks(tokens, link.block + 1, link.depth - 1)
        if self.read == "last_block_input":
            return link.pick(tokens, self.axis)
        final = model.finish(model.run_blocks(tokens, link.depth - 1, link.depth))
        if self.read == "output_token":
            return link.pick(final, self.axis)
        return model.embedding(final)


class Link(NamedTuple):
    """Where the message goes: after `block`, at `place`, in a model of `depth` blocks."""

    block: int
    place: int
    depth: int
    prefix: int
    tokens: int

    def pick(self, tokens: Tensor, axis: str) -> Tensor:
        """Take the token (b, d), or the channel of all tokens (b, n), from (b, n, d)."""
        return tokens[:, self.place] if axis == "token" else tokens[:, :, self.place]

    def put(self, tokens: Tensor, value: Tensor, axis: str) -> Tensor:
        """Return (b, n, d) with `value` in that place."""
        made = tokens.clone()
        if axis == "token":
            made[:, self.place] = value.to(made.dtype)
        else:
            made[:, :, self.place] = value.to(made.dtype)
        return made


class Clean(NamedTuple):
    """What the clean model does to a batch; nothing in it is ever trained."""

    source: Tensor  # what e sees: the token (b, d), or the channel of all tokens (b, n)
    after: Tensor  # (b, n, d) output of block b
    target: Tensor  # what fidelity compares with: (b, d') or (b, n, d)

    def part(self, which: slice | Tensor) -> Clean:
        """Return those of some images."""
        return Clean(*(value[which] for value in self))


class Course(NamedTuple):
    """How a training went."""

    notes: dict[str, Json]
    ideal_seconds: float


class Frozen:
    """The clean model's activations on demand; computed once where nothing changes them."""

    def __init__(
        self, mark: ActiveMark, base: VisionModel, link: Link, images: Images, ctx: Context
    ) -> None:
        self._mark, self._base, self._link, self._images = mark, base, link, images
        self._device, self._rng = ctx.device, ctx.rng
        self._micro = MicroBatches(mark.batch)
        each = self._compute(torch.arange(min(1, len(images))))
        size = sum(part.nbytes for part in each) * len(images)
        self.cached = not mark.augment and size <= CACHE_BYTES
        self._kept = self._all() if self.cached else None

    def __call__(self, indices: Tensor) -> Clean:
        """Return the activations of the images at `indices` (b,)."""
        if self._kept is None:
            return self._compute(indices)
        return self._kept.part(sent(indices, self._device))

    def _all(self, batch: int = 64) -> Clean:
        first = self._compute(torch.arange(1))
        # Written in place: joining the chunks would hold all of them twice.
        kept = Clean(*(part.new_empty(len(self._images), *part.shape[1:]) for part in first))

        def fill(chunk: slice) -> None:
            images = self._images.batch(chunk, self._device)
            for whole, part in zip(kept, self._seen(images), strict=True):
                whole[chunk] = part

        for _ in in_batches(len(self._images), batch, fill):
            pass
        return kept

    def _compute(self, indices: Tensor) -> Clean:
        images = self._images.batch(indices, self._device)
        if self._mark.augment:  # as one batch, whatever the memory: its draws are in that order
            images = _augmented(images, self._rng)
        parts = [*self._micro.over(len(images), lambda part: self._seen(images[part]))]
        return parts[0] if len(parts) == 1 else Clean(*map(torch.cat, zip(*parts, strict=True)))

    @torch.no_grad()
    def _seen(self, images: Tensor) -> Clean:
        base, block = self._base, self._link.block
        with passes(self._device, self._mark.precision):
            before = base.run_blocks(base.embed(images), 0, block)
            after = base.run_blocks(before, block, block + 1)
            target, _ = self._mark._tail(base, after, self._link)
            source = before if self._mark.encoder_input == "block_input" else after
        # Cloned: a view would keep all of `before` alive.
        return Clean(self._link.pick(source, self._mark.axis).clone(), after, target)


class Codec(nn.Module):
    """The encoder e and the decoder d: two fully connected layers each (Fig. 1)."""

    def __init__(
        self, written: int, read: int, bits: int, encoder: int, decoder: int, output: str
    ) -> None:
        super().__init__()
        self.written, self.read, self.output = written, read, output
        self.encoder = nn.Sequential(
            nn.Linear(written + bits, encoder), nn.ReLU(), nn.Linear(encoder, written)
        )
        self.decoder = nn.Sequential(nn.Linear(read, decoder), nn.ReLU(), nn.Linear(decoder, bits))

    @staticmethod
    def of(state: Mapping[str, Tensor], output: str) -> Codec:
        """Rebuild a codec from its tensors."""
        first, last = state["encoder.0.weight"], state["encoder.2.weight"]
        read, bits = state["decoder.0.weight"].shape[1], state["decoder.2.weight"].shape[0]
        hidden = state["decoder.0.weight"].shape[0]
        with torch.device("meta"):  # first weights would be drawn only to be thrown away
            codec = Codec(last.shape[0], read, bits, first.shape[0], hidden, output)
        codec.load_state_dict(dict(state), assign=True)
        return codec.eval()

    def draw(self, rng: torch.Generator) -> Codec:
        """Initialise every layer uniformly in 1 / sqrt(fan-in), PyTorch's own rule, from `rng`."""
        with torch.no_grad():
            for layer in [*self.encoder, *self.decoder]:
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    layer.weight.uniform_(-bound, bound, generator=rng)
                    layer.bias.uniform_(-bound, bound, generator=rng)
        return self

    def encode(self, token: Tensor, message: Tensor) -> Tensor:
        """Map token (b, d) and message (b, n) to the token that replaces it (b, d)."""
        made = cast(Tensor, self.encoder(torch.cat([token, message.to(token.dtype)], dim=1)))
        return made.sigmoid() if self.output == "sigmoid" else made

    def decode(self, read: Tensor) -> Tensor:
        """Map what was read (b, r) to logits of the bits (b, n); a bit is sigmoid >= 1/2."""
        return cast(Tensor, self.decoder(read))


def _repeat(
    step: Callable[[int], None], bare: Callable[[int], None], steps: int, ctx: Context
) -> tuple[list[float], list[float]]:
    """Take every step; return the seconds of some, and of `bare` beside each of them."""
    real, ideal = [], []
    probes = set(_spread(steps, TIMED_ROUNDS))
    for number in range(steps):
        if number not in probes:
            step(number)
            continue
        real.append(timed(functools.partial(step, number), ctx.device))
        drawn = ctx.rng.get_state()  # what is only timed must not move the draws of what counts
        with aside(ctx.device):
            ideal.append(timed(functools.partial(bare, number), ctx.device))
        ctx.rng.set_state(drawn)
    return real, ideal


def _same_spot(patch: int, owners: int, suspects: int) -> int:
    """Find the patch of a square grid of `suspects` where `patch` lies in one of `owners`."""
    here, there = math.isqrt(owners), math.isqrt(suspects)
    if here**2 != owners or there**2 != suspects:
        raise Incompatible(f"expected square grids of patches, got {owners} and {suspects}")
    row, column = divmod(patch, here)
    return (row * there // here) * there + column * there // here


def _fidelity(difference: Tensor, norm: str) -> Tensor:
    if norm == "mse":
        return difference.square().mean()
    if norm == "l2_squared":
        return difference.square().flatten(1).sum(1).mean()
    return cast(Tensor, torch.linalg.vector_norm(difference.flatten(1), dim=1)).mean()


def _message_loss(logits: Tensor, message: Tensor, norm: str) -> Tensor:
    if norm == "bce":
        return F.binary_cross_entropy_with_logits(logits, message)
    soft = logits.sigmoid()
    if norm == "mse":
        return (soft - message).square().mean()
    return (soft - message).abs().sum(1).mean()


def _finetuned(model: VisionModel, ctx: Context) -> VisionModel:
    """Finetune the backbone with a classifier on the owner's labels before marking (5.1)."""
    from bench.models import Head, with_head
    from bench.training import Training, fit

    labels = ctx.images.labels
    if labels is None:
        raise UserError("classifier: 'joint' expects labelled owner images, got unlabelled ones")
    net = with_head(model, Head(ctx.images.classes), ctx.rng).to(ctx.device)
    targets = labels.to(ctx.device)

    def loss_of(chosen: Tensor) -> Tensor:
        logits = net.logits(ctx.images.batch(chosen, ctx.device))
        return F.cross_entropy(logits, targets[sent(chosen, ctx.device)])

    # The paper gives no schedule for this step; ten epochs are those of its attacks (4.2).
    how = Training(epochs=10, batch=32, lr=1e-4, schedule="cosine")
    fit(list(net.parameters()), loss_of, len(labels), how, ctx.rng)
    # The owner releases features: no head that was trained for another backbone comes along.
    net.architecture, net.head = dataclasses.replace(net.architecture, head=None), None
    return clone(net)


def _augmented(images: Tensor, rng: torch.Generator) -> Tensor:
    """Flip half of the images and zoom into a random part of at least 35 % of the area."""
    count = len(images)
    draws = torch.rand(4, count, generator=rng)
    scale = 0.6 + 0.4 * draws[0]  # side of the part, as a share of the image's
    flip = (draws[1] < 0.5).float() * 2 - 1
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = scale * flip, scale
    matrix[:, :, 2] = (2 * draws[2:].T - 1) * (1 - scale)[:, None]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False).to(images.device)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _given(value: T | None) -> T:
    """Narrow the type of a setting that `__post_init__` has spelled out."""
    assert value is not None
    return value


def _after_blocks(name: str) -> bool:
    """Say whether a parameter lies between the last block and the output embedding."""
    return name.startswith(
        (
            *("vit.norm.", "vit.fc_norm.", "vit.attn_pool.", "projection."),
            *("visual.ln_post.", "visual.attn_pool.", "visual.proj"),
        )
    )


def _kept(images: Images, messages: Tensor, kept: Tensor) -> tuple[Images, Tensor]:
    chosen = kept.nonzero().flatten().tolist()
    if not chosen:
        raise UserError("select: no image was decoded without error; train for more steps")
    return images.subset(chosen), messages[chosen]


def _bits(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=rng, dtype=torch.uint8)


def _sample(count: int, wanted: int, rng: torch.Generator) -> list[int]:
    return cast(list[int], torch.randperm(count, generator=rng)[:wanted].tolist())


def _order(count: int, wanted: int, rng: torch.Generator) -> Tensor:
    """Draw `wanted` indices, every image once before any twice."""
    rounds = -(-wanted // count)
    return torch.cat([torch.randperm(count, generator=rng) for _ in range(rounds)])[:wanted]


def _spread(steps: int, rounds: int) -> list[int]:
    """Choose rounds of the loop, evenly spread, after the first step's one-off costs."""
    return [min(1 + round(i * (steps - 2) / (rounds - 1)), steps - 1) for i in range(rounds)]
