"""Draw a secret's bits from a commitment to all the rest of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

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
    secret: Mapping[str, Tensor], shape: tuple[int, int], rule: Json, user: int
) -> dict[str, Tensor]:
    """Return the secret with a user's bits (N, n), 0 or 1, which it commits to with `rule`.

    They are the output of SHAKE-256, taken for a random oracle: whoever tries secrets until their
    bits agree with a given model to the degree p expects to try 1 / p of them.
    """
    rest = {name: value for name, value in secret.items() if name != BITS}
    bits = users_bits(rest, shape[0] * shape[1], rule, [user])
    return {**rest, BITS: torch.from_numpy(bits[0]).reshape(shape)}


def users_bits(
    secret: Mapping[str, Tensor], count: int, rule: Json, users: Iterable[int]
) -> np.ndarray:
    """Return the bits of some users, 0 or 1, uint8 (users, count): independent fair coins."""
    rest = {name: value for name, value in secret.items() if name != BITS}
    begun, size = hashlib.shake_256(_commitment(rest, rule)), -(-count // 8)

    def drawn(user: int) -> bytes:
        one = begun.copy()
        one.update(user.to_bytes(8, "big"))
        return one.digest(size)

    found = np.frombuffer(b"".join(map(drawn, users)), np.uint8)
    return np.unpackbits(found.reshape(-1, size), 1)[:, :count]


def check(secret: Mapping[str, Tensor], rule: Json, user: int) -> None:
    """Refuse a secret whose bits are not those it commits to for this user.

    Raises:
        UserError: a tensor, the nonce or the rule is another than when the bits were drawn.

    """
    rows, columns = secret[BITS].shape
    if not torch.equal(with_bits(secret, (rows, columns), rule, user)[BITS], secret[BITS].cpu()):
        raise UserError(
            "committed_bits: expected the bits that the secret commits to, got others: an image, "
            "the nonce, the owner, the rule or the user was changed; take the key as it was written"
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
