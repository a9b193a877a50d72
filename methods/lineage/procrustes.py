"""What is left of the difference of two embeddings once one is rotated onto the other.

Source: the orthogonal Procrustes problem, P. Schönemann, Psychometrika 1966; as a fingerprint it is
ours, of no paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bench.models import VisionModel, clone
from bench.registry import method
from bench.types import (
    Access,
    Context,
    Evidence,
    Facts,
    Incompatible,
    Passes,
    Protected,
    Reading,
    Rule,
    Share,
    Sizes,
    Suspect,
)
from methods.lineage.embedding import BASE, Entry, anatomy, centred, embedding


@method("lineage.procrustes", version=1)
@dataclass(frozen=True)
class ProcrustesResidual:
    """Rotate the suspect's patch filters, positions and prefix tokens onto the owner's.

    What is left is the residual: 0 for copies in any basis, and for those whose thief froze the
    embedding of patches. Its size for a stranger hangs on the width: of d channels a rotation can
    bring d columns in place. The whole suspect is one query, its agreement 1 - residual.

    It names the base, not the copy: twins and a public model it came from read high. A thief who
    trains the embeddings anew is not seen, nor is a student.

    * `threshold`: the residual up to which a model counts as derived.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(unit="model", answers="derived from this base?")

    threshold: Reading[Share] = 0.5

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count none: weights are compared."""
        return Passes()

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say what keeps the suspect's residual stream from being told, if anything does."""
        return refusal(suspect)

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Keep what enters the owner's stream; the model stays as it is."""
        parts = anatomy(owner)
        found = embedding(owner, parts)
        columns, _ = found.columns(found.entry)
        secret = {"columns": centred(columns, parts).float(), **found.entry.tensors()}
        return Protected(clone(owner), secret, {"columns": columns.shape[1], "names": BASE})

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Fit a rotation and a scale; of any width, patch and grid.

        Raises:
            Incompatible: the suspect is no transformer of which this can be told.

        """
        parts = anatomy(suspect.network)
        found, known = embedding(suspect.network, parts).columns(Entry.of(secret))
        wanted = secret["columns"].double()
        left = residual(centred(found[:, known], parts), wanted[:, known])
        return Evidence(
            agreement=(1 - left,),
            statistic=(left,),
            rule=Rule("residual", "<=", self.threshold),
            unit="model",
            chance=None,  # it hangs on the width and the number of columns: strangers tell
            notes={"compared": int(known.sum()), "of": len(known)},
        )


def residual(found: Tensor, wanted: Tensor) -> float:
    """Return min |c R wanted - found| / |found| over c and all R with orthonormal columns or rows.

    Both are centred over channels, (d', k) and (d, k), so that a best R leaves the all-ones
    direction alone, as layer norms ask. With the singular values S of found wanted^T its square is
    1 - (sum S / (|found| |wanted|))^2: R itself is not needed.
    """
    sizes = found.norm() * wanted.norm()
    if not 0 < sizes < torch.inf:
        return 1.0
    cosine = torch.linalg.svdvals(found @ wanted.T).sum() / sizes
    return float((1 - cosine.square()).clamp(0, 1).sqrt())


def refusal(suspect: VisionModel) -> str:
    """Say why a suspect's residual stream cannot be told from its parts; empty if it can."""
    try:
        anatomy(suspect)
    except Incompatible as error:
        return str(error)
    return ""
