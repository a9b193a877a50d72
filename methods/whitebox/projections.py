"""Draw the secret projections of Uchida et al., and forge one for a given model and given bits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from methods.commitment import normal, uniform

Kind = Literal["random", "direct", "diff"]


def drawn(kind: Kind, bits: int, inputs: int, seed: bytes) -> Tensor:
    """Return the X (T, M) that follows from a seed, section 3.3 of the paper, in float64.

    * "direct": each row is 1 at one place.
    * "diff": each row is 1 at one place and -1 at another.
    * "random": every entry is from N(0, 1).
    """
    if kind == "random":
        return normal(seed, bits, inputs)
    found = torch.zeros(bits, inputs, dtype=torch.float64)
    places = _places(bits, inputs, seed)
    found.scatter_(1, places[:, None], 1.0)
    if kind == "diff":
        # Departure from the authors' code, which draws both places alike: a row whose places are
        # equal would hold one entry.
        apart = 1 + (uniform(seed + b"apart", bits) * (inputs - 1)).long()
        found.scatter_(1, (places + apart)[:, None] % inputs, -1.0)
    return found


def closed_form(projection: Tensor, vector: Tensor, bits: Tensor, margin: float) -> Tensor:
    """Return the least change of `vector` (M,) after which it reads as `bits` (T,).

    Values X w (T,) become +-`margin` times their root mean square; with more bits than inputs they
    come as near as least squares does. Ours: the paper trains.
    """
    values = projection @ vector.double()
    wanted = margin * values.square().mean().sqrt().clamp_min(1e-12) * (2 * bits.double() - 1)
    change: Tensor = torch.linalg.pinv(projection) @ (wanted - values)
    return change


def forged(vector: Tensor, bits: Tensor, seed: bytes) -> Tensor:
    """Return a projection (T, M) by which `vector` (M,) reads as `bits` (T,).

    Every row of a drawn one is reflected where its value has the wrong sign, along `vector` alone.
    Each row by itself is distributed as an honest one whose bit was read right. So nothing in X
    shows that it was made after the model.
    """
    honest = drawn("random", len(bits), len(vector), seed)
    along = vector.double() / vector.double().norm()  # (M,)
    value = honest @ along  # (T,)
    wanted = value.abs() * (2 * bits.double() - 1)
    made: Tensor = honest + (wanted - value)[:, None] * along
    return made


def _places(count: int, inputs: int, seed: bytes) -> Tensor:
    """Return places (T,), each once before any twice: two bits at one place are one bit."""
    rounds = -(-count // inputs)
    order = uniform(seed, rounds * inputs).view(rounds, inputs).argsort(dim=1, stable=True)
    return order.flatten()[:count]
