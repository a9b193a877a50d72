"""Products of weights that no change of basis moves, written in what enters the stream.

B. Zeng et al., "HuRef: human-readable fingerprint for large language models", NeurIPS 2024,
https://arxiv.org/abs/2312.04828, whose invariant terms these are, adapted to vision.

HuRef takes the last two layers and the embeddings of 4096 rare tokens, and compares by cosine.
Here all blocks count and rows are compared by Pearson's correlation, which no scale or shift moves;
patch filters, positions and prefix tokens stand for tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bench.models import VisionModel, clone
from bench.models.symmetry import Anatomy, Attention, Mlp
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
    Sizes,
    Suspect,
)
from methods.lineage.embedding import BASE, Embedding, Entry, anatomy, centred, embedding
from methods.lineage.procrustes import refusal

INERT = 1e-3
"""What writes less than this share of what the strongest writes is no block, and no head."""

SAME = 1 - 1e-4
"""The cosine from which two heads attend to the same: one of them was added."""

TERMS = ("qk", "vo", "mlp")

Term = Literal["qk", "vo", "mlp", "all"]


@method("lineage.invariants", version=1)
@dataclass(frozen=True)
class WeightInvariants:
    """Compare what attention and MLPs do to the owner's embeddings, block by block.

    With X the rows that enter the stream (filters, positions, prefix tokens), each block has the
    forms X Wq^T Wk X^T, X (Wo Wv)^T X^T and X (W2 W1)^T X^T, summed over heads and neurons. Norms
    are folded in. A thief who permutes, rotates, scales, shifts or widens the stream, permutes,
    splits or adds heads and neurons, or adds blocks that do nothing, leaves them as they are, but
    for a factor.

    One query is a row of X, its agreement the mean correlation with the owner's row over terms and
    blocks, 0 where it is below. Blocks that write next to nothing are left out; of two models of
    different depth all blocks of the shallower one are set beside some of the other's, in order.

    It names the base, not the copy: twins and a public model it came from read high. A student is
    not seen, nor is a copy whose embeddings were trained anew.

    * `term`: which form is compared; the steadiest under finetuning is "qk". A term that a model's
      parts leave undefined (queries and keys that are normed, a norm or a gate before the layer
      that writes) counts for nothing.
    * `rows`: how many rows of X, drawn; fewer where there are not as many.
    * `threshold`: the correlation from which a row counts as the owner's.
    """

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        unit="row of embeddings",
        paper=Paper(2024, "Zeng et al., NeurIPS", "arXiv:2312.04828"),
        answers="derived from this base?",
        departures=(
            "Patch filters, positions and prefix tokens stand for rare words.",
            "All blocks count, where HuRef takes the last two.",
            "Rows are compared by Pearson's correlation, where HuRef takes cosines.",
        ),
    )

    term: Reading[Term] = "all"
    rows: Annotated[int, Field(ge=8)] = 256
    threshold: Reading[Annotated[float, Field(ge=-1, le=1)]] = 0.5

    def protect_passes(self, sizes: Sizes) -> Passes:
        """Count none: no image is looked at."""
        return Passes()

    def extract_passes(self, sizes: Sizes) -> Passes:
        """Count none: weights are compared."""
        return Passes()

    def unreadable(self, owner: VisionModel, suspect: VisionModel) -> str:
        """Say what keeps the suspect's parts from being compared, if anything does."""
        if refused := refusal(suspect):
            return refused
        shared = _defined(anatomy(owner)) & _defined(anatomy(suspect))
        return "" if shared & set(self._terms) else self._undefined(suspect.architecture.name)

    def protect(self, owner: VisionModel, ctx: Context) -> Protected:
        """Keep the owner's forms; the model stays as it is."""
        parts = anatomy(owner)
        found = embedding(owner, parts)
        count = found.columns(found.entry)[0].shape[1]
        rows = torch.randperm(count, generator=ctx.rng)[: self.rows].sort().values
        forms, _ = _read(parts, found, found.entry, rows)
        kept = {term: form.cpu() for term, form in forms.terms.items()}
        notes = {"rows": len(rows), "blocks": forms.blocks, "terms": len(kept), "names": BASE}
        return Protected(clone(owner), {"rows": rows, **found.entry.tensors(), **kept}, notes)

    def extract(self, secret: Mapping[str, Tensor], suspect: Suspect, ctx: Context) -> Evidence:
        """Compare forms, after blocks were set side by side.

        Raises:
            Incompatible: the suspect is no transformer of which this can be told, or has no term.

        """
        parts = anatomy(suspect.network)
        found = embedding(suspect.network, parts)
        forms, known = _read(parts, found, Entry.of(secret), secret["rows"])
        terms = [term for term in self._terms if term in forms.terms and term in secret]
        if not terms:
            raise Incompatible(self._undefined(suspect.network.architecture.name))
        ours = torch.stack([secret[term] for term in terms], 1)[..., known, :][..., known]
        theirs = torch.stack([forms.terms[term] for term in terms], 1)  # (blocks, terms, r, r)
        ours, theirs = _standard(ours.to(theirs)), _standard(theirs)
        likeness = torch.einsum("atrs,btrs->ab", theirs, ours) / ours[0, ..., 0].numel()
        pairs = in_order(likeness)
        here, there = (list(side) for side in zip(*pairs, strict=True))
        rows = (theirs[here] * ours[there]).sum(-1).mean((0, 1))  # (r,)
        statistic = tuple(rows.double().clamp(-1, 1).tolist())
        return Evidence(
            agreement=tuple(max(0.0, value) for value in statistic),
            statistic=statistic,
            rule=Rule("correlation", ">=", self.threshold),
            unit="row of embeddings",
            chance=None,
            notes={"compared": len(pairs), "of": len(ours), "terms": terms},
        )

    @property
    def _terms(self) -> Sequence[str]:
        return TERMS if self.term == "all" else (self.term,)

    def _undefined(self, name: str) -> str:
        return f"expected weights that the term '{self.term}' is defined for, got {name}"


