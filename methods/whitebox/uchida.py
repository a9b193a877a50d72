"""Bits in the mean of a layer's filters, by a secret projection and a regulariser.

Y. Uchida, Y. Nagai, S. Sakazawa, S. Satoh, "Embedding watermarks into deep neural networks", ICMR
2017, https://arxiv.org/abs/1701.04082.

With w the mean of a layer's weights over its outputs, and a secret X, bit i is read as X_i w > 0
(eq. 1). Training adds the cross-entropy of sigmoid(X w) with the bits to the loss (eqs. 2 and 3).

What a transformer offers, and what each can be undone by:

| tensor | M | lies in the function | invariant under | undone by |
| --- | --- | --- | --- | --- |
| "fc1", reads the stream | d | yes | permuted neurons | permuted or rotated channels, gains |
| "fc2", writes to it | hidden units | no | permuted channels | baked means, permuted neurons |
| "patch", the paper's convolution | 3 p^2 | no | permuted channels | baked means |

The mean over a writer's outputs is what it writes along the all-ones direction of the stream, which
every LayerNorm subtracts. Where only LayerNorms read the stream, and no LayerScale stands between,
these bits cost no accuracy to write, and none to erase. `embedding="closed form"` writes them
without a pass. Baked means delete them, and so does `reparam.shift` with an `sd`.

Anybody can make a key afterwards: `projections.forged` gives an X by which any w reads as any bits.
Hence two methods. The key of `uchida.free` is what the paper's is, an X and bits. That of `uchida`
is a commitment, from which X and bits follow: neither can be chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

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
    Paper,
    PartialShare,
    Passes,
    Positive,
    PositiveFloat,
    Protected,
    Sizes,
    Suspect,
)
from methods.commitment import BITS, NONCE, nonce, owner_digest
from methods.whitebox import bits, embedding, projections, tensors
from methods.whitebox.tensors import Carrier

PLACE, PROJECTION = "place", "projection"


@method("uchida.free", version=2)
@dataclass(frozen=True)
class FreeUchida:
    """Write bits into the mean of a layer's filters; the key is any projection and any bits.

    It is what the paper has, and a control: whoever makes a key after the model can have it read
    anything, so its evidence has no exact null.

    * `tensor`: "fc1" and "fc2" are the first and last map of an MLP, "patch" the filters that embed
      patches. Only "fc1" lies in the function.
    * `block`: 0-based number of the block; "auto" is the one in the middle.
    * `projection`: how X is drawn; the paper finds "random" the best.
    * `bits`: T. At most M can be asked for freely, and half of that is learnt soon: 24 fit `mini`,
      whose M is 48. The paper's 256 fit a ViT-L, whose M is 1024.
    * `embedding`: "trained" is the paper's; "closed form" adds the least vector to every output
      that gives every bit, without any data. Ours.
    * `margin`: how far the closed form brings values, in root mean squares of the owner's.
    * `weight`: lambda of eq. 2, for the sum over bits; 0.01 is the paper's.
    * `steps`, `batch`, `lr`, `schedule`, `warmup`, `weight_decay`: AdamW's. The paper trains with
      SGD for 200 epochs; 64 is its batch. What a ViT-L needs was not tried; `bench tune` finds it.
    * `holder`: who claims the model, as a commitment says it.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        unit="bit",
        paper=Paper(2017, "Uchida et al., ICMR", "arXiv:1701.04082"),
        departures=(
            "Matching the owner's features is the task; the paper trains on labels.",
            "The patch embedding's weights, or an MLP's, stand for a convolution.",
        ),
    )
    tunable: ClassVar[Mapping[str, tuple[Json, ...]]] = {
        # The paper's lambda and ten times it either way; rates up to where small models need them.
        "lr": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "weight": (1e-3, 1e-2, 1e-1, 1.0),
    }

    tensor: tensors.Name = "fc1"
    block: Count | Literal["auto"] = "auto"
    projection: projections.Kind = "random"
    bits: Positive = 24
    embedding: Literal["trained", "closed form"] = "trained"
    margin: PositiveFloat = 3.0
    weight: NotNegative = 0.01
    steps: Positive = 400
    batch: Positive = 16
    lr: NotNegative = 1e-3
    schedule: Schedule = "cosine"
    warmup: PartialShare = 0.1
    weight_decay: NotNegative = 0.0
    holder: str = ""

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Mark a copy of `owner`; the notes hold the losses and the share of bits it carries."""
        carrier = tensors.carrier(owner, self.tensor, self.block)
        secret = self._key(owner, carrier, ctx.rng)
        projection = self._projection(secret)
        if self.embedding == "trained":
            marked, notes = self._trained(owner, carrier, projection, secret[BITS], ctx)
        else:
            marked, notes = self._solved(owner, carrier, projection, secret[BITS]), {}
        before, after = (self._read(secret, model).rate for model in (owner, marked))
        notes |= {"block": carrier.block, "inputs": carrier.inputs}
        return Protected(marked, secret, notes | {"bits_before": before, "bits_carried": after})

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Read every bit off the suspect's tensor; one query is one bit, and no image is needed.

        Raises:
            Incompatible: the suspect has no such tensor, or one of another shape.

        """
        return self._read(secret, suspect.network)

    def forged(self, suspect: Suspect, ctx: Context) -> Mapping[str, Tensor]:
        """Return a key, made after the suspect, by which it reads as marked."""
        network = suspect.network
        carrier = tensors.carrier(network, self.tensor, self.block)
        sought = torch.randint(2, (self.bits,), generator=ctx.rng, dtype=torch.uint8)
        projection = projections.forged(mean_filter(network, carrier), sought, _seed(ctx.rng))
        return {PLACE: carrier.tensor(), PROJECTION: projection, BITS: sought}

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that the suspect lacks such a tensor, or has one of another shape."""
        try:
            tensors.carrier(owner, self.tensor, self.block).of(suspect, whole=False)
        except Incompatible as error:
            return str(error)
        return ""

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count the clean passes, and the steps there and back; the closed form needs none."""
        if self.embedding == "closed form":
            return Passes()
        return embedding.embedding_passes(embedding.embedding_of(self), sizes)

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count none: weights are read."""
        return Passes()

    def _key(self, owner: VisionModel, carrier: Carrier, rng: torch.Generator) -> dict[str, Tensor]:
        """Draw a projection and bits; the authors' runs write ones only."""
        projection = projections.drawn(self.projection, self.bits, carrier.inputs, _seed(rng))
        sought = torch.randint(2, (self.bits,), generator=rng, dtype=torch.uint8)
        return {PLACE: carrier.tensor(), PROJECTION: projection, BITS: sought}

    def _projection(self, secret: Mapping[str, Tensor]) -> Tensor:
        return secret[PROJECTION].cpu().double()

    def _read(
        self, secret: Mapping[str, Tensor], model: VisionModel, null: ExactNull | None = None
    ) -> Evidence:
        carrier = tensors.found_again(self.tensor, secret[PLACE])
        values = self._projection(secret) @ mean_filter(model, carrier)  # (T,)
        return bits.compare(values, secret[BITS], null)

    def _trained(
        self,
        owner: VisionModel,
        carrier: Carrier,
        projection: Tensor,
        sought: Tensor,
        ctx: Context,
    ) -> tuple[VisionModel, dict[str, Json]]:
        x = projection.float().to(ctx.device)

        def values(model: VisionModel) -> Tensor:
            return x @ carrier.of(model, whole=False).flatten(1).mean(0)  # (T,)

        how = embedding.embedding_of(self)
        return embedding.write(how, owner, values, sought, self.weight, ctx)

    def _solved(
        self, owner: VisionModel, carrier: Carrier, projection: Tensor, sought: Tensor
    ) -> VisionModel:
        """Add one vector to every output of the tensor."""
        marked = clone(owner).cpu()
        w = mean_filter(marked, carrier)
        change = projections.closed_form(projection, w, sought, self.margin)  # (M,)
        with torch.no_grad():
            weight = carrier.of(marked)
            weight.copy_(weight.double() + change.view(1, *weight.shape[1:]))
        return marked


