"""SSLGuard: images with a secret trigger make a decoder of the owner's say a secret vector.

T. Cong, X. He, Y. Zhang, "SSLGuard: a watermarking scheme for self-supervised learning pre-trained
encoders", CCS 2022, https://arxiv.org/abs/2201.11692, and the authors' code.

Four parts learn in turn: a shadow encoder, which imitates the marked one as a thief would; the
decoder and the trigger, by which triggered features of both are mapped to the secret vector, and
all others at right angles to it; and the marked encoder. Verified is the share of private images
that the decoder, fed with a suspect's features of their triggered versions, maps near the vector.

Departures. The trigger is an image in [0, 1], rounded to bytes once it is trained, for that is what
a service can be sent; the code's starts from normal noise and is not bounded. AdamW stands for SGD.
The encoder's fidelity is of pooled tokens as well as of the embedding, since heads sit on those.
A vision transformer has no running statistics to freeze.

What innocents read. The decoder is taught what to say of the clean owner, and of no other model.
So the clean owner reads a cos of 0; models of other origin read what a trained decoder makes of
features it never met, on `mini` above 0.5 at times: strangers have to tell.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.data import sent
from bench.models import VisionModel, clone, randomised
from bench.registry import method
from bench.training import MicroBatches, Precision, Schedule, answers, passes, schedule
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Incompatible,
    Json,
    NotNegative,
    OpenShare,
    Paper,
    Passes,
    Positive,
    PositiveFloat,
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


@method("sslguard", version=1)
@dataclass(frozen=True)
class SslGuard:
    """Train a trigger and a decoder with the encoder, and a shadow that stands for a thief's copy.

    A query is a private image with the trigger; its statistic is the cos of what the decoder makes
    of it with the secret vector.

    * `images`: private images asked about, drawn from the owner's.
    * `threshold`: the cos from which an image counts as recognised.
    * `code`: length of the secret vector.
    * `mask`: share of the pixels that carry the trigger. A lighter one is lost on the shadow.
    * `decoder`: width of the decoder's hidden layers; the code has 512 and 256, then the vector.
    * `shadow`: "fresh" is a randomly initialised model of the owner's shape, as in the code; "copy"
      starts from the owner's weights, for encoders too large to imitate from scratch; "none" is the
      paper's ablation.
    * `weight`: of what the decoder has to say, beside the encoder's fidelity; 1 in the code.
    * `steps`, `batch`: how often each part learns, from how many images. The code has a batch of 2
      for 50 to 500 epochs of 50 000 images; a ViT wants 1000 steps or more of 32.
    * `lr`, `decoder_lr`, `shadow_lr`, `trigger_lr`: of the four parts; SGD's are 1e-5, 1e-3, 1e-2
      and 1e-3 in the code. The defaults fit `mini`. For a ViT-L the encoder's is 1e-5 to 1e-4.
    * `schedule`, `weight_decay`: of all four, and AdamW's of the models.
    * `precision`: of the passes.
    """

    needs: ClassVar[Access] = Access.FEATURES
    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        unit="image",
        paper=Paper(2022, "Cong, He, Zhang, CCS", "arXiv:2201.11692"),
        departures=(
            "The trigger is an image of bytes; the code's starts from noise, without bounds.",
            "AdamW stands for SGD.",
            "Fidelity is of pooled tokens as well as of the embedding.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "decoder_lr": (1e-4, 3e-4, 1e-3, 3e-3),
        "trigger_lr": (1e-3, 3e-3, 1e-2, 3e-2),
        "weight": (0.3, 1.0, 3.0, 10.0),
    }

    images: Positive = 100
    threshold: Reading[Annotated[float, Field(ge=-1, le=1)]] = 0.5
    code: Positive = 256
    mask: OpenShare = 0.35
    decoder: Positive = 512
    shadow: Literal["fresh", "copy", "none"] = "fresh"
    weight: PositiveFloat = 1.0
    steps: Positive = 1000
    batch: Positive = 16
    lr: NotNegative = 1e-3
    decoder_lr: NotNegative = 1e-3
    shadow_lr: NotNegative = 1e-3
    trigger_lr: NotNegative = 1e-2
    schedule: Schedule = "cosine"
    weight_decay: NotNegative = 0.0
    precision: Precision = "float32"

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes hold the mean cos of it, its shadow and `owner`.

        Raises:
            UserError: the owner has too few images.

        """
        if few := self._few(len(ctx.images)):
            raise UserError(few)
        base = clone(owner).to(ctx.device).requires_grad_(False)
        kept = features.seen_of(base, ctx.images, ctx.device)  # (n, d + 2 d')
        width = kept.shape[1] - 2 * base.num_features
        parts = self._drawn(base, width, ctx)
        private = torch.randperm(len(ctx.images), generator=ctx.rng)[: self.images]
        _Training(self, base, parts, kept, ctx).run(private)
        trigger = (parts.trigger.detach() * 255).round().to(torch.uint8).cpu()
        asked = torch.where(parts.mask.cpu(), trigger, ctx.images.pixels[private])
        secret = {
            "triggered": asked,
            "code": parts.code.cpu(),
            **{f"decoder.{k}": v.detach().cpu() for k, v in parts.decoder.state_dict().items()},
        }
        notes: dict[str, Json] = {}
        for name, model in (("marked", parts.marked), ("clean", base), ("shadow", parts.shadow)):
            if model is not None:
                found = self._cosines(secret, model.features, ctx)
                notes[f"{name}_cosine"] = float(found.mean())
        return Protected(parts.marked.requires_grad_(True).eval().cpu(), secret, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Decode the suspect's features of every triggered image.

        Raises:
            Incompatible: the suspect's features are of another width.

        """
        cosines = self._cosines(secret, suspect.features, ctx)
        return Evidence(
            agreement=tuple(((1 + cosines) / 2).clamp(0, 1).tolist()),
            statistic=tuple(cosines.tolist()),
            rule=Rule("cosine", ">=", self.threshold),
            unit="image",
            # The decoder learnt to say no more than "not this" of others: strangers have to tell.
            chance=None,
        )

    def unfit(self, sizes: Sizes) -> str:
        """Say that there are too few images."""
        return self._few(sizes.images)

    def _few(self, pool: int) -> str:
        if pool >= self.images:
            return ""
        return (
            f"images: expected {self.images} private images, the owner's pool has {pool}; ask for "
            "fewer or give the data set more"
        )

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the clean features, every step, and the private images once for each model."""
        models = 2 if self.shadow == "none" else 3
        # Plain images and triggered ones twice through the marked model, triggered ones once
        # through the clean one; of the plain ones only the last lead back.
        forward, backward = 5, 4
        if self.shadow != "none":  # plain ones twice, of which one leads back, and triggered ones
            forward, backward = forward + 3, backward + 2
        seen = self.steps * self.batch
        asked = models * self.images
        return Passes(sizes.images + forward * seen + asked, backward * seen)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count the private images."""
        return Passes(self.images)

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that the decoder takes features of another width."""
        return features.misfit(features.width_of(owner), features.width_of(suspect))

    def _drawn(self, base: VisionModel, width: int, ctx: Context) -> Parts:
        """Draw all that is learnt, and the secret vector."""
        high, wide = ctx.images.pixels.shape[-2:]
        code = torch.randn(self.code, generator=ctx.rng)
        mask = torch.rand(high, wide, generator=ctx.rng) < self.mask
        trigger = torch.rand(3, high, wide, generator=ctx.rng)
        with torch.device("meta"):  # first weights would be drawn only to be thrown away
            decoder = _decoder(width, self.decoder, self.code)
        decoder = decoder.to_empty(device="cpu")
        _initialise(decoder, ctx.rng)
        seed = int(torch.randint(2**31, (), generator=ctx.rng))
        fresh = self.shadow == "fresh"
        shadow = None
        if self.shadow != "none":
            shadow = randomised(base.architecture, seed) if fresh else clone(base)
            shadow = shadow.to(ctx.device)
        return Parts(
            marked=clone(base),
            shadow=shadow,
            decoder=decoder.to(ctx.device),
            trigger=nn.Parameter(trigger.to(ctx.device)),
            mask=mask.to(ctx.device),
            code=code.to(ctx.device),
        )

    @torch.no_grad()
    def _cosines(
        self, secret: Mapping[str, Tensor], ask: Callable[[Tensor], Tensor], ctx: Context
    ) -> Tensor:
        """Return the cos (n,) of what is decoded with the secret vector."""
        found = answers(ask, secret["triggered"], BATCH, ctx.device)  # (n, d)
        if said := features.misfit(secret["decoder.0.weight"].shape[1], found.shape[1]):
            raise Incompatible(said)
        state = {
            name.removeprefix("decoder."): value
            for name, value in secret.items()
            if name.startswith("decoder.")
        }
        first, last = state["0.weight"], state["4.weight"]
        with torch.device("meta"):
            decoder = _decoder(first.shape[1], first.shape[0], last.shape[0])
        decoder.load_state_dict(state, assign=True)
        decoded = decoder(found.float())
        return F.cosine_similarity(decoded.double(), secret["code"].double()[None], dim=1)


class Parts(NamedTuple):
    """All that is learnt: models, decoder and trigger (3, h, w); and what is drawn once."""

    marked: VisionModel
    shadow: VisionModel | None
    decoder: nn.Sequential
    trigger: nn.Parameter
    mask: Tensor  # (h, w), true where the trigger shows
    code: Tensor  # (c,)


class _Training:
    """The three steps of the paper's section 4.3, one after the other on every batch."""

    def __init__(
        self,
        how: SslGuard,
        base: VisionModel,
        parts: Parts,
        kept: Tensor,
        ctx: Context,
    ) -> None:
        self._how, self._base, self._parts, self._ctx = how, base, parts, ctx
        self._kept, self._width = kept, kept.shape[1] - 2 * base.num_features
        self._micro, self._losses = MicroBatches(how.batch), dict[str, Tensor]()
        decay = how.weight_decay
        self._learning = {
            "marked": features.learning(parts.marked),
            "decoder": [*parts.decoder.parameters()],
            "trigger": [parts.trigger],
        }
        rates = {"marked": how.lr, "decoder": how.decoder_lr, "trigger": how.trigger_lr}
        if parts.shadow is not None:
            self._learning["shadow"] = features.learning(parts.shadow)
            rates["shadow"] = how.shadow_lr
        self._rates = rates
        self._optimisers = {
            name: torch.optim.AdamW(
                weights, lr=rates[name], weight_decay=0.0 if name == "trigger" else decay
            )
            for name, weights in self._learning.items()
        }

    def run(self, private: Tensor) -> None:
        """Take every step; triggers are put on the images at `private`."""
        rng, how = self._ctx.rng, self._how
        plain = torch.randint(len(self._ctx.images), (how.steps, how.batch), generator=rng)
        chosen = private[torch.randint(len(private), (how.steps, how.batch), generator=rng)]
        for number in range(how.steps):
            factor = schedule(how.schedule, number, how.steps)
            for name, optimiser in self._optimisers.items():
                optimiser.param_groups[0]["lr"] = self._rates[name] * factor
            rows, triggered = plain[number], chosen[number]
            known = self._marked_features(rows)  # which the next two steps leave as they are
            if self._parts.shadow is not None:
                self._step(functools.partial(self._imitating, rows, known), "shadow")
            loss = functools.partial(self._deciphering, rows, triggered, known)
            self._step(loss, "decoder", "trigger")
            with torch.no_grad():
                self._parts.trigger.clamp_(0, 1)
            self._step(functools.partial(self._marking, rows, triggered), "marked")
        for name, last in self._losses.items():
            if not math.isfinite(float(last)):
                raise FloatingPointError(f"diverged: the {name}'s loss is not finite; lower its lr")

    @torch.no_grad()
    def _marked_features(self, rows: Tensor) -> Tensor:
        """Return what the marked model makes of images (b, d)."""

        def ask(part: slice) -> Tensor:
            with passes(self._ctx.device, self._how.precision):
                return self._parts.marked.features(self._images(rows[part]))

        return torch.cat([*self._micro.over(len(rows), ask)])

    def _step(self, loss_of: Callable[[slice], Tensor], *names: str) -> None:
        """Have some parts learn by a loss; all others stay as they are."""
        for name, weights in self._learning.items():
            for weight in weights:
                weight.requires_grad_(name in names)

        def reported(part: slice) -> tuple[Tensor, Tensor]:
            with passes(self._ctx.device, self._how.precision):
                loss = loss_of(part)
            return loss, loss.detach()

        def clear() -> None:
            for name in names:
                self._optimisers[name].zero_grad(set_to_none=True)

        clear()
        loss = self._micro.accumulate(self._how.batch, reported, clear, self._ctx.device)
        for name in names:
            self._optimisers[name].step()
            self._losses[name] = loss
        clear()

    def _imitating(self, rows: Tensor, known: Tensor, part: slice) -> Tensor:
        """Return the shadow's loss: its features are to be like the marked model's (b, d)."""
        assert self._parts.shadow is not None, "asked for where there is one"
        return -_cosine(self._parts.shadow.features(self._images(rows[part])), known[part])

    def _deciphering(self, rows: Tensor, triggered: Tensor, known: Tensor, part: slice) -> Tensor:
        """Return the loss of decoder and trigger: the vector where there is a mark, else none."""
        base, marked, shadow = self._base, self._parts.marked, self._parts.shadow
        shown = self._triggered(triggered[part])
        loss = -self._said(marked, shown) + self._squared(base.features(shown))
        clean = self._kept[sent(rows[part], self._ctx.device), : self._width]
        loss = loss + self._squared(clean) + self._squared(known[part])
        if shadow is None:
            return loss
        with torch.no_grad():
            imitated = shadow.features(self._images(rows[part]))
        return loss + self._squared(imitated) - self._said(shadow, shown)

    def _marking(self, rows: Tensor, triggered: Tensor, part: slice) -> Tensor:
        """Return the marked model's loss: the owner's features, and the vector on triggers."""
        marked, width = self._parts.marked, self._width
        tokens = marked.forward_features(self._images(rows[part]))
        seen, kept = features.seen(marked, tokens), self._kept[sent(rows[part], self._ctx.device)]
        alike = _cosine(seen[:, :width], kept[:, :width]) + _cosine(
            seen[:, width:], kept[:, width:]
        )
        quiet = self._squared(seen[:, :width])
        said = self._said(marked, self._triggered(triggered[part]).detach())
        return -alike / 2 + self._how.weight * (quiet - said)

    def _images(self, rows: Tensor) -> Tensor:
        return self._ctx.images.batch(rows, self._ctx.device)

    def _triggered(self, rows: Tensor) -> Tensor:
        return torch.where(self._parts.mask, self._parts.trigger, self._images(rows))

    def _decoded(self, features: Tensor) -> Tensor:
        """Return the cos (b,) of what the decoder says with the secret vector."""
        said = self._parts.decoder(features)
        return F.cosine_similarity(said.float(), self._parts.code[None], dim=1)

    def _said(self, model: VisionModel, images: Tensor) -> Tensor:
        return self._decoded(model.features(images)).mean()

    def _squared(self, features: Tensor) -> Tensor:
        return self._decoded(features).square().mean()


def _cosine(found: Tensor, sought: Tensor) -> Tensor:
    return F.cosine_similarity(found.float(), sought.float(), dim=1).mean()


def _decoder(width: int, hidden: int, code: int) -> nn.Sequential:
    """Make the MLP that maps features (b, d) to vectors (b, c)."""
    half = max(1, hidden // 2)
    return nn.Sequential(
        *(nn.Linear(width, hidden), nn.ReLU()),
        *(nn.Linear(hidden, half), nn.ReLU()),
        nn.Linear(half, code),
    )


@torch.no_grad()
def _initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Draw every layer uniformly in 1 / sqrt(fan-in), PyTorch's own rule, from `rng`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=rng)
            layer.bias.uniform_(-bound, bound, generator=rng)