class Forms(NamedTuple):
    """A form (blocks, r, r) for every term that is defined, of blocks that do something."""

    terms: dict[str, Tensor]
    blocks: int


def _defined(parts: Anatomy) -> set[str]:
    """List the terms that are invariant for models of such parts."""
    attention, mlp = parts.blocks[0]
    found = set() if attention.normed else {"qk"}
    found |= set() if attention.between else {"vo"}
    return found | (set() if mlp.between else {"mlp"})


def _read(parts: Anatomy, found: Embedding, like: Entry, rows: Tensor) -> tuple[Forms, Tensor]:
    """Return the forms in those of `rows` that this model has, and which these are, (rows,)."""
    columns, known = found.columns(like)
    known = known[rows]
    x = centred(columns, parts)
    if parts.entry is not None and parts.entry.gain is not None:
        # Where the stream starts from a norm, its gain is what a channel counts.
        x = centred(x * parts.entry.gain.detach().to("cpu", torch.float64)[:, None], parts)
    x = x[:, rows[known]].T / x.norm().clamp_min(torch.finfo(x.dtype).tiny)  # (r, d)
    return _forms(parts, x), known


def _forms(parts: Anatomy, x: Tensor) -> Forms:
    """Return the forms of every block in rows x (r, d)."""
    device = parts.blocks[0][0].writer.weight.device
    x, found, sizes = x.to(device, torch.float32), list[dict[str, Tensor]](), list[Tensor]()
    for attention, mlp in parts.blocks:
        query_key, value_output = _attention(attention, x)
        forms = {"qk": query_key, "vo": value_output, "mlp": _mlp(mlp, x)}
        found.append(forms)
        # By what is written, which an added block cannot hide; not by what attention looks at.
        sizes.append(torch.stack([_written(branch, x).norm() for branch in (attention, mlp)]))
    size = torch.stack(sizes)  # (blocks, 2)
    live = (size > INERT * size.amax(0)).any(1).tolist()
    kept = [forms for forms, works in zip(found, live, strict=True) if works] or found
    terms = {
        term: torch.stack([f[term] for f in kept]) for term in TERMS if term in _defined(parts)
    }
    return Forms(terms, len(kept))


