"""The ceiling: recognise a released model by its weights, which the owner keeps a sample of.

No method of any paper: it answers what an owner could know who sees the suspect's weights and
expects nothing of the thief but training. A cosine is lost where a thief moves weights about
without changing the function (permuted channels, another basis), and says nothing of a student.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    Facts,
    Incompatible,
    Passes,
    Positive,
    Protected,
    Reading,
    Rule,
    Sizes,
    Suspect,
)


@method("oracle.weights", version=2)
@dataclass(frozen=True)
class WeightOracle:
    """Compare the suspect's backbone with the released one, weight matrix by weight matrix.

    The agreement is the cosine, 0 where it is negative. Matrices alone count, embeddings and
    filters among them: norms and biases are alike in models that never met. The library's own
    classifier is left alone, as any head is.

    Matrices are compared that have the owner's name and shape, such as all but the positions of a
    model at another image size; the notes say how many of how many. A suspect of another library,
    which shares no name, is compared by shape: its i-th matrix of one with the owner's i-th.

    * `threshold`: the cosine from which a matrix counts as the owner's.
    * `entries`: how much of each matrix is kept as the secret, drawn without replacement, for all
      of it would be the model itself; independent cosines of k entries scatter by 1 / sqrt(k)
      about 0.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(unit="weight matrix", answers="derived from these weights?")

    threshold: Reading[Annotated[float, Field(ge=-1, le=1)]] = 0.9
    entries: Positive = 4096

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count none: weights are compared."""
        return Passes()

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say that no matrix can be compared, if none can."""
        found = dict(_matrices(suspect))
        shapes = {name: tuple(weight.shape) for name, weight in _matrices(owner)}
        return "" if _comparable(shapes, found) else _nothing_alike(shapes, found)

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
            Incompatible: no matrix of the suspect's has a shape of the owner's.

        """
        names = [n.removesuffix(".shape") for n in sorted(secret) if n.endswith(".shape")]
        shapes = {name: tuple(secret[f"{name}.shape"].tolist()) for name in names}
        found, cosines = dict(_matrices(suspect.network)), list[Tensor]()
        pairs = _comparable(shapes, found)
        if not pairs:
            raise Incompatible(_nothing_alike(shapes, found))
        for name, weight in pairs.items():
            index, value = secret[f"{name}.index"], secret[f"{name}.value"].double()
            taken = weight.flatten()[index.long().to(weight.device)].double()
            cosines.append(torch.cosine_similarity(taken, value.to(taken.device), dim=0))
        statistic = tuple(torch.stack(cosines).clamp(-1, 1).tolist())  # the only wait
        return Evidence(
            agreement=tuple(max(0.0, cosine) for cosine in statistic),
            statistic=statistic,
            rule=Rule("cosine", ">=", self.threshold),
            unit="weight matrix",
            chance=None,
            notes={"compared": len(pairs), "of": len(names)},
        )


def _nothing_alike(shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> str:
    return (
        f"expected a weight matrix in a shape of the owner's {len(shapes)}, got none among the "
        f"suspect's {len(found)}"
    )


def _comparable(
    shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Find the suspect's matrix for each of the owner's, by the owner's name, where it has one."""
    if shapes.keys() & found.keys():
        same = (name for name, shape in shapes.items() if name in found)
        return {name: found[name] for name in same if tuple(found[name].shape) == shapes[name]}
    there: dict[tuple[int, ...], list[Tensor]] = {}
    for name in _in_depth(found):
        there.setdefault(tuple(found[name].shape), []).append(found[name])
    rest = {shape: iter(weights) for shape, weights in there.items()}
    pairs = ((name, next(rest.get(shapes[name], iter(())), None)) for name in _in_depth(shapes))
    return {name: weight for name, weight in pairs if weight is not None}


def _in_depth(names: Iterable[str]) -> Sequence[str]:
    """Sort names, block 2 before block 10; a block has few matrices of one shape."""
    return sorted(names, key=lambda name: [part.zfill(4) for part in re.split(r"(\d+)", name)])


def _matrices(model: VisionModel) -> Iterator[tuple[str, Tensor]]:
    """Name the weights of the backbone that have two axes at least: one long axis is a vector.

    A classifier of the model's own is left out: a thief's task replaces it.
    """
    head = {id(weight) for weight in model.classifier_weights}
    for name, weight in model.trunk.named_parameters():
        if id(weight) not in head and sum(size > 1 for size in weight.shape) >= 2:
            yield name, weight.detach()
