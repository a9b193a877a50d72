"""Draw a secret's bits from a commitment to all the rest of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bench.models import VisionModel
from bench.types import Json, UserError

BITS = "bits"
"""The tensor of the secret that everything else commits to."""

NONCE_BYTES = 32


def nonce(rng: torch.Generator) -> Tensor:
    """Draw what makes two secrets differ where all else is equal."""
    return torch.randint(256, (NONCE_BYTES,), generator=rng, dtype=torch.uint8)


def owner_digest(owner: VisionModel) -> Tensor:
    """Name the clean owner's backbone: SHA-256 over its weights, as bytes (32,)."""
    found = hashlib.sha256()
    for name, value in sorted(owner.trunk.state_dict().items()):
        found.update(_told(name, value))
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def with_bits(
    secret: Mapping[str, Tensor], shape: tuple[int, int], rule: Json
) -> dict[str, Tensor]:
    """Return the secret with the bits (N, n), 0 or 1, that it commits to together with `rule`.

    They are the output of SHAKE-256, taken for a random oracle: whoever tries secrets until their
    bits agree with a given model to the degree p expects to try 1 / p of them.
    """
    rest = {name: value for name, value in secret.items() if name != BITS}
    count = shape[0] * shape[1]
    drawn = hashlib.shake_256(_commitment(rest, rule)).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8))[:count]
    return {**rest, BITS: torch.from_numpy(bits).reshape(shape)}


def check(secret: Mapping[str, Tensor], rule: Json) -> None:
    """Refuse a secret whose bits are not those it commits to.

    Raises:
        UserError: a tensor, the nonce or the rule is another than when the bits were drawn.

    """
    rows, columns = secret[BITS].shape
    if not torch.equal(with_bits(secret, (rows, columns), rule)[BITS], secret[BITS].cpu()):
        raise UserError(
            "committed_bits: expected the bits that the secret commits to, got others: an image, "
            "the nonce, the owner or the rule was changed; take the key as `protect` wrote it"
        )


def _commitment(secret: Mapping[str, Tensor], rule: Json) -> bytes:
    found = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    for name, value in sorted(secret.items()):
        found.update(_told(name, value))
    return found.digest()


def _told(name: str, value: Tensor) -> bytes:
    """Write a tensor by name, type, shape and content, so that no two are written alike."""
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    head = f"{name} {value.dtype} {tuple(value.shape)} {len(flat)}\n"
    return head.encode() + hashlib.sha256(flat).digest()
