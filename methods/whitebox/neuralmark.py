"""Bits in the weights that a hash of the key lets through, pooled and projected.

Y. Yao, J. Song, J. Jin, "Hashed watermark as a filter: a unified defense against forging and
overwriting attacks in neural network watermarking", AAAI 2026, https://arxiv.org/abs/2507.11137.
Written from its abstract and from memory; the code was not seen.

A secret matrix K is hashed to a watermark b of T bits. Tiled over a layer's weights, b keeps those
that stand at its ones; what is left is filtered again, R times in all. Average pooling brings it to
length k, and bit i is read as K_i w > 0. Embedding is as in Uchida et al. Another key keeps other
weights, so to overwrite one mark leaves most of what carries the first.

What remains random, where the watermark itself selects the weights: not b. The pooled weights
depend on it, and b may not be taken for coins about them. The signs of K's rows remain: each is as
likely as its opposite, whatever was selected. Here they are drawn last, from a hash of all else,
and are the bits of the exact null. So K is drawn as in the paper, in two parts.

Binding b to K by a hash does not make a chosen K honest. The weights that b lets through tell of b.
`forged` fits a K to an innocent model until it foresees the bits of any b, whatever the hash makes
of K. Of 32 bits in 2304 random weights it foresees 99.9 % with R = 1, 78 % with R = 2 and 59 % with
R = 4, over 200 hashes. So K must follow from a commitment, and does here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.models import VisionModel
from bench.registry import method
from bench.training import Schedule
from bench.types import (
    Access,
    Context,
    Count,
    Evidence,
    Facts,
    Incompatible,
    Json,
    NotNegative,
    Paper,
    PartialShare,
    Passes,
    Positive,
    Protected,
    Sizes,
    Suspect,
    UserError,
)
from methods.commitment import BITS, NONCE, nonce, normal, owner_digest, without
from methods.whitebox import bits, embedding, tensors
from methods.whitebox.tensors import Carrier

PLACE = "place"

DRAWS = 64
"""Keys drawn at most until one has a filter that leaves enough."""

RIDGE = 100.0
"""The penalty, beside one example each, with which a forged K is fitted."""


@method("neuralmark", version=2)
@dataclass(frozen=True)
class NeuralMark:
    """Write bits into weights that a hash of the key selects.

    The null is exact, over the signs of K's rows: about any model made without the key each bit is
    a fair coin. It covers strangers, the clean owner and its copies, models marked with another
    key, and keys made afterwards up to trying: p costs 1 / p keys.

    * `tensor`, `block`: "fc1" and "fc2" are the first and last map of an MLP; 0-based number of the
      block, "auto" the one in the middle. Weights are counted row by row: permuted channels or
      neurons are other weights.
    * `bits`: T; the paper's 256 fit a ViT-L. 32 fit `mini`.
    * `rounds`: R; each keeps about half of the weights. The paper's 4.
    * `pooled`: k, not below T where every bit is to be free. 64 fits `mini`, 512 a ViT-L.
    * `weight`: of the sum over bits, as Uchida's; the paper's own was not seen.
    * `steps`, `batch`, `lr`, `schedule`, `warmup`, `weight_decay`: AdamW's. Each kept weight has to
      move far, for few others share in its bit: in 400 steps of 4 images, one key on `mini`, 84 %
      of the bits were learnt at 1e-3 and all at 3e-3. What a ViT-L needs was not tried;
      `bench tune` finds it.
    * `holder`: who claims the model, as the commitment says it.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        unit="bit",
        paper=Paper(2026, "Yao, Song, Jin, AAAI", "arXiv:2507.11137"),
        departures=(
            "Written from the abstract: sizes and the weight are settings.",
            "The rows of K are drawn from a commitment, their signs last: the paper's K is free.",
            "A key whose filter leaves too few weights is drawn again.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "weight": (1e-3, 1e-2, 1e-1, 1.0),
    }

    tensor: Literal["fc1", "fc2"] = "fc1"
    block: Count | Literal["auto"] = "auto"
    bits: Positive = 32
    rounds: Positive = 4
    pooled: Positive = 64
    weight: NotNegative = 0.01
    steps: Positive = 400
    batch: Positive = 16
    lr: NotNegative = 3e-3
    schedule: Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.0
    holder: str = ""

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes hold the losses and the share of bits it carries."""
        carrier = tensors.carrier(owner, self.tensor, self.block)
        secret = self._key(owner, carrier, ctx.rng)
        kept = self._kept(secret, carrier)
        projection = self._projection(secret).float().to(ctx.device)
        places = kept.to(ctx.device)

        def values(model: VisionModel) -> Tensor:
            return projection @ pooled(carrier.of(model).flatten()[places], self.pooled)

        sought = self._watermark(secret) ^ secret[BITS]
        how = embedding.embedding_of(self)
        marked, notes = embedding.write(how, owner, values, sought, self.weight, ctx)
        before, after = (self._read(secret, model).rate for model in (owner, marked))
        notes |= {"block": carrier.block, "kept": len(kept)}
        return Protected(marked, secret, notes | {"bits_before": before, "bits_carried": after})

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Read every bit off the suspect's tensor; one query is one bit, and no image is needed.

        Raises:
            UserError: the bits are not those that the secret commits to.
            Incompatible: the suspect has no such tensor, or one of another shape.

        """
        bits.check(secret, self._rule, "neuralmark")
        return self._read(secret, suspect.network)

    def redrawn(self, secret: Mapping[str, Tensor], rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the secret with other signs of K's rows; the filter stays as it was."""
        return bits.with_bits({**secret, NONCE: nonce(rng)}, self.bits, self._rule)

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that the suspect lacks such a tensor, or has one of another shape."""
        try:
            tensors.carrier(owner, self.tensor, self.block).of(suspect)
        except Incompatible as error:
            return str(error)
        return ""

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the clean passes, and the steps there and back."""
        return embedding.embedding_passes(embedding.embedding_of(self), sizes)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count none: weights are read."""
        return Passes()

    @property
    def _rule(self) -> Json:
        """What decides how bits are read, and who claims them: the commitment binds it."""
        return {
            "name": "neuralmark",
            "version": 2,
            "tensor": self.tensor,
            "bits": self.bits,
            "rounds": self.rounds,
            "pooled": self.pooled,
            "holder": self.holder,
        }

    def _key(self, owner: VisionModel, carrier: Carrier, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw a key whose watermark lets enough weights through.

        Departure: the paper has 256 bits and larger layers, and need not draw again. No suspect and
        no sign of K has a part in it, so the null stays exact.

        Raises:
            UserError: hardly any watermark does.

        """
        known = {PLACE: carrier.tensor(), "owner": owner_digest(owner)}
        most = 0
        for _ in range(DRAWS):
            secret = {**known, bits.SEED: nonce(rng), NONCE: nonce(rng)}
            if (found := len(self._kept(secret, carrier))) >= self.pooled:
                return bits.with_bits(secret, self.bits, self._rule)
            most = max(most, found)
        raise UserError(
            f"neuralmark: expected at least pooled = {self.pooled} weights behind the filter, got "
            f"{most} or fewer; lower `rounds` or `pooled`"
        )

    def _watermark(self, secret: Mapping[str, Tensor]) -> Tensor:
        """Return b (T,), 0 or 1.

        Departure from b = H(K): what K's rows are drawn from is hashed, not their floats, whose
        last digits are each processor's own, and not their signs, which are to be independent.
        """
        return bits.drawn(without(secret, BITS, NONCE), self.bits, self._rule)

    def _projection(self, secret: Mapping[str, Tensor]) -> Tensor:
        """Return K (T, k) before its rows are given their signs, which the bits are."""
        return normal(bits.projecting(secret, self._rule), self.bits, self.pooled)

    def _kept(self, secret: Mapping[str, Tensor], carrier: Carrier) -> Tensor:
        """Return the places of the weights that the watermark lets through."""
        return filtered(carrier.outputs * carrier.inputs, self._watermark(secret), self.rounds)

    def _read(self, secret: Mapping[str, Tensor], model: VisionModel) -> Evidence:
        carrier = tensors.found_again(self.tensor, secret[PLACE])
        weights = carrier.of(model).detach().cpu().double().flatten()
        values = self._projection(secret) @ pooled(
            weights[self._kept(secret, carrier)], self.pooled
        )
        # A row's sign turns its value over: the same as turning over what it is compared with.
        return bits.compare(values, self._watermark(secret) ^ secret[BITS].cpu())


def filtered(count: int, watermark: Tensor, rounds: int) -> Tensor:
    """Return which of `count` weights a watermark (T,) lets through, in order."""
    places = torch.arange(count)
    for _ in range(rounds):
        tiled = watermark.bool().repeat(-(-len(places) // len(watermark)))
        places = places[tiled[: len(places)]]
    return places


def pooled(weights: Tensor, length: int) -> Tensor:
    """Return weights (n,) averaged to (k,)."""
    return F.adaptive_avg_pool1d(weights[None, None], length)[0, 0]


def forged(
    weights: Tensor, count: int, length: int, rounds: int, examples: int, rng: torch.Generator
) -> Tensor:
    """Fit a K (T, k) by which weights (n,) read as most bits of a watermark not yet known.

    For random b the pooled weights are known, so that a ridge regression of b on them foresees b.
    The hash of K is then one more random b. Ours: the paper holds such a key to be infeasible.
    """
    seen, told = list[Tensor](), list[Tensor]()
    while len(seen) < examples:
        watermark = torch.randint(2, (count,), generator=rng)
        places = filtered(len(weights), watermark, rounds)
        if len(places) >= length:
            seen.append(pooled(weights.double()[places], length))
            told.append(watermark.double() * 2 - 1)
    known, wanted = torch.stack(seen), torch.stack(told)  # (e, k), (e, T)
    scale = known.square().mean(0).sqrt().clamp_min(1e-12)  # (k,)
    known = known / scale
    square = known.T @ known + RIDGE * torch.eye(length, dtype=torch.float64)
    made: Tensor = torch.linalg.solve(square, known.T @ wanted).T / scale
    return made
