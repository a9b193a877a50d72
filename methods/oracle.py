"""The ceiling: recognise a released model by its weights, which the owner keeps a sample of.

No method of any paper: it answers what an owner could know who sees the suspect's weights and
expects nothing of the thief but training. A cosine is lost where a thief moves weights about
without changing the function (permuted channels, another basis), and says nothing of a student.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bench.models import VisionModel, clone
from bench.registry import method
from bench.types import (
    Access,
    Context,
    Evidence,
    Incompatible,
    Passes,
    Positive,
    Protected,
    Rule,
    Sizes,
    Suspect,
)


@method("oracle.weights", version=1)
@dataclass(frozen=True)
class WeightOracle:
    """Compare the suspect's backbone with the released one, weight matrix by weight matrix.

    The agreement is the cosine, 0 where it is negative. Matrices alone count, embeddings and
    filters among them: norms and biases are alike in models that never met.

    * `threshold`: the cosine from which a matrix counts as the owner's.
    * `entries`: how much of each matrix is kept as the secret, drawn without replacement, for all
      of it would be the model itself; independent cosines of k entries scatter by 1 / sqrt(k)
      about 0.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = False

    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.9
    entries: Positive = 4096

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count none: weights are compared."""
        return Passes()

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Return the owner's model as it is; the secret is a sample of each weight matrix."""
        secret = dict[str, Tensor]()
        for name, weight in _matrices(owner):
            drawn = torch.randperm(weight.numel(), generator=ctx.rng)[: self.entries]
            secret[f"{name}.shape"] = torch.tensor(weight.shape)
            secret[f"{name}.index"] = drawn.to(torch.int32)
            secret[f"{name}.value"] = weight.flatten()[drawn.to(weight.device)].cpu()
        kept = sum(len(v) for n, v in secret.items() if n.endswith(".value"))
        notes = {"matrices": len(secret) // 3, "entries": kept}
        return Protected(clone(owner), secret, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Take the cosine to every matrix of the owner's; one query is one matrix.

        Raises:
            Incompatible: the suspect lacks a matrix of that name and shape.

        """
        found, cosines = dict(_matrices(suspect.network)), list[Tensor]()
        for name in (n.removesuffix(".shape") for n in sorted(secret) if n.endswith(".shape")):
            shape = tuple(secret[f"{name}.shape"].tolist())
            there = tuple(found[name].shape) if name in found else "none"
            if there != shape:
                raise Incompatible(f"expected the owner's {name} {shape}, got {there}")
            index, value = secret[f"{name}.index"], secret[f"{name}.value"].double()
            taken = found[name].flatten()[index.long().to(found[name].device)].double()
            cosines.append(torch.cosine_similarity(taken, value.to(taken.device), dim=0))
        statistic = tuple(torch.stack(cosines).clamp(-1, 1).tolist())  # the only wait
        agreement = tuple(max(0.0, cosine) for cosine in statistic)
        return Evidence(
            agreement, statistic, Rule("cosine", ">=", self.threshold), "weight matrix", None
        )


def _matrices(model: VisionModel) -> Iterator[tuple[str, Tensor]]:
    """Name the weights of the backbone that have two axes at least: one long axis is a vector.

    A classifier of the model's own is left out: a thief's task replaces it.
    """
    head = {id(weight) for weight in model.classifier_weights}
    for name, weight in model.trunk.named_parameters():
        if id(weight) not in head and sum(size > 1 for size in weight.shape) >= 2:
            yield name, weight.detach()
