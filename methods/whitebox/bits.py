"""Draw bits and projections from a commitment to the rest of a secret, and compare bits at last.

SHAKE-256 is taken for a random oracle. What it gives is independent of everything it commits to, so
bits drawn from it are fair coins about any model made without them. Whoever tries keys until one
agrees with a given model to the degree p expects to try 1 / p of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bench.models import VisionModel
from bench.types import Evidence, ExactNull, Incompatible, Json, Rule, UserError

BITS, NONCE, SEED = "bits", "nonce", "seed"
"""The tensors of a secret that are the bits, that these are drawn by, and that the rest is."""

NONCE_BYTES = 32

AGREES = Rule("bit agrees", ">=", 1)
"""One where a bit agrees, 0 where it does not, 1/2 where nothing was read."""

COINS = ExactNull()


def nonce(rng: torch.Generator) -> Tensor:
    """Draw what makes two secrets differ where all else is equal."""
    return torch.randint(256, (NONCE_BYTES,), generator=rng, dtype=torch.uint8)


def owner_digest(owner: VisionModel) -> Tensor:
    """Name the clean owner's backbone: SHA-256 over its weights, as bytes (32,)."""
    found = hashlib.sha256()
    for name, value in sorted(owner.trunk.state_dict().items()):
        found.update(_told(name, value))
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def with_bits(secret: Mapping[str, Tensor], count: int, rule: Json) -> dict[str, Tensor]:
    """Return the secret with the bits (T,), 0 or 1, that all else in it commits to with `rule`."""
    rest = {name: value for name, value in secret.items() if name != BITS}
    return {**rest, BITS: drawn(rest, count, rule)}


def drawn(values: Mapping[str, Tensor], count: int, rule: Json) -> Tensor:
    """Draw bits (T,), 0 or 1, from tensors and a rule."""
    found = hashlib.shake_256(_commitment(values, rule)).digest(-(-count // 8))
    return torch.from_numpy(np.unpackbits(np.frombuffer(found, np.uint8))[:count])


def check(secret: Mapping[str, Tensor], rule: Json, who: str) -> None:
    """Refuse a secret whose bits are not those it commits to.

    Raises:
        UserError: a tensor, the nonce or the rule is another than when the bits were drawn.

    """
    bits = secret[BITS]
    if not torch.equal(drawn(_without(secret, BITS), len(bits), rule), bits.cpu()):
        raise UserError(
            f"{who}: expected the bits that the secret commits to, got others: a tensor, the "
            "owner or a setting was changed; take the key as `protect` wrote it"
        )


def generator(secret: Mapping[str, Tensor], rule: Json) -> torch.Generator:
    """Return what a secret's projection is drawn with; neither bits nor nonce have a part in it.

    The projection itself is never hashed: its last digits are each processor's own.
    """
    found = hashlib.sha256(_commitment(_without(secret, BITS, NONCE), rule)).digest()
    return torch.Generator().manual_seed(int.from_bytes(found[:8], "big") >> 1)


def compare(values: Tensor, bits: Tensor, null: ExactNull | None = COINS) -> Evidence:
    """Compare the signs of values (T,) with bits (T,); one query is one bit.

    Nobody looks at the bits before this. A value of 0 tells nothing and counts as 1/2; Uchida et
    al., eq. 1, read it as a 1.

    Raises:
        Incompatible: a value is not finite.

    """
    values = values.detach().double().cpu()
    if not bool(values.isfinite().all()):
        raise Incompatible("expected finite values to read bits off, got NaN or infinity")
    signs = bits.cpu().double() * 2 - 1
    agrees = tuple((((values * signs).sign() + 1) / 2).tolist())
    return Evidence(agrees, agrees, AGREES, unit="bit", chance=0.5, null=null)


def _without(secret: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in secret.items() if name not in names}


def _commitment(values: Mapping[str, Tensor], rule: Json) -> bytes:
    found = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    for name, value in sorted(values.items()):
        found.update(_told(name, value))
    return found.digest()


def _told(name: str, value: Tensor) -> bytes:
    """Write a tensor by name, type, shape and content, so that no two are written alike."""
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    head = f"{name} {value.dtype} {tuple(value.shape)} {len(flat)}\n"
    return head.encode() + hashlib.sha256(flat).digest()
