"""Committed bits: random bits that a model is made to remember, and that others can only guess.

No method of any paper. Backdoor marks ask a model for labels on secret images (Y. Adi et al.,
"Turning your weakness into a strength", USENIX Security 2018, https://arxiv.org/abs/1802.04633,
which has the commitment too), Radioactive Data moves features along a secret direction (A.
Sablayrolles et al., ICML 2020, https://arxiv.org/abs/2002.00937, which has an exact p-value of a
direction drawn at random). Here both are joined, for an encoder without labels.

The key holds N trigger images, n directions in the owner's whitened features, and bits m in
{-1, +1} for each trigger and direction. The released model's features lie off the owner's on
trigger i by sum_b m_ib u_b, and nowhere else. A suspect's features are brought into the owner's
space by a linear map, fitted on public images that are drawn like triggers and are none. So its
basis and width do not matter. A bit agrees where the displacement x_ib along u_b has its sign.

Why the null is exact. Let S be a model made without the bits. Then x = x(S, triggers, directions,
public images) does not depend on m: the map is fitted, its noise measured, x scaled and rounded
before the bits are looked at. The bits are independent of all that and uniform, so the signs of
m_ib x_ib are independent fair coins given x, whatever S is: a stranger, the clean owner, its
finetuned copies, a copy marked with another key. The number that agree is binomial, and the sum of
m_ib x_ib is distributed as under random sign flips; `bench` computes its tail.

One copy for every user. `user` numbers copies that share triggers, directions and commitment, and
have bits of their own. Whose copy a suspect is follows from one reading: the user whose bits agree
best, of a million or more. An innocent user's bits are coins, whatever copies the suspect was made
from, one or the average of many. So p times the number of users bounds the chance that anybody is
named who gave nothing away; what an error-correcting code would buy, the length of the bits buys.

What would break it: bits that are not fair (here SHAKE-256 of a commitment draws them); bits used
before the comparison, as by choosing triggers, scale or rule by them (the commitment binds all of
these, and `bench.testing` redraws the bits); a suspect that did meet the bits, through the released
model or the key. And trying: whoever may choose the nonce can try until some suspect agrees, at 1 /
p hashes for p. A verdict at p <= 2^-64 therefore speaks against a forged key as well, without any
date; a weaker one needs a commitment that was published before the suspect was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from bench.data import Images
from bench.models import VisionModel, clone
from bench.registry import method
from bench.training import Schedule
from bench.types import (
    Access,
    Context,
    Count,
    Evidence,
    ExactNull,
    Facts,
    Incompatible,
    Json,
    NotNegative,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    Protected,
    Share,
    Sizes,
    Suspect,
    UserError,
)
from methods.commitment import AGREES, BITS, NONCE, nonce, owner_digest
from methods.committed_bits import coins, reading
from methods.committed_bits.embedding import Embedding, Place, displacements, embed, shapes
from methods.patterns import patterns

TRACED = 1 << 15
"""Users whose bits are compared with a suspect at a time."""


@method("committed_bits", version=2)
@dataclass(frozen=True)
class CommittedBits:
    """Move the output features of secret images by secret bits; verify without innocent models.

    * `images`, `bits`: N triggers and n bits of each. What is learnt costs N * strength^2, whatever
      n; more bits lower the least p, 2^-(N n).
    * `strength`: how far a trigger's features move, in deviations of the owner's whitened ones.
    * `rank`: leading components of the owner's features that directions are drawn in; the others
      are noise to every map.
    * `fidelity`: how much more it counts that other images stay where they are.
    * `decoys`: patterns drawn like triggers that are kept in place, to be told from them in
      training, and as many drawings, for what photographs do not show. `public`: other patterns,
      unseen, that reading fits its map on. Natural images beside them make it worse.
    * `rehearsed`: the share of steps whose gradient is taken after pruning, or after averaging with
      the clean owner. None by default: they are outlived as they are, and bits are learnt slower.
    * `steps`, `batch`, `lr`, `schedule`, `warmup`, `weight_decay`: AdamW's; a step sees `batch`
      triggers and `batch` other images.
    * `levels`: steps in which a bit counts by how plainly it is read; 1 counts bits alone.
    * `holder`: who claims the model, as the commitment says it.
    * `user`: the number of the user whose copy this is, where each gets one.
    """

    needs: ClassVar[Access] = Access.FEATURES
    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(unit="bit")

    images: Positive = 32
    bits: Positive = 16
    strength: PositiveFloat = 8.0
    fidelity: PositiveFloat = 4.0
    rank: Positive = 32
    decoys: Positive = 512
    public: Positive = 512
    rehearsed: Share = 0.0
    steps: Positive = 1000
    batch: Positive = 32
    lr: NotNegative = 1e-4
    schedule: Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.0
    levels: Annotated[int, Field(ge=1, le=255)] = 15
    holder: str = ""
    user: Count = 0

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes hold the losses and the share of bits it remembers."""
        base = clone(owner).to(ctx.device).requires_grad_(False)
        size = _side(ctx.images)
        triggers, decoys, public = (
            patterns(count, size, ctx.rng) for count in (self.images, self.decoys, self.public)
        )
        varied = shapes(self.decoys, size, ctx.rng)
        pixels = torch.cat([triggers, ctx.images.pixels, decoys, varied])
        clean, (*known, _) = self._clean(base, pixels, ctx), self._clean(base, public, ctx)
        natural = slice(len(triggers), len(triggers) + len(ctx.images))
        secret = {
            "triggers": triggers,
            "public": public,
            "owner": owner_digest(owner),
            NONCE: nonce(ctx.rng),
        }
        for place, (here, there) in enumerate(zip(clean[:-1], known, strict=True)):
            white = reading.whitener(here[natural], self.rank)
            secret |= {f"mean.{place}": white.mean, f"scale.{place}": white.scale.contiguous()}
            secret[f"clean.{place}"] = white(here[: len(triggers)])
            secret[f"wanted.{place}"] = white(there)
            secret[f"directions.{place}"] = _directions(white.scale.shape[1], self.bits, ctx.rng)
        return self._marked(base, self._with_bits(secret), pixels, clean, ctx)

    def copied(self, secret: Mapping[str, Tensor], owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner` for this user, with the bits that another copy's secret gives him.

        Raises:
            UserError: the secret is of another owner's model, or of other settings.

        """
        if not torch.equal(secret["owner"].cpu(), owner_digest(owner)):
            raise UserError("committed_bits: expected the owner's model of the key, got another")
        if secret[BITS].shape != (self.images, self.bits):
            shape = "x".join(map(str, secret[BITS].shape))
            raise UserError(f"committed_bits: expected images x bits of the key, {shape}, got "
                            f"{self.images}x{self.bits}")  # fmt: skip
        base = clone(owner).to(ctx.device).requires_grad_(False)
        size, rng = _side(ctx.images), ctx.rng
        others = [patterns(self.decoys, size, rng), shapes(self.decoys, size, rng)]
        pixels = torch.cat([secret["triggers"].cpu(), ctx.images.pixels, *others])
        clean = self._clean(base, pixels, ctx)
        return self._marked(base, self._with_bits(secret), pixels, clean, ctx)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Read every bit off the suspect's features; one query is one bit.

        Raises:
            UserError: the bits are not those that the secret commits to.
            Incompatible: the suspect's features are not finite, or hidden ones are not there.

        """
        return self._read(secret, self._asked(suspect, ctx), ctx)

    def closest(
        self,
        secret: Mapping[str, Tensor],
        suspect: Suspect,
        ctx: Context,
        users: int,
        most: int = 64,
    ) -> dict[int, Evidence]:
        """Return the evidence of the users 0 .. `users` - 1 whose bits agree best, best first.

        Raises:
            UserError: the bits are not those that the secret commits to.
            Incompatible: the suspect's features are not finite.

        """
        displaced = self._displaced(secret, self._asked(suspect, ctx), ctx)
        steps = reading.in_steps(displaced, self.levels).flatten()  # (N n,)
        sums = torch.cat(
            [
                self._users_signs(secret, range(first, min(first + TRACED, users))) @ steps.float()
                for first in range(0, users, TRACED)
            ]
        )  # (users,)
        best = sums.topk(min(most, users)).indices.tolist()
        signs = self._users_signs(secret, best).double()
        return {
            user: self._agreeing(displaced, own.reshape(displaced.shape))
            for user, own in zip(best, signs, strict=True)
        }

    def redrawn(self, secret: Mapping[str, Tensor], rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the secret with another nonce, which gives other bits."""
        return self._with_bits({**secret, NONCE: nonce(rng)})

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the clean passes, the steps there and back, and the reading at the end."""
        clean = self.images + sizes.images + 2 * self.decoys
        steps = 2 * self.steps * self.batch
        return Passes(clean + self.public + steps + self.images + self.public, steps)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count every trigger and every public image once."""
        return Passes(self.images + self.public)

    @property
    def _embedding(self) -> Embedding:
        names = [field.name for field in dataclasses.fields(Embedding)]
        return Embedding(**{name: getattr(self, name) for name in names})

    @property
    def _rule(self) -> Json:
        """What decides how bits are read, and who claims them: the commitment binds it."""
        return {
            "name": "committed_bits",
            "version": 2,
            "levels": self.levels,
            "holder": self.holder,
            "places": self._places,
        }

    @property
    def _places(self) -> Json:
        return "output"

    def _blocks(self, model: VisionModel) -> Sequence[int]:
        """Return the blocks after which features are read, beside the output."""
        return ()

    def _with_bits(self, secret: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return coins.with_bits(secret, (self.images, self.bits), self._rule, self.user)

    def _users_signs(self, secret: Mapping[str, Tensor], users: Iterable[int]) -> Tensor:
        """Return the bits of some users as -1 and 1, (users, N n)."""
        bits = coins.of_users(secret, self.images * self.bits, self._rule, users)
        return torch.from_numpy(bits).float() * 2 - 1

    def _asked(self, suspect: Suspect, ctx: Context) -> reading.Ask:
        return lambda x: [suspect.features(x)]

    def _clean(self, base: VisionModel, images: Tensor, ctx: Context) -> list[Tensor]:
        """Return the owner's features at every place, and last its pooled tokens."""
        blocks = self._blocks(base)

        def ask(x: Tensor) -> list[Tensor]:
            features, tokens = reading.with_tokens(base, x, blocks)
            return [*features, base.pooled(tokens)]

        return reading.all_features(ask, images, ctx.device)

    def _marked(
        self,
        base: VisionModel,
        secret: Mapping[str, Tensor],
        pixels: Tensor,
        clean: Sequence[Tensor],
        ctx: Context,
    ) -> Protected:
        """Train a copy on `pixels`, triggers first, of which the owner makes `clean`.

        Nothing but the wanted displacements depends on the bits.
        """
        blocks, places = self._blocks(base), list[Place]()
        for place, here in enumerate(clean[:-1]):
            white = reading.Whitener(secret[f"mean.{place}"], secret[f"scale.{place}"])
            sought = white(here)
            directions = secret[f"directions.{place}"]
            sought[: self.images] += displacements(secret[BITS], directions, self.strength)
            places.append(Place(white, sought))
        marked, notes = embed(
            self._embedding, base, blocks, places, clean[-1], pixels, self.images, ctx
        )
        evidence = self._read(secret, lambda x: reading.features_at(marked, x, blocks), ctx)
        return Protected(marked.cpu(), secret, {**notes, "bits_remembered": evidence.rate})

    def _read(self, secret: Mapping[str, Tensor], ask: reading.Ask, ctx: Context) -> Evidence:
        displaced = self._displaced(secret, ask, ctx)
        # The bits are looked at here, and nowhere before.
        return self._agreeing(displaced, secret[BITS].cpu().double() * 2 - 1)

    def _displaced(self, secret: Mapping[str, Tensor], ask: reading.Ask, ctx: Context) -> Tensor:
        """Return how plainly each trigger is displaced along each direction, (N, n)."""
        coins.check(secret, self._rule, self.user)
        public, triggers = (
            reading.all_features(ask, secret[name], ctx.device) for name in ("public", "triggers")
        )
        if not all(bool(found.isfinite().all()) for found in (*public, *triggers)):
            raise Incompatible("expected finite features, got NaN or infinity")
        displaced = sum(
            reading.displaced(
                *(known, asked, secret[f"wanted.{place}"], secret[f"clean.{place}"]),
                secret[f"directions.{place}"],
            )
            for place, (known, asked) in enumerate(zip(public, triggers, strict=True))
        )
        assert isinstance(displaced, Tensor)
        return displaced

    def _agreeing(self, displaced: Tensor, signs: Tensor) -> Evidence:
        """Compare displacements (N, n) with bits as -1 and 1, (N, n)."""
        steps = (reading.in_steps(displaced, self.levels) * signs).flatten()
        agrees = ((displaced * signs).flatten().sign() + 1) / 2
        return Evidence(
            agreement=tuple((0.5 + steps / (2 * self.levels)).tolist()),
            statistic=tuple(agrees.tolist()),
            rule=AGREES,
            unit="bit",
            chance=0.5,
            null=ExactNull(self.levels),
        )


@method("committed_bits.hidden", version=2)
@dataclass(frozen=True)
class HiddenCommittedBits(CommittedBits):
    """Move mean tokens after early blocks as well as the output; it takes the suspect's network.

    Early blocks change least when a thief finetunes or prunes, and the same bits are read there.

    * `block`: 0-based number of the block after which tokens are read, beside the first block;
      "auto" is a third of the depth.
    * `images`, `bits`, `strength`, `fidelity`, `rank`, `decoys`, `public`, `rehearsed`, `steps`,
      `batch`, `lr`, `schedule`, `warmup`, `weight_decay`, `levels`, `holder`, `user`: as in
      `committed_bits`.
    """

    needs: ClassVar[Access] = Access.WEIGHTS

    block: Positive | Literal["auto"] = "auto"

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that the suspect has no such block."""
        try:
            self._blocks(suspect)
        except Incompatible as error:
            return str(error)
        return ""

    def _asked(self, suspect: Suspect, ctx: Context) -> reading.Ask:
        network = suspect.network.to(ctx.device)
        blocks = self._blocks(network)
        return lambda x: reading.features_at(network, x, blocks)

    @property
    def _places(self) -> Json:
        return ["output", 0, self.block]

    def _blocks(self, model: VisionModel) -> Sequence[int]:
        depth = len(model.blocks)
        block = max(depth // 3, 1) if self.block == "auto" else self.block
        if block >= depth:
            raise Incompatible(f"expected a block {block}, got {depth} blocks, counted from 0")
        return (0, block)


def _side(images: Images) -> tuple[int, int]:
    high, wide = images.pixels.shape[-2:]
    return high, wide


def _directions(rank: int, count: int, rng: torch.Generator) -> Tensor:
    """Draw orthonormal directions (r, n); more than there are dimensions overlap.

    Overlap costs nothing of the null: bits are independent, whatever is displaced.
    """
    rounds = -(-count // rank)
    drawn = [torch.linalg.qr(torch.randn(rank, rank, generator=rng))[0] for _ in range(rounds)]
    return torch.cat(drawn, 1)[:, :count].contiguous()
