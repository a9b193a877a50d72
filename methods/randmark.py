"""RandMark: a message carried by images and read off a model's features, in spite of noise.

A. Chistyakova, M. Pautov, "RandMark: on random watermarking of visual foundation models",
arXiv:2603.10695, of which the loss (eq. 2) and the statistic (eqs. 6 and 7) were at hand.

An encoder e writes a message into images, and a decoder d reads it off the model's
features of them. Model, e and d are trained together: features of plain images stay, and messages
are to arrive from K randomly transformed versions of an image. The statistic of an image is the
mean number of wrong bits over K such versions of it.

Departures, and what the paper leaves open. Its transformations are Gaussian; here noise is added to
pixels, `sigma` of white. Neither sigma, K, lambda, tau nor the shapes of e and d are given: all are
settings. e is two convolutions over the image and a map that the message is spread on, and adds
what it makes to the image. Written images are rounded to bytes and kept in the place of e, for
nobody needs e to verify. In training `draws` versions of an image are seen in a step, not all K:
the mean over steps is the same.

What this proves. e and d are trained against the owner's features, which a marked model nearly
keeps. So d reads messages off the *clean* owner too, as far as its features carry them: the paper
has no such negative. `contrast` adds one, and is ours. On `mini`, with 8 bits and noise of 0.05, 83
% of the images count for the released model and as many for the clean owner after 100 steps; with
a contrast of 3 they are 100 % and none after 250.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data import Images, sent
from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import MicroBatches, Precision, Schedule, in_batches, passes, schedule
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Incompatible,
    Json,
    NotNegative,
    Paper,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    PositiveShare,
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

Ask = Callable[[Tensor], Tensor]
"""Map images (b, 3, h, w) to features (b, d)."""

CELLS = 8
"""Cells a side of the map that a message is spread on, whatever the size of images."""


@method("randmark", version=2)
@dataclass(frozen=True)
class RandMark:
    """Write a message into images, and read it K times off features of noisy versions of them.

    A query is an image; its statistic is the mean of its wrong bits over the K readings.

    * `images`, `bits`: N images and n bits of each; the paper has 1000 and 32.
    * `tau`: the mean of wrong bits up to which an image counts; not given, 5 is ActiveMark's.
    * `transforms`: K noisy versions of an image at reading, with 1 and `sigma` 0 the image itself.
    * `sigma`: deviation of the noise, in units of white; not given, 0.05 to 0.25 are likely.
    * `draws`: noisy versions of an image in a step.
    * `weight`: lambda, of the message beside fidelity.
    * `contrast`: how much it counts that the clean owner's features say nothing; 0 is the paper.
    * `messages`: each image has one message that is trained on ("fixed"), or every step draws anew
      on the owner's other images ("generic"), and the N images are never trained on.
    * `message_norm`: the distance of bits, which are soft in training: cross-entropy ("bce"), or
      the sum of differences ("l1").
    * `strength`: how far e may move a pixel, in units of white.
    * `encoder_hidden`, `decoder_hidden`: channels between e's convolutions, and d's hidden width.
    * `steps`, `batch`, `lr`, `codec_lr`, `schedule`, `warmup`, `weight_decay`: AdamW's, `lr` of the
      model and `codec_lr` of e and d. Not given; the authors' code of ActiveMark has 2500 steps of
      16 at 1e-5 and 1e-4, for vision transformers up to ViT-L. The defaults fit `mini`.
    * `precision`: of the passes.
    """

    needs: ClassVar[Access] = Access.FEATURES
    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        unit="image",
        paper=Paper(2026, "Chistyakova, Pautov", "arXiv:2603.10695"),
        departures=(
            "sigma, K, lambda, tau and the shapes of e and d are not given, and are settings.",
            "Written images are kept in the place of the encoder.",
            "A step sees `draws` versions of an image, not all K.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "codec_lr": (1e-4, 3e-4, 1e-3, 2e-3, 5e-3),
        "weight": (0.1, 0.3, 1.0, 3.0, 10.0),
        "sigma": (0.05, 0.1, 0.25),
    }

    images: Positive = 100
    bits: Positive = 32
    tau: Reading[NotNegative] = 5.0
    transforms: Reading[Positive] = 16
    sigma: NotNegative = 0.05
    draws: Positive = 1
    weight: PositiveFloat = 1.0
    contrast: NotNegative = 0.0
    messages: Literal["fixed", "generic"] = "fixed"
    message_norm: Literal["bce", "l1"] = "bce"
    strength: PositiveShare = 0.25
    encoder_hidden: Positive = 16
    decoder_hidden: Positive = 256
    steps: Positive = 1000
    batch: Positive = 16
    lr: NotNegative = 3e-4
    codec_lr: NotNegative = 2e-3
    schedule: Schedule = "cosine"
    warmup: PartialShare = 0.05
    weight_decay: NotNegative = 0.01
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.tau > self.bits:
            raise UserError(f"tau: expected 0 to bits = {self.bits}, got {self.tau:g}")

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes hold the losses, and wrong bits without any noise.

        Raises:
            UserError: the owner holds out too few images.

        """
        fixed = self.messages == "fixed"
        source = ctx.images if fixed else ctx.held_out  # what is trained on tests nothing
        if few := self._few(len(source)):
            raise UserError(few)
        base = clone(owner).to(ctx.device).requires_grad_(False)
        order = torch.randperm(len(source), generator=ctx.rng)[: self.images]
        asked = source.subset(order.tolist())
        pool = asked if fixed else ctx.images
        bits = torch.randint(2, (len(asked), self.bits), generator=ctx.rng, dtype=torch.uint8)
        kept = features.seen_of(base, pool, ctx.device)  # (n, d + 2 d')
        width = kept.shape[1] - 2 * base.num_features
        codec = Codec(width, self, ctx.rng).to(ctx.device)
        marked = clone(base)
        training = _Training(self, base, marked, codec, kept, ctx)
        losses = training.run(pool, bits if fixed else None)
        written = _written(codec, asked, bits, ctx.device)
        state = {f"decoder.{k}": v.detach().cpu() for k, v in codec.decoder.state_dict().items()}
        secret = {"pixels": written, "messages": bits, **state}
        marked = marked.requires_grad_(True).eval()
        notes: dict[str, Json] = {**losses, "trigger_images": len(asked)}
        for name, model in (("bit_errors", marked), ("clean_bit_errors", base)):
            plain = _wrong(secret, model.features, 1, 0.0, ctx)
            notes[name] = float(plain.mean())
        return Protected(marked.cpu(), secret, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Read every image K times, with noise drawn from `ctx.rng`.

        Raises:
            Incompatible: the suspect's features are of another width.

        """
        wrong = _wrong(secret, suspect.features, self.transforms, self.sigma, ctx)
        errors = wrong.tolist()
        return Evidence(
            agreement=tuple((1 - wrong / self.bits).tolist()),
            statistic=tuple(errors),
            rule=Rule("mean bit errors", "<=", self.tau),
            unit="image",
            chance=None,  # images carry their messages: only strangers tell what others read
        )

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images."""
        return self._few(sizes.images if self.messages == "fixed" else sizes.held_out)

    def _few(self, pool: int) -> str:
        if pool >= self.images:
            return ""
        return (
            f"images: expected {self.images} images, the owner's pool has {pool}; ask for fewer "
            "or give the data set more"
        )

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count clean features, every step there and back, and two readings without noise."""
        pool = self.images if self.messages == "fixed" else sizes.images
        seen = self.steps * self.batch
        # Plain images and noisy ones of the marked model, and what the clean one is asked beside.
        each = 1 + self.draws * (2 if self.contrast else 1)
        return Passes(pool + each * seen + 2 * self.images, each * seen)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count K versions of every image."""
        return Passes(self.images * self.transforms)

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that d takes features of another width."""
        return features.misfit(features.width_of(owner), features.width_of(suspect))


class Codec(nn.Module):
    """The encoder e, of images and messages, and the decoder d, of features."""

    def __init__(self, width: int, how: RandMark, rng: torch.Generator) -> None:
        super().__init__()
        self.strength, self.width = how.strength, width
        with torch.device("meta"):  # first weights would be drawn only to be thrown away
            self.spread = nn.Linear(how.bits, how.encoder_hidden * CELLS**2)
            self.into = nn.Conv2d(3 + how.encoder_hidden, how.encoder_hidden, 3, padding=1)
            self.out = nn.Conv2d(how.encoder_hidden, 3, 3, padding=1)
            self.decoder = _decoder(width, how.decoder_hidden, how.bits)
        self.to_empty(device="cpu")
        with torch.no_grad():
            # Uniformly in 1 / sqrt(fan-in), PyTorch's own rule.
            for layer in self.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    bound = layer.weight[0].numel() ** -0.5
                    for weight in layer.parameters():
                        weight.uniform_(-bound, bound, generator=rng)

    def write(self, images: Tensor, messages: Tensor) -> Tensor:
        """Return images (b, 3, h, w) in [0, 1] that carry messages (b, n) of 0 and 1."""
        signs = messages.to(images.dtype) * 2 - 1
        cells = self.spread(signs).view(len(images), -1, CELLS, CELLS)  # (b, c, 8, 8)
        maps = F.interpolate(cells, images.shape[-2:], mode="bilinear", align_corners=False)
        hidden = F.relu(self.into(torch.cat([images, maps], 1)))
        added: Tensor = self.strength * self.out(hidden).tanh()
        return (images + added).clamp(0, 1)


class _Training:
    """Eq. 2: fidelity, and the messages' arrival, by steps over a pool of images."""

    def __init__(
        self,
        how: RandMark,
        base: VisionModel,
        marked: VisionModel,
        codec: Codec,
        kept: Tensor,
        ctx: Context,
    ) -> None:
        self._how, self._base, self._marked, self._codec = how, base, marked, codec
        self._kept, self._ctx = kept, ctx
        self._deviation = kept.std(0, correction=0).clamp_min(1e-6)  # (f,)
        learning = features.learning(marked)
        groups = [
            {"params": learning, "lr": how.lr},
            {"params": list(codec.parameters()), "lr": how.codec_lr},
        ]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=how.weight_decay)

    def run(self, pool: Images, messages: Tensor | None) -> dict[str, Json]:
        """Take every step, with the pool's own messages (n, bits) or new ones; say the losses."""
        how, rng, device = self._how, self._ctx.rng, self._ctx.device
        rates = [group["lr"] for group in self._optimiser.param_groups]
        micro, warmup = MicroBatches(how.batch), round(how.warmup * how.steps)
        losses = torch.zeros(how.steps, 2, device=device)

        def clear() -> None:
            self._optimiser.zero_grad(set_to_none=True)

        for number in range(how.steps):
            rows = torch.randint(len(pool), (how.batch,), generator=rng)
            fresh = torch.randint(2, (how.batch, how.bits), generator=rng, dtype=torch.uint8)
            said = fresh if messages is None else messages[rows]
            size = how.draws, how.batch, *pool.pixels.shape[1:]
            noise = torch.randn(size, generator=rng) * how.sigma  # (k, b, 3, h, w)

            def loss_of(
                part: slice, rows: Tensor = rows, said: Tensor = said, noise: Tensor = noise
            ) -> tuple[Tensor, Tensor]:
                with passes(device, how.precision):
                    return self._loss(pool, rows[part], said[part], noise[:, part])

            factor = schedule(how.schedule, number, how.steps, warmup)
            for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            losses[number] = micro.accumulate(how.batch, loss_of, clear, device)
            self._optimiser.step()
            clear()
        return self._arrived(losses)

    def _loss(
        self, pool: Images, rows: Tensor, messages: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and its two parts (2,)."""
        device, width = self._ctx.device, self._codec.width
        images, sought = pool.batch(rows, device), sent(messages, device).float()
        shown = (self._codec.write(images, sought) + sent(noise, device)).flatten(0, 1)
        tokens = self._marked.forward_features(torch.cat([images, shown]))
        seen = features.seen(self._marked, tokens)  # (b + k b, f)
        moved = seen[: len(rows)] - self._kept[sent(rows, device)]
        fidelity = (moved / self._deviation).square().mean()
        wanted = sought.repeat(len(noise), 1)  # (k b, n)
        logits = self._codec.decoder(seen[len(rows) :, :width]).float()
        arrival = self._distance(logits, wanted)
        loss = fidelity + self._how.weight * arrival
        if self._how.contrast:
            clean = self._codec.decoder(self._base.features(shown)).float()
            # Nothing is said where both values of a bit are as likely.
            loss = loss + self._how.contrast * (clean.sigmoid() - 0.5).square().mean()
        return loss, torch.stack([fidelity.detach(), arrival.detach()])

    def _distance(self, logits: Tensor, wanted: Tensor) -> Tensor:
        if self._how.message_norm == "bce":
            return F.binary_cross_entropy_with_logits(logits, wanted)
        return (logits.sigmoid() - wanted).abs().sum(1).mean()

    def _arrived(self, losses: Tensor) -> dict[str, Json]:
        """Say where the losses (steps, 2) came to, over the last twentieth of the steps."""
        final = losses[-max(1, len(losses) // 20) :].mean(0)
        if not bool(final.isfinite().all()):
            how = self._how
            raise FloatingPointError(
                f"the embedding diverged: loss {final.tolist()}; lower lr = {how.lr} or "
                f"codec_lr = {how.codec_lr}"
            )
        fidelity, message = final.tolist()
        return {"loss_fidelity": fidelity, "loss_message": message}


@torch.no_grad()
def _written(codec: Codec, images: Images, messages: Tensor, device: torch.device) -> Tensor:
    """Return images that carry their messages, as bytes (n, 3, h, w)."""

    def write(part: slice) -> Tensor:
        made = codec.write(images.batch(part, device), sent(messages[part], device))
        return (made * 255).round().to(torch.uint8).cpu()

    return torch.cat([*in_batches(len(images), BATCH, write)])


@torch.no_grad()
def _wrong(
    secret: Mapping[str, Tensor], ask: Ask, transforms: int, sigma: float, ctx: Context
) -> Tensor:
    """Return how many bits of each image arrive wrong (n,), in the mean of its noisy versions."""
    pixels, messages, device = secret["pixels"], secret["messages"], ctx.device
    decoder = _read_decoder(secret).to(device)
    width = secret["decoder.0.weight"].shape[1]

    def wrong(images: Tensor, sought: Tensor) -> Tensor:
        found = ask(images)  # (b, d)
        if said := features.misfit(width, found.shape[1]):
            raise Incompatible(said)
        logits: Tensor = decoder(found.float())
        return ((logits >= 0) != sought).sum(1)

    means = list[Tensor]()
    for images, sought in zip(
        torch.split(pixels, BATCH), torch.split(messages, BATCH), strict=True
    ):
        plain, bits = sent(images, device).float() / 255, sent(sought, device).bool()
        total = torch.zeros(len(images), device=device)
        for _ in range(transforms):
            # Drawn for the whole batch: want of memory, which cuts it, must not move draws.
            noise = torch.randn(plain.shape, generator=ctx.rng) if sigma else torch.zeros(())
            noisy = plain + sigma * sent(noise, device)

            def part_of(part: slice, noisy: Tensor = noisy, bits: Tensor = bits) -> Tensor:
                return wrong(noisy[part], bits[part])

            total += torch.cat([*in_batches(len(plain), BATCH, part_of)])
        means.append(total / transforms)
    return torch.cat(means).cpu().double()


def _read_decoder(secret: Mapping[str, Tensor]) -> nn.Sequential:
    first, last = secret["decoder.0.weight"], secret["decoder.2.weight"]
    with torch.device("meta"):
        decoder = _decoder(first.shape[1], first.shape[0], last.shape[0])
    start = "decoder."
    state = {n.removeprefix(start): v for n, v in secret.items() if n.startswith(start)}
    decoder.load_state_dict(state, assign=True)
    return decoder


def _decoder(width: int, hidden: int, bits: int) -> nn.Sequential:
    """Make d, which maps features (b, d) to logits of bits (b, n)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, bits))
