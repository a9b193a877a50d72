"""Commit to a secret by a hash, and draw coins and numbers from that, which nobody can choose.

SHAKE-256 is taken for a random oracle. What it gives is independent of everything it commits to, so
bits drawn from it are fair coins about any model made without them. Whoever tries secrets until
their bits agree with a given model to the degree p expects to try 1 / p of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from bench.models import VisionModel
from bench.types import Json, Rule, UserError

BITS, NONCE = "bits", "nonce"
"""The tensors of a secret that everything else commits to, and that make others of them."""

NONCE_BYTES = 32

AGREES = Rule("bit agrees", ">=", 1)
"""One where a bit agrees, 0 where it does not, 1/2 where nothing was read."""


def nonce(rng: torch.Generator) -> Tensor:
    """Draw what makes two secrets differ where all else is equal."""
    return torch.randint(256, (NONCE_BYTES,), generator=rng, dtype=torch.uint8)


def owner_digest(owner: VisionModel) -> Tensor:
    """Name the clean owner's backbone: SHA-256 over its weights, as bytes (32,)."""
    found = hashlib.sha256()
    for name, value in sorted(owner.trunk.state_dict().items()):
        found.update(_told(name, value))
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def without(secret: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    """Return a secret but for some of its tensors."""
    return {name: value for name, value in secret.items() if name not in names}


def committed(values: Mapping[str, Tensor], rule: Json) -> bytes:
    """Return the commitment to tensors and a rule, 32 bytes."""
    found = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    for name, value in sorted(values.items()):
        found.update(_told(name, value))
    return found.digest()


def coins(seeds: Iterable[bytes], count: int) -> np.ndarray:
    """Return independent fair coins, 0 or 1, uint8 (seeds, count), that follow from each seed."""
    size = -(-count // 8)
    found = b"".join(hashlib.shake_256(seed).digest(size) for seed in seeds)
    return np.unpackbits(np.frombuffer(found, np.uint8).reshape(-1, size), 1)[:, :count]


def uniform(seed: bytes, count: int) -> Tensor:
    """Return numbers (n,) float64 in (0, 1), of 52 bits each, that follow from a seed.

    No generator draws them. PyTorch's keeps 32 bits of a seed, few enough to try them all, and may
    give other numbers in another version.
    """
    words = np.frombuffer(hashlib.shake_256(seed).digest(8 * count), "<u8") >> np.uint64(12)
    return torch.from_numpy((words + 0.5) * 2.0**-52)


def normal(seed: bytes, rows: int, columns: int) -> Tensor:
    """Return numbers (rows, columns) float64 from N(0, 1) that follow from a seed."""
    found: Tensor = torch.special.ndtri(uniform(seed, rows * columns))
    return found.view(rows, columns)


def check(secret: Mapping[str, Tensor], drawn: Tensor, who: str) -> None:
    """Refuse a secret whose bits are not those that were `drawn` from all else in it.

    Raises:
        UserError: a tensor, the nonce or the rule is another than when the bits were drawn.

    """
    if not torch.equal(drawn, secret[BITS].cpu()):
        raise UserError(
            f"{who}: expected the bits that the secret commits to, got others: a tensor, the "
            "owner, the user or a setting was changed; take the key as `protect` wrote it"
        )


def _told(name: str, value: Tensor) -> bytes:
    """Write a tensor by name, type, shape and content, so that no two are written alike."""
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    head = f"{name} {value.dtype} {tuple(value.shape)} {len(flat)}\n"
    return head.encode() + hashlib.sha256(flat).digest()