@method("uchida", version=2)
@dataclass(frozen=True)
class Uchida(FreeUchida):
    """Write bits into the mean of a layer's filters; projection and bits follow from a commitment.

    The null is exact. X is drawn from the key's seed and the bits from a hash of all else, so about
    any model made without the key each bit is a fair coin: strangers, the clean owner and its
    copies, models marked with another key. It covers keys made afterwards as well, up to trying: p
    costs 1 / p keys. It does not cover a model that its holder marked with a key of his own.

    * `tensor`, `block`, `projection`, `bits`, `embedding`, `margin`, `weight`, `steps`, `batch`,
      `lr`, `schedule`, `warmup`, `weight_decay`, `holder`: as in `uchida.free`.
    """

    facts: ClassVar[Facts] = Facts(
        unit="bit",
        paper=Paper(2017, "Uchida et al., ICMR", "arXiv:1701.04082"),
        departures=(
            "Projection and bits follow from a commitment; the paper's are free.",
            "Matching the owner's features is the task; the paper trains on labels.",
            "The patch embedding's weights, or an MLP's, stand for a convolution.",
        ),
    )

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Read every bit off the suspect's tensor; one query is one bit, and no image is needed.

        Raises:
            UserError: the bits are not those that the secret commits to.
            Incompatible: the suspect has no such tensor, or one of another shape.

        """
        bits.check(secret, self._rule, "uchida")
        return self._read(secret, suspect.network, bits.COINS)

    def redrawn(self, secret: Mapping[str, Tensor], rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the secret with another nonce, which gives other bits and the same projection."""
        fresh = {**secret, NONCE: nonce(rng)}
        return bits.with_bits(fresh, self.bits, self._rule)

    def forged(self, suspect: Suspect, ctx: Context) -> Mapping[str, Tensor]:
        """Return a key made after the suspect: another draw is all that a commitment leaves."""
        network = suspect.network
        return self._key(network, tensors.carrier(network, self.tensor, self.block), ctx.rng)

    @property
    def _rule(self) -> Json:
        """What decides how bits are read, and who claims them: the commitment binds it."""
        return {
            "name": "uchida",
            "version": 2,
            "tensor": self.tensor,
            "projection": self.projection,
            "bits": self.bits,
            "holder": self.holder,
        }

    def _key(self, owner: VisionModel, carrier: Carrier, rng: torch.Generator) -> dict[str, Tensor]:
        secret = {
            PLACE: carrier.tensor(),
            "owner": owner_digest(owner),
            bits.SEED: nonce(rng),
            NONCE: nonce(rng),
        }
        return bits.with_bits(secret, self.bits, self._rule)

    def _projection(self, secret: Mapping[str, Tensor]) -> Tensor:
        inputs = int(secret[PLACE][2])
        seed = bits.projecting(secret, self._rule)
        return projections.drawn(self.projection, self.bits, inputs, seed)


def mean_filter(model: VisionModel, carrier: Carrier) -> Tensor:
    """Return the mean over outputs of a model's tensor, (M,) in float64 on the CPU.

    Raises:
        Incompatible: the model has no such tensor, or one of another shape.

    """
    return carrier.of(model, whole=False).detach().cpu().double().flatten(1).mean(0)


def _seed(rng: torch.Generator) -> bytes:
    """Draw what a projection follows from that nothing commits to."""
    return bytes(nonce(rng).tolist())
