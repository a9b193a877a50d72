"""Give every user bits of their own, drawn from a commitment to all the rest of a secret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from bench.types import Json
from methods import commitment
from methods.commitment import BITS, committed


def with_bits(
    secret: Mapping[str, Tensor], shape: tuple[int, int], rule: Json, user: int
) -> dict[str, Tensor]:
    """Return the secret with a user's bits (N, n), 0 or 1, which it commits to with `rule`."""
    bits = of_users(secret, shape[0] * shape[1], rule, [user])
    return {**commitment.without(secret, BITS), BITS: torch.from_numpy(bits[0]).reshape(shape)}


def of_users(
    secret: Mapping[str, Tensor], count: int, rule: Json, users: Iterable[int]
) -> np.ndarray:
    """Return the bits of some users, 0 or 1, uint8 (users, count): independent fair coins."""
    begun = committed(commitment.without(secret, BITS), rule)
    return commitment.coins((begun + user.to_bytes(8, "big") for user in users), count)


def check(secret: Mapping[str, Tensor], rule: Json, user: int) -> None:
    """Refuse a secret whose bits are not those it commits to for this user.

    Raises:
        UserError: a tensor, the nonce or the rule is another than when the bits were drawn.

    """
    rows, columns = secret[BITS].shape
    commitment.check(secret, with_bits(secret, (rows, columns), rule, user)[BITS], "committed_bits")