def _attention(part: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what heads look at and what they move, (r, r) each, summed over distinct heads."""
    packed = _reading(part, part.qkv.weight, x).view(len(x), 3, part.heads, -1)
    query, key, value = packed.unbind(1)  # (r, h, c) each
    output = _written(part, x).view(len(x), part.heads, -1)
    looked = torch.einsum("rhc,shc->hrs", query, key)
    moved = torch.einsum("rhc,shc->hrs", value, output)
    # A head that was split counts once; those that cancel each other, or write nothing, do not.
    unit = F.normalize(looked.flatten(1), eps=torch.finfo(looked.dtype).tiny)
    first = (unit @ unit.T >= SAME).to(torch.uint8).argmax(1)  # the first head that is the same
    first = torch.where(looked.flatten(1).any(1), first, torch.arange(len(first)).to(first))
    together = torch.zeros_like(moved).index_add_(0, first, moved).flatten(1).norm(dim=1)
    live = together > INERT * together.max()
    return looked[live].sum(0), moved.sum(0)


def _mlp(part: Mlp, x: Tensor) -> Tensor:
    """Return what neurons move, (r, r); of gated ones by the map that is not activated."""
    weights: Sequence[Tensor] = [reader.weight for reader in part.readers]
    if part.gated and len(weights) == 1:
        weights = weights[0].chunk(2)
    weight = weights[part.plain if part.gated else 0]
    return _reading(part, weight, x) @ _written(part, x).T


def _reading(part: Attention | Mlp, weight: Tensor, x: Tensor) -> Tensor:
    """Map rows (r, d) to what is read of them behind the norm, (r, m), biases left out."""
    gain = part.norm.gain
    return (x if gain is None else x * gain.detach().float()) @ weight.detach().float().T


def _written(part: Attention | Mlp, x: Tensor) -> Tensor:
    """Return how far what each channel of a branch writes lies along rows (r, d): (r, k)."""
    scaled = x if part.scale is None else x * part.scale.detach().float()
    return scaled @ part.writer.weight.detach().float()


def _standard(forms: Tensor) -> Tensor:
    """Centre rows (..., r) and bring them to length 1, so that products are correlations."""
    largest = forms.abs().amax((-2, -1), keepdim=True)  # whose square may be out of range
    forms = forms / largest.clamp_min(torch.finfo(forms.dtype).tiny)
    return F.normalize(forms - forms.mean(-1, keepdim=True), dim=-1)


def in_order(likeness: Tensor) -> list[tuple[int, int]]:
    """Set all blocks of the shallower model beside some of the deeper one's, in order.

    Of likeness (a, b) the sum over the pairs is largest.
    """
    if len(likeness) < likeness.shape[1]:
        return [(i, j) for j, i in in_order(likeness.T)]
    rows, columns = likeness.shape
    worth, spare = likeness.double().cpu(), rows - columns
    # best[s, j]: of columns 0 .. j - 1 when s rows were passed over; column j meets row j + s.
    best = torch.full((spare + 1, columns + 1), 0.0, dtype=torch.float64)
    for j in range(columns):
        for skipped in range(spare + 1):
            before = best[: skipped + 1, j].max()
            best[skipped, j + 1] = before + worth[j + skipped, j]
    pairs, skipped = list[tuple[int, int]](), spare
    for j in reversed(range(columns)):
        skipped = int(best[: skipped + 1, j + 1].argmax())
        pairs.append((j + skipped, j))
    return pairs[::-1]
