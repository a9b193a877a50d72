"""Draw maps of channels that keep the mean over channels: permutations, rotations, repetition."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.records.nouns import UserError


def permutation(width: int, share: float, rng: torch.Generator) -> Tensor:
    """Return a permutation (d, d) that moves a share of the channels, two or more, in one cycle.

    Raises:
        UserError: the share is none of (0, 1].

    """
    if not 0 < share <= 1:
        raise UserError(f"expected a share of channels in (0, 1], got {share}")
    moved = torch.randperm(width, generator=rng)[: max(round(share * width), 2)]
    order = torch.arange(width)
    order[moved] = moved.roll(1)
    return torch.eye(width, dtype=torch.float64)[order]


def rotation(width: int, angle: float | None, rng: torch.Generator) -> Tensor:
    """Return a random rotation (d, d) about the all-ones direction.

    It is exp(angle A) on the complement, A being skew with entries of variance 1 / (2 (d - 1)), so
    that an angle of 1 turns a direction by about 0.7; None is uniform (Haar).
    """
    size = width - 1
    drawn = torch.randn(size, size, generator=rng, dtype=torch.float64)
    if angle is None:
        q, r = torch.linalg.qr(drawn)
        inner = q * r.diagonal().sign()
    else:
        skew = (drawn - drawn.mT) / math.sqrt(2)  # entries of variance 1
        inner = torch.linalg.matrix_exp(angle * skew / math.sqrt(2 * size))
    whole = torch.eye(width, dtype=torch.float64)
    whole[1:, 1:] = inner
    # A reflection between the first axis and the all-ones direction carries it there.
    gone = torch.full((width,), -(float(width) ** -0.5), dtype=torch.float64)
    gone[0] += 1
    factor = 2 / gone.square().sum()
    whole = whole - factor * torch.outer(gone, gone @ whole)
    return whole - factor * torch.outer(whole @ gone, gone)


def repeated(width: int, times: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the map (d', d) that repeats every channel, and one (d, d') that takes it back.

    The second splits what is read among the copies, by shares drawn for each channel.
    """
    channel = torch.arange(width).repeat_interleave(times)
    share = torch.rand(width, times, generator=rng, dtype=torch.float64) + 0.1
    share = (share / share.sum(1, keepdim=True)).flatten()
    r = torch.zeros(width * times, width, dtype=torch.float64)
    r[torch.arange(width * times), channel] = times**-0.5
    undo = torch.zeros(width, width * times, dtype=torch.float64)
    undo[channel, torch.arange(width * times)] = share
    return r, undo
