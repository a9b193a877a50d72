"""Draw bits from a commitment to the rest of a secret, and compare them at last."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bench.types import Evidence, ExactNull, Incompatible, Json
from methods import commitment
from methods.commitment import AGREES, BITS, NONCE

SEED = "seed"
"""The tensor of a secret that all but its bits is drawn by."""

COINS = ExactNull()


def with_bits(secret: Mapping[str, Tensor], count: int, rule: Json) -> dict[str, Tensor]:
    """Return the secret with the bits (T,), 0 or 1, that all else in it commits to with `rule`."""
    rest = commitment.without(secret, BITS)
    return {**rest, BITS: drawn(rest, count, rule)}


def drawn(values: Mapping[str, Tensor], count: int, rule: Json) -> Tensor:
    """Draw bits (T,), 0 or 1, from tensors and a rule."""
    return torch.from_numpy(commitment.coins([commitment.committed(values, rule)], count)[0])


def check(secret: Mapping[str, Tensor], rule: Json, who: str) -> None:
    """Refuse a secret whose bits are not those it commits to.

    Raises:
        UserError: a tensor, the nonce or the rule is another than when the bits were drawn.

    """
    rest = commitment.without(secret, BITS)
    commitment.check(secret, drawn(rest, len(secret[BITS]), rule), who)


def projecting(secret: Mapping[str, Tensor], rule: Json) -> bytes:
    """Return the seed of a secret's projection; neither bits nor nonce have a part in it.

    The projection itself is never hashed: its last digits are each processor's own.
    """
    rest = commitment.without(secret, BITS, NONCE)
    return b"projection" + commitment.committed(rest, rule)


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
