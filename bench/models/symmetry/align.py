"""Write a suspect in the basis of the model it may come from, so that any method can read it.

A transformer's residual stream can be rotated, permuted, scaled, shifted and widened without any
change of function. A mark in the stream is then lost, and a head of the owner's fits no more. The
owner undoes it: its own model is the reference, and says in which basis a suspect is to be read.

Three fits are tried in turn. The embedding of patches says most, and needs no image. Where a thief
has made that anew, the weights of the blocks say as much, and need none either. Activations are
compared last: they are more alike among strangers, too.

The reference is the model as *released*. It is what a thief holds, whatever a mark has trained: if
that left the embedding of patches alone, owner and released model give the same answer.

What is fitted is a rotation, a scale and an order of blocks. What no layer norm sees is then free,
and taken from the reference: the mean of the stream, gains of norms and of LayerScale, and all that
follows the blocks. So a model that nobody transformed is read as it is, up to rounding.

A suspect's own head is left out. It was made for outputs that are now others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.data.images import Images
from bench.models import Architecture, OpenClipViT, VisionModel, clone, reshape
from bench.models.symmetry import fits, frames, gauge
from bench.models.symmetry.anatomy import Anatomy, Norm, dimensions, read
from bench.models.symmetry.fits import FAR
from bench.models.symmetry.gauge import Branch
from bench.records.nouns import Incompatible, Json, UserError

How = Literal["static", "auto"]

Stage = Literal["static", "blocks", "dynamic", "none"]

WIDE = ("vit.norm", "vit.fc_norm", "visual.ln_post")
"""What follows the blocks and is as wide as the stream, whatever its width."""


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """How a suspect is to be written in its reference's basis.

    The suspect's stream is `scale` * `basis` @ the reference's, up to a shift of all channels;
    `basis` is (d', d). `blocks` says, for each block of the reference, which of the suspect's stand
    for it, in order. `residual` is the relative distance between the two embeddings that the static
    fit leaves, `before` the one that it found. `gauge` holds what is taken from the reference. With
    `stage` "none" the suspect is left as it is, and the notes say why.
    """

    stage: Stage
    basis: Tensor
    scale: float = 1.0
    blocks: tuple[tuple[int, ...], ...] = ()
    residual: float | None = None
    before: float | None = None
    gauge: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, Json] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Return what does not fit into JSON, on the CPU."""
        return {"basis": self.basis, **{f"gauge.{name}": v for name, v in self.gauge.items()}}

    def json(self) -> dict[str, Json]:
        """Return the rest; `of` puts both together."""
        return {
            "stage": self.stage,
            "scale": self.scale,
            "residual": self.residual,
            "before": self.before,
            "blocks": [list(group) for group in self.blocks],
            "notes": dict(self.notes),
        }

    @staticmethod
    def of(tensors: Mapping[str, Tensor], json: Mapping[str, Json]) -> Alignment:
        """Read back what `tensors` and `json` wrote."""
        kept = {n.removeprefix("gauge."): v for n, v in tensors.items() if n.startswith("gauge.")}
        blocks = tuple(tuple(group) for group in json["blocks"])
        return Alignment(**{**json, "basis": tensors["basis"], "blocks": blocks, "gauge": kept})


def align(
    suspect: VisionModel,
    reference: VisionModel,
    how: How,
    images: Images | None,
    rng: torch.Generator,
    device: torch.device,
) -> Alignment:
    """Find how `suspect` is to be written in the basis of `reference`; both are left untouched.

    "static" compares weights alone: the embedding, or the blocks where that was made anew. "auto"
    takes activations of `images` where neither says anything. The rule is the same for all.
    """
    try:
        theirs, ours = (_read(model) for model in (suspect, reference))
        _refuse_other_shapes(suspect, reference, theirs, ours)
    except Incompatible as error:
        return Alignment("none", torch.empty(0, 0), notes={"reason": str(error)})
    stems = gauge.stem(suspect, theirs), gauge.stem(reference, ours)
    own = gauge.seen_alike(stems[1], reference, suspect)
    prefix = min(suspect.prefix, reference.prefix)
    columns = stems[0].columns(prefix), own.columns(prefix)
    embedding = fits.by_embedding(*columns, theirs, ours)
    fit, notes, kept = embedding, dict[str, Json](), fits.live(theirs)
    stage: Stage = "static"
    if embedding.residual > FAR:
        by_blocks = fits.by_blocks(embedding, theirs, ours)
        if by_blocks.residual > FAR and how == "auto" and images is not None:
            middle = kept[len(kept) // 2], len(ours.blocks) // 2
            there = fits.activations(suspect, images, middle[0], device)
            here = fits.activations(reference, images, middle[1], device)
            if there.shape[1] == here.shape[1]:  # as many tokens of each image
                fit, stage = fits.by_activations(there, here, ours), "dynamic"
                notes["dynamic_residual"] = fit.residual
                by_blocks = fits.by_blocks(fit, theirs, ours)
        notes["blocks_residual"] = by_blocks.residual
        if by_blocks.residual <= FAR:
            fit, stage = by_blocks, "blocks"
    if ours.entry is None and fit is embedding and fit.residual <= FAR:
        fit = fits.refined(fit, columns, (theirs, ours), kept)
    if len(kept) < len(theirs.blocks):
        notes["blocks_dropped"] = len(theirs.blocks) - len(kept)
    matched = fits.matched(theirs, ours, kept, fit.basis, rng)
    pairs = [(there, here) for here, there in enumerate(matched) if there is not None]
    both = (suspect, reference), (theirs, ours)
    taken = gauge.taken(*both, fit.basis, fit.scale, pairs, rng)
    return Alignment(
        stage,
        fit.basis,
        fit.scale,
        _grouped(matched, kept),
        embedding.residual,
        embedding.before,
        taken,
        notes,
    )


def _read(model: VisionModel) -> Anatomy:
    try:
        return read(model)
    except UserError as error:  # it speaks to a thief, who chose the attack
        raise Incompatible(str(error).partition(";")[0]) from None


def rewritten(suspect: VisionModel, alignment: Alignment) -> VisionModel:
    """Write a suspect in its reference's basis, of the reference's width; it has no head.

    What it does to images is what the suspect does, seen in another basis. Blocks that add nothing
    are left out, so its architecture does not describe it: it is to be read, and not to be stored.
    """
    made = clone(suspect)
    if alignment.stage == "none":
        return made
    made.trunk.reset_classifier()
    made.head, made.trunk.readout = None, None
    old = read(suspect)
    made.architecture = _resized(made, len(alignment.basis.T))
    new = read(made)
    with torch.no_grad():
        _write_stem(suspect, made, old, new, alignment)
        for number, (before, after) in enumerate(zip(old.blocks, new.blocks, strict=True)):
            for part in (0, 1):
                _write_branch(before[part], after[part], alignment, f"{number}.{part}.")
        if old.final is not None and new.final is not None:
            new.final.module.eps = _eps(old.final, alignment)
        state = {n.removeprefix("tail."): v for n, v in alignment.gauge.items() if "tail." in n}
        for name, value in state.items():
            made.trunk.get_parameter(name).copy_(value)
    _regroup(made, alignment.blocks)
    return made


def _refuse_other_shapes(
    suspect: VisionModel, reference: VisionModel, theirs: Anatomy, ours: Anatomy
) -> None:
    """Refuse what no basis brings together."""
    name = suspect.architecture.name
    kinds = [
        (type(m.trunk), a.entry is None, all(n.centred for n in a.norms))
        for m, a in ((suspect, theirs), (reference, ours))
    ]
    if kinds[0] != kinds[1]:
        raise Incompatible(f"expected norms and parts of the reference's kind, got {name}")
    if suspect.width != reference.width and isinstance(suspect.trunk, OpenClipViT):
        raise Incompatible(f"expected the reference's width, for {name} has open_clip's attention")
    if not suspect.trunk.patch or not reference.trunk.patch:
        raise Incompatible(f"expected images cut into patches, got {name}")
    tails = [{n: tuple(v.shape) for n, v in gauge.tail(m).items()} for m in (suspect, reference)]
    inner = [{n: s for n, s in t.items() if not n.startswith(WIDE)} for t in tails]
    if tails[0].keys() != tails[1].keys() or inner[0] != inner[1]:
        raise Incompatible(f"expected what follows the blocks to be the reference's, got {name}")


def _grouped(matched: Sequence[int | None], kept: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Put each live block that stands for none before the next that does; the last at the end."""
    groups, rest = list[tuple[int, ...]](), list(kept)
    for found in matched:
        taken = [i for i in rest if found is not None and i <= found]
        groups.append(tuple(taken))
        rest = [i for i in rest if i not in taken]
    if groups:
        groups[-1] = (*groups[-1], *rest)
    return tuple(groups)


def _resized(made: VisionModel, width: int) -> Architecture:
    """Bring a model's modules to another width, whatever their weights; return what it is then."""
    bare = dataclasses.replace(made.architecture, head=None, readout=None)
    if width != made.width:
        bare = dataclasses.replace(
            bare, dimensions=dataclasses.replace(dimensions(made), width=width)
        )
        reshape(made, bare)
    return bare


def _write_stem(
    suspect: VisionModel, made: VisionModel, old: Anatomy, new: Anatomy, alignment: Alignment
) -> None:
    basis, kept = alignment.basis, alignment.gauge
    # In front of a norm the scale is lost.
    scale = alignment.scale if old.entry is None else math.sqrt(len(basis) / len(basis.T))

    def moved(rows: Tensor, mean: Tensor | float) -> Tensor:
        """Map (d', k) to (d, k) with these means over channels."""
        found = basis.T @ rows / scale
        return frames.centred(found) + mean if "stem.filters" in kept else found

    none = torch.zeros(0, dtype=torch.float64)
    (before,), (after,) = old.embeddings, new.embeddings
    rows = gauge.double(before.weight).flatten(1)
    _set(after.weight, moved(rows, kept.get("stem.filters", none)))
    bias = kept.get("stem.bias", torch.zeros((), dtype=torch.float64))
    places, prefix = kept.get("stem.places", none), kept.get("stem.prefix", none)
    table, _ = gauge.parted(suspect, old)
    own = kept.get("stem.first", none)
    if table is None or len(table.flatten(0, -2)) == math.prod(suspect.trunk.grid):
        own = torch.zeros_like(own)  # prefix tokens have no positions: their own is all there is
    if before.bias is not None and after.bias is not None:
        column = gauge.double(before.bias)[:, None]
        _set(after.bias, moved(column, bias if table is not None else places.mean()))
    else:
        bias = torch.zeros_like(bias)
    done = 0
    for token, place in zip(old.tokens, new.tokens, strict=True):
        rows = gauge.double(token).reshape(-1, len(basis)).T  # (d', n)
        if token is table:
            first = rows.shape[1] - math.prod(suspect.trunk.grid)
            means = torch.cat([_sized(own, first), places - bias])
        else:
            means = _sized((prefix - own)[done:], rows.shape[1])
            done += rows.shape[1]
        _set(place, moved(rows, means).T)
    if old.entry is None or new.entry is None:
        return
    gain, shift = (gauge.vector(v, len(basis)) for v in (old.entry.gain, old.entry.bias))
    made_gain = basis.square().T @ gain * scale / alignment.scale
    made_shift = basis.T @ shift / alignment.scale
    if "entry.mean" in kept:
        made_shift = made_shift - made_shift.mean() + kept["entry.mean"]
    for parameter, value in ((new.entry.gain, made_gain), (new.entry.bias, made_shift)):
        if parameter is not None:
            _set(parameter, value)


def _write_branch(old: Branch, new: Branch, alignment: Alignment, name: str) -> None:
    basis, kept, scale = alignment.basis, alignment.gauge, alignment.scale
    wide, width = basis.shape
    one, nothing = torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    # The norm of a stream of another width, scale or sign gives the same up to this factor.
    factor = math.copysign(math.sqrt(wide / width), scale)
    gain = gauge.divisor(kept.get(f"{name}gain", one)) if new.norm.gain is not None else one
    shift = kept.get(f"{name}bias", nothing) if new.norm.bias is not None else nothing
    if any(reader.bias is None for reader in old.readers):  # the norm keeps what they cannot take
        own = gauge.vector(old.norm.bias, wide) / gauge.divisor(
            gauge.vector(old.norm.gain, wide, 1.0)
        )
        shift = gain * (basis.T @ own) / factor
    for before, after in zip(old.readers, new.readers, strict=True):
        weight, bias = gauge.read(old.norm, before)
        found = factor * (weight @ basis) / gain
        _set(after.weight, found)
        if after.bias is not None:
            _set(after.bias, bias - found @ shift)
    for place, value in ((new.norm.gain, gain), (new.norm.bias, shift)):
        if place is not None:
            _set(place, value)
    new.norm.module.eps = _eps(old.norm, alignment)
    inner = gauge.divisor(kept.get(f"{name}scale", one)) if new.scale is not None else one
    weight, bias = gauge.written(old)
    weight, bias = basis.T @ weight / scale, basis.T @ bias / scale
    if old.norm.centred:
        weight = frames.centred(weight) + kept.get(f"{name}mean", 0.0)
        bias = bias - bias.mean() + kept.get(f"{name}shift", 0.0)
    _set(new.writer.weight, weight / inner[:, None])
    for place, value in ((new.writer.bias, bias / inner), (new.scale, inner)):
        if place is not None:
            _set(place, value)


def _eps(norm: Norm, alignment: Alignment) -> float:
    """Bring what a norm adds to the variance to the units of the rewritten stream."""
    wide, width = alignment.basis.shape
    return float(norm.module.eps) * wide / (alignment.scale**2 * width)


def _sized(values: Tensor, count: int) -> Tensor:
    return F.pad(values, (0, max(0, count - len(values))))[:count]


def _set(place: nn.Parameter, value: Tensor) -> None:
    place.copy_(value.reshape(place.shape))


def _regroup(made: VisionModel, groups: Sequence[Sequence[int]]) -> None:
    """Keep the blocks that are named; those that stand for one become one."""
    blocks = list(made.blocks)
    one = [[blocks[i] for i in group] for group in groups]
    kept = [g[0] if len(g) == 1 else nn.Sequential(*g) for g in one]
    trunk: Any = made.trunk
    if isinstance(made.trunk, OpenClipViT):
        trunk.visual.transformer.resblocks = nn.ModuleList(kept)
    else:
        trunk.vit.blocks = nn.Sequential(*kept)
