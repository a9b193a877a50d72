"""How the sizes of attention's weights rise and fall with depth.

D. Yoon et al., "Intrinsic fingerprint of LLMs: continue training is NOT all you need to steal a
model!", 2025, https://arxiv.org/abs/2507.03014; combined into one score as in LeaFBench, S. Shao et
al., "SoK: large language model copyright auditing via fingerprinting", 2025, arXiv:2508.19843.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.models import VisionModel, clone
from bench.models.symmetry import Anatomy, Attention
from bench.registry import method
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Incompatible,
    Paper,
    Passes,
    Protected,
    Reading,
    Rule,
    Share,
    Sizes,
    Suspect,
    UserError,
)
from methods.lineage.embedding import BASE, anatomy, centred
from methods.lineage.procrustes import refusal

FEWEST = 4
"""Blocks below which a correlation over depth says nothing."""


@method("lineage.profile", version=1)
@dataclass(frozen=True)
class WeightProfile:
    """Correlate the sizes of Wq, Wk, Wv and Wo over depth with the owner's.

    A size is the root mean square of a matrix, norms folded in. The whole suspect is one query, its
    agreement (1 + r) / 2 with r the mean of four correlations. Of few blocks it is noise: models of
    one recipe have profiles alike, and 12 blocks or more are advised.

    It names the base, not the copy, and less surely than the other two. A change of basis within a
    head moves it.

    * `threshold`: the agreement from which a model counts as derived; ours.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="model",
        paper=Paper(2025, "Yoon et al.", "arXiv:2507.03014"),
        answers="derived from this base?",
        departures=(
            "Norms are folded into the matrices first.",
            "Four correlations are averaged into one score, as in arXiv:2508.19843.",
        ),
    )

    threshold: Reading[Share] = 0.9

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count none: weights are compared."""
        return Passes()

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that depths differ, or what keeps the suspect's parts from being told."""
        if refused := refusal(suspect):
            return refused
        return _other_depth(len(owner.blocks), len(suspect.blocks))

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Keep four numbers of each block; the model stays as it is."""
        profile = _profile(anatomy(owner))
        if profile.shape[1] < FEWEST:
            raise UserError(
                f"expected an owner of {FEWEST} blocks or more, got {profile.shape[1]}; choose "
                "lineage.invariants"
            )
        return Protected(
            clone(owner), {"profile": profile}, {"blocks": profile.shape[1], "names": BASE}
        )

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Correlate over depth.

        Raises:
            Incompatible: the suspect has another depth, or is no transformer of which this can be
                told.

        """
        ours, theirs = secret["profile"], _profile(anatomy(suspect.network))
        if other := _other_depth(ours.shape[1], theirs.shape[1]):
            raise Incompatible(other)
        mean = (_standard(ours) * _standard(theirs)).sum(1).mean()
        found = float((1 + mean).clamp(0, 2)) / 2
        return Evidence((found,), (found,), Rule("agreement", ">=", self.threshold), "model", None)


def _other_depth(ours: int, theirs: int) -> str:
    return "" if ours == theirs else f"expected {ours} blocks, got {theirs}"


def _standard(rows: Tensor) -> Tensor:
    """Centre rows (4, blocks) and bring them to length 1: LayerScale may begin at 1e-5."""
    rows = rows - rows.mean(1, keepdim=True)
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(torch.finfo(rows.dtype).tiny)


def _profile(parts: Anatomy) -> Tensor:
    """Return the sizes of queries, keys, values and what is written, (4, blocks)."""
    sizes = [torch.stack(_sizes(attention, parts)) for attention, _ in parts.blocks]
    return torch.stack(sizes, 1)


def _sizes(part: Attention, parts: Anatomy) -> list[Tensor]:
    packed, written = (w.detach().double() for w in (part.qkv.weight, part.writer.weight))
    if part.norm.gain is not None:
        packed = packed * part.norm.gain.detach().double()
    if part.scale is not None:
        written = written * part.scale.detach().double()[:, None]
    four = [*packed.chunk(3), written.T]  # channels of the stream last
    return [centred(weight.T, parts).square().mean().sqrt().cpu() for weight in four]
