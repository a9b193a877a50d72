"""Measure how large the activations of each transformer block grow (ActiveMark, section 3.2.4).

The quantity and the criterion are those of M. Sun, X. Chen, J. Z. Kolter, Z. Liu, "Massive
Activations in Large Language Models", COLM 2024, https://arxiv.org/abs/2402.17762: the residual
stream after a block, attention and MLP added, in absolute value, over all tokens and channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from bench.data.images import Images
from bench.models.vision import VisionModel
from bench.records.table import Table
from bench.training.microbatch import in_batches

Rule = Literal["first_massive", "largest_jump"]

RULES: tuple[Rule, ...] = get_args(Rule)
"""The paper's rule and that of its authors' code."""

MASSIVE = 100.0
"""Sun et al.: a massive activation exceeds this magnitude ..."""

MASSIVE_RATIO = 1000.0
"""... and this multiple of the median magnitude of the same hidden state."""

Magnitudes = tuple[Tensor, Tensor, Tensor]
"""The five largest of each image (b, 5), the place of the largest (b,) and the median (b,)."""


@dataclass(frozen=True, slots=True)
class BlockActivations:
    """Magnitudes of one block's output, averaged over images.

    `top` holds the five largest in descending order; `token` and `channel` say where the largest
    sits in most images, `consistency` in how large a share of them.
    """

    block: int  # 0-based
    top: tuple[float, float, float, float, float]
    median: float
    token: int
    channel: int
    consistency: float

    @property
    def mean_top(self) -> float:
        """Mean of the five largest: the height of the curve in the paper's Fig. 2."""
        return sum(self.top) / 5

    @property
    def ratio(self) -> float:
        """Largest magnitude over the median one."""
        return self.top[0] / self.median if self.median else float("inf")

    @property
    def massive(self) -> bool:
        """Say whether the block meets the criterion of Sun et al."""
        return self.top[0] > MASSIVE and self.ratio >= MASSIVE_RATIO


@dataclass(frozen=True, slots=True)
class Choice:
    """An expressive block and the rule that found it."""

    block: int  # 0-based; the message is written to its output
    rule: Rule
    massive: bool  # whether any admissible block met the criterion
    code: int  # what the authors' code takes: the largest jump of all, be it behind its own reader


def activation_profile(
    model: VisionModel, images: Images, device: torch.device, batch: int = 50
) -> tuple[BlockActivations, ...]:
    """Profile every block of `model` over `images` (the paper: 100 random natural images).

    Raises:
        Incompatible: the model has no sequence of transformer blocks.

    """
    model = model.to(device)

    def measure(part: slice) -> list[Magnitudes]:
        tokens, rows = model.embed(images.batch(part, device)), []
        for block in range(len(model.blocks)):
            tokens = model.run_blocks(tokens, block, block + 1)
            sizes = tokens.abs().flatten(1)  # (b, n d)
            top = sizes.topk(5, dim=1)
            rows.append((top.values.cpu(), top.indices[:, 0].cpu(), sizes.median(1).values.cpu()))
        return rows

    with torch.inference_mode():
        found = zip(*in_batches(len(images), batch, measure), strict=True)
        return tuple(_summarise(block, rows, model.width) for block, rows in enumerate(found))


def choose_block(
    profile: tuple[BlockActivations, ...],
    rule: Rule,
    last: int,
) -> Choice:
    """Choose the expressive block, `last` at most.

    `first_massive` is the paper's rule (section 3.2.4): the first block whose output meets the
    criterion; where none does, the largest jump decides and is recorded as such. `largest_jump`
    is the rule of the authors' code: the block whose mean top-5 rises most over the block before.
    The code knows no `last`: what it would take is said beside.
    """
    admissible = profile[: last + 1]
    massive = [row.block for row in admissible if row.massive]
    code = _largest_jump(profile)
    if rule == "first_massive" and massive:
        return Choice(massive[0], "first_massive", True, code)
    return Choice(_largest_jump(admissible), "largest_jump", bool(massive), code)


def _largest_jump(profile: Sequence[BlockActivations]) -> int:
    rises = [b.mean_top - a.mean_top for a, b in itertools.pairwise(profile)]
    return 1 + max(range(len(rises)), key=rises.__getitem__) if rises else 0


def figure_2(name: str, profile: tuple[BlockActivations, ...], images: int) -> Table:
    """Return the paper's Fig. 2 as numbers, with the block that either rule chooses."""
    notes = []
    for rule in RULES:
        choice = choose_block(profile, rule, len(profile) - 2)
        fallback = "" if choice.rule == rule else f" (no block is massive: {choice.rule})"
        notes.append(f"{rule}: block {choice.block}{fallback}")
    return Table(
        name="Figure 2",
        caption=f"{name}: residual stream after each block, mean over {images} images",
        columns=(
            *("block", "mean top-5", "top-1", "median", "top-1 / median", "massive"),
            *("token", "channel", "same place"),
        ),
        rows=tuple(
            (
                str(row.block),
                f"{row.mean_top:.2f}",
                f"{row.top[0]:.2f}",
                f"{row.median:.3f}",
                f"{row.ratio:.1f}",
                "yes" if row.massive else "no",
                str(row.token),
                str(row.channel),
                f"{row.consistency:.0%}",
            )
            for row in profile
        ),
        notes=(
            *notes,
            f"massive: the largest above {MASSIVE:g} and {MASSIVE_RATIO:g} times the median. "
            "Blocks count from 0. token, channel: where the largest sits in most images.",
        ),
    )


def _summarise(block: int, rows: Sequence[Magnitudes], width: int) -> BlockActivations:
    top = torch.cat([row[0] for row in rows]).double().mean(0)
    places = torch.cat([row[1] for row in rows])
    place = int(places.mode().values)
    return BlockActivations(
        block=block,
        top=tuple(top.tolist()),
        median=float(torch.cat([row[2] for row in rows]).double().mean()),
        token=place // width,
        channel=place % width,
        consistency=float((places == place).double().mean()),
    )
