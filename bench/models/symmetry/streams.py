"""Put the residual stream into another basis, scale, place or width; the function stays.

Sources: S. Ashkboos et al., "SliceGPT: compress large language models by deleting rows and
columns", arXiv:2401.15024, section 3 (orthogonal maps commute with an RMS norm once gains are
folded); that LayerNorm asks for maps that keep the all-ones direction is worked out here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from bench.models import Architecture, TimmViT, VisionModel, clone, reshape
from bench.models.symmetry.anatomy import Anatomy, Attention, Linear, Mlp, Norm, dimensions, read
from bench.records.nouns import UserError

EXACT = 1e-9
"""How far R^T R may be from the identity, and R 1 from a multiple of 1."""


@dataclass(frozen=True, slots=True)
class _Map:
    """What happens to a stream x: it becomes scale * write x, with read write = 1.

    `chosen` are the old channels that make the new ones, where every new one is an old one.
    """

    write: Tensor  # (d', d)
    read: Tensor  # (d, d')
    chosen: Tensor | None
    scale: float

    @property
    def trivial(self) -> bool:
        """Say whether all channels stay where they are."""
        wide = len(self.write)
        return self.chosen is not None and torch.equal(
            self.chosen, torch.arange(wide, device=self.chosen.device)
        )

    def written(self, rows: Tensor, factor: float = 1.0, gain: Tensor | None = None) -> Tensor:
        """Map what writes (d, ...) to what writes (d', ...), times a factor and gains (d,)."""
        if self.chosen is not None:  # what only moves keeps its digits
            found = rows[self.chosen]
            return found if factor == 1 else factor * found.double()
        # The smaller matrix is multiplied: gains cost next to nothing.
        write = factor * (self.write if gain is None else self.write * gain)
        return write @ rows.double()

    def weighed(self, columns: Tensor, gain: Tensor | None = None) -> Tensor:
        """Map what reads channels, (m, d), behind gains (d,) to what reads new ones, (m, d')."""
        if self.chosen is None:
            return columns.double() @ (self.read if gain is None else gain[:, None] * self.read)
        parts = self.read[self.chosen, torch.arange(len(self.chosen), device=self.read.device)]
        found = columns[:, self.chosen]
        return found if bool((parts == 1).all()) else found.double() * parts


def fold(model: VisionModel) -> VisionModel:
    """Put gains and biases of norms into what reads behind them, and LayerScale into its writer.

    The norms of the branches are left with gain 1 and bias 0. A reader without a bias cannot take
    one up: then the norm keeps bias / gain. The norm that a stream starts from, and the final one,
    are left as they are.

    Raises:
        UserError: no such transformer, or a gain of 0 stands beside a bias that cannot be moved.

    """
    made = clone(model)
    with torch.no_grad():
        for branch in read(made).branches:
            _fold_norm(branch.norm, branch.readers)
            _fold_scale(branch)
    return made


def map_stream(
    model: VisionModel,
    r: Tensor,
    scale: float = 1.0,
    shift: float = 0.0,
    undo: Tensor | None = None,
) -> VisionModel:
    """Let the residual stream x (b, n, d) be scale * sqrt(d'/d) * R x + shift, R being (d', d).

    R^T R = 1 if the stream gets no narrower, else R R^T = 1: then all that lies outside its rows is
    cut off, which is exact only for a stream that has nothing there. R 1 must be a multiple of 1
    where norms subtract the mean. The factor keeps the spread of channels: repeating every channel
    is such an R. `undo` (d, d') is what readers take the stream back with, by default
    sqrt(d/d') R^T; its product with sqrt(d'/d) R must be 1.

    Where R only picks channels, norms and LayerScale move with these. Else they are folded first,
    see `fold`. A linear readout behind the final norm gives every head the tokens it knew. An eps
    is in the units of the stream, so it is scaled as well, by scale^2: or nothing here were exact.

    Raises:
        UserError: no such transformer, or the map is not exact in it.

    """
    body = read(model)
    how = _map(body, r, scale, undo)
    if body.entry is not None and how.chosen is None:
        raise UserError(
            f"expected a map that picks channels, for the stream of {model.architecture.name} "
            "starts from a norm, whose gain cannot be rotated; choose a permutation, scale or shift"
        )
    if len(how.write) != model.width and not isinstance(model.trunk, TimmViT):
        raise UserError(
            f"expected a stream of another width than attention's, got {model.architecture.name}, "
            "whose library keeps both equal; choose a map that keeps the width"
        )
    if shift:
        _refuse_shift(body, model.architecture.name)
    made = clone(model)
    reshape(made, _mapped(model, body, how, shift))
    with torch.no_grad():
        new = read(made)
        _map_entrance(body, new, how, shift)
        for old_branch, new_branch in zip(body.branches, new.branches, strict=True):
            _map_branch(old_branch, new_branch, how)
        _map_end(model, made, how, shift)
    return made


def bake_means(model: VisionModel) -> VisionModel:
    """Take out of what is written to the stream its mean over channels, which no norm sees.

    Readers lose the mean of their rows where it has nothing to read. Norms and LayerScale are
    folded.

    Raises:
        UserError: no such transformer, or the mean of its stream is not free.

    """
    _refuse_shift(read(model), model.architecture.name, every=True)
    made = fold(model)
    body = read(made)
    with torch.no_grad():
        for value in _written(body):
            _set(value, value.double() - value.double().mean(0, keepdim=True))
        for token in body.tokens:
            _set(token, token.double() - token.double().mean(-1, keepdim=True))
        for branch in body.branches:
            kept = branch.norm.bias
            if kept is not None and kept.any():
                continue  # a bias that no reader could take up has a mean, which is read
            for reader in branch.readers:
                rows = reader.weight.double()
                _set(reader.weight, rows - rows.mean(1, keepdim=True))
        if body.entry is not None and body.entry.bias is not None:
            _set(body.entry.bias, body.entry.bias.double() - body.entry.bias.double().mean())
    return made


def shift_writers(model: VisionModel, sd: float, rng: torch.Generator) -> VisionModel:
    """Have all that writes to the stream add to its mean over channels, which no norm sees.

    Every column of a writer, every bias and every token get a constant of their own, drawn from a
    normal distribution with deviation `sd`. LayerScale is folded into its writer.

    Raises:
        UserError: no such transformer, or the mean of its stream is not free.

    """
    _refuse_shift(read(model), model.architecture.name, every=True)
    made = clone(model)
    body = read(made)
    with torch.no_grad():
        for branch in body.branches:
            _fold_scale(branch)
        for value in _written(body):
            _set(value, value.double() + _drawn((1, *value.shape[1:]), sd, rng, value))
        for token in body.tokens:
            _set(token, token.double() + _drawn((*token.shape[:-1], 1), sd, rng, token))
    return made


def _drawn(shape: Iterable[int], sd: float, rng: torch.Generator, like: Tensor) -> Tensor:
    drawn = torch.randn(tuple(shape), generator=rng, dtype=torch.float64)
    return sd * drawn.to(like.device)


def _written(body: Anatomy) -> list[nn.Parameter]:
    """List weights and biases whose rows are channels of the stream (or of what enters it)."""
    writers = [*body.embeddings, *(branch.writer for branch in body.branches)]
    return [p for each in writers for p in (each.weight, each.bias) if p is not None]


def _refuse_shift(body: Anatomy, name: str, every: bool = False) -> None:
    """Refuse where the mean of the stream is seen, or has no place to be put in once."""
    if not all(norm.centred for norm in body.norms):
        seen = "whose norms do not subtract it"
    elif every and body.final is None:
        seen = "whose tokens are pooled before any norm subtracts it"
    elif every and body.entry is not None and not body.entry.centred:
        seen = "whose first norm does not subtract it"
    elif not every and (body.entry.bias is None if body.entry else not body.carriers):
        seen = "which adds nothing to each token that a constant could be added to"
    else:
        return
    raise UserError(
        f"expected a transformer that does not see the mean of its stream, got {name}, {seen}; "
        "choose another attack"
    )


def _map(body: Anatomy, r: Tensor, scale: float, undo: Tensor | None) -> _Map:
    device = body.embeddings[0].weight.device
    width = body.embeddings[0].weight.shape[0]
    r = r.to(device, torch.float64)
    if r.ndim != 2 or r.shape[1] != width or not scale > 0:
        raise UserError(
            f"expected a map (d', {width}) and a scale above 0, got {tuple(r.shape)} and {scale}"
        )
    wide = len(r)
    square = r.mT @ r if wide >= width else r @ r.mT
    if (square - torch.eye(len(square), device=device, dtype=r.dtype)).abs().max() > EXACT:
        raise UserError("expected a map R with R^T R = 1 (R R^T = 1 if it is to a narrower stream)")
    write = math.sqrt(wide / width) * r
    means = write.sum(1)
    if any(norm.centred for norm in body.norms) and (
        (means - means[0]).abs().max() > EXACT * math.sqrt(width)
        or abs(abs(float(means[0])) - 1) > EXACT * math.sqrt(width)
    ):
        raise UserError(
            "expected a map R with R 1 a multiple of 1, for the norms subtract the mean over "
            "channels; choose a rotation about the all-ones direction"
        )
    back = (width / wide) * write.mT if undo is None else undo.to(device, torch.float64)
    if undo is not None:
        apart = (back @ write - torch.eye(width, device=device, dtype=r.dtype)).abs().max()
        if apart > EXACT:
            raise UserError("expected `undo` to take the stream back: undo sqrt(d'/d) R = 1")
    return _Map(write, back, _picked(write), scale)


def _picked(write: Tensor) -> Tensor | None:
    """Return which old channel each new one is; None where one is anything else."""
    chosen = write.argmax(1)
    rest = write.scatter_add(
        1, chosen[:, None], torch.full((len(write), 1), -1.0, device=write.device).double()
    )
    return chosen if rest.abs().max() <= EXACT else None


def _mapped(model: VisionModel, body: Anatomy, how: _Map, shift: float) -> Architecture:
    """Say what is another in a model's architecture once its stream is mapped."""
    changed: dict[str, object] = {}
    if len(how.write) != model.width:
        changed["dimensions"] = dataclasses.replace(dimensions(model), width=len(how.write))
    if not how.trivial or (body.final is None and (how.scale != 1 or shift)):
        changed["readout"] = model.num_features
    if how.scale != 1:
        found = {norm.module.eps for norm in body.norms}
        if len(found) != 1:
            raise UserError(f"expected norms of one eps to scale a stream, got {sorted(found)}")
        changed["eps"] = found.pop() * how.scale**2
    return dataclasses.replace(model.architecture, **changed)  # type: ignore[arg-type]


def _map_entrance(old: Anatomy, new: Anatomy, how: _Map, shift: float) -> None:
    # In front of a norm channels may move, but scale and place are lost in it.
    scale = 1.0 if old.entry is not None else how.scale
    for before, after in zip(old.embeddings, new.embeddings, strict=True):
        for source, target in ((before.weight, after.weight), (before.bias, after.bias)):
            if source is not None and target is not None:
                found = how.written(source.flatten(1) if source.ndim > 1 else _row(source), scale)
                _set(target, found.reshape(target.shape))
    for token, place in zip(old.tokens, new.tokens, strict=True):
        rows = token.reshape(-1, token.shape[-1])  # (n, d)
        _set(place, how.written(rows.mT, scale).mT.reshape(place.shape))
    if old.entry is None or new.entry is None:
        for carrier in new.carriers if shift else ():
            _set(carrier, carrier.double() + shift)
        return
    for entering, entered in ((old.entry.gain, new.entry.gain), (old.entry.bias, new.entry.bias)):
        if entering is not None and entered is not None:
            _set(entered, how.written(_row(entering), how.scale)[:, 0])
    if shift and new.entry.bias is not None:
        _set(new.entry.bias, new.entry.bias.double() + shift)


def _map_branch(old: Attention | Mlp, new: Attention | Mlp, how: _Map) -> None:
    gain, bias = _gain(old.norm), _bias(old.norm)
    if how.chosen is not None:
        _write_norm(new.norm, gain[how.chosen], bias[how.chosen])
        moved = None
    else:
        moved = bias if _take_biases(old.readers) else None
        kept = torch.zeros_like(bias) if moved is not None else _over(bias, gain)
        _write_norm(new.norm, torch.ones_like(how.write[:, 0]), how.written(_row(kept))[:, 0])
    for before, after in zip(old.readers, new.readers, strict=True):
        if moved is not None and before.bias is not None and after.bias is not None:
            _set(after.bias, before.bias.double() + before.weight.double() @ moved)
        _set(after.weight, how.weighed(before.weight, gain))
    inner = None if old.scale is None else old.scale.double()
    if inner is not None and new.scale is not None:
        ones = torch.ones_like(how.write[:, 0])
        _set(new.scale, ones if how.chosen is None else inner[how.chosen])
    for source, target in (
        (old.writer.weight, new.writer.weight),
        (old.writer.bias, new.writer.bias),
    ):
        if source is not None and target is not None:
            rows = source if source.ndim > 1 else _row(source)
            _set(target, how.written(rows, how.scale, inner).reshape(target.shape))


def _map_end(model: VisionModel, made: VisionModel, how: _Map, shift: float) -> None:
    """Have the readout undo what was done to the stream, behind the final norm."""
    old, new, after = read(model).final, read(made).final, made.trunk.readout
    width, before = model.width, model.trunk.readout
    weight = torch.eye(width).to(how.write) if before is None else before.weight.double()
    bias = torch.zeros(len(weight)).to(how.write) if before is None else before.bias.double()
    if old is None or new is None:
        weight = how.weighed(weight) / how.scale
        bias = bias - shift * weight.sum(1)
    elif how.chosen is not None:
        _write_norm(new, _gain(old)[how.chosen], _bias(old)[how.chosen])
        weight = how.weighed(weight)
    else:
        gain, inner = _gain(old), _bias(old)
        _write_norm(new, torch.ones_like(how.write[:, 0]), torch.zeros_like(how.write[:, 0]))
        weight, bias = how.weighed(weight, gain), bias + weight @ inner
    if after is not None:
        _set(after.weight, weight)
        _set(after.bias, bias)


def _fold_norm(norm: Norm, readers: tuple[Linear, ...]) -> None:
    gain, bias = _gain(norm), _bias(norm)
    moved = _take_biases(readers)
    for reader in readers:
        weight = reader.weight.double()
        if moved and reader.bias is not None:
            _set(reader.bias, reader.bias.double() + weight @ bias)
        _set(reader.weight, weight * gain)
    kept = torch.zeros_like(bias) if moved else _over(bias, gain)
    _write_norm(norm, torch.ones_like(gain), kept)


def _fold_scale(branch: Attention | Mlp) -> None:
    if branch.scale is None:
        return
    inner = branch.scale.double()
    _set(branch.writer.weight, inner[:, None] * branch.writer.weight.double())
    if branch.writer.bias is not None:
        _set(branch.writer.bias, inner * branch.writer.bias.double())
    _set(branch.scale, torch.ones_like(inner))


def _take_biases(readers: tuple[Linear, ...]) -> bool:
    return all(reader.bias is not None for reader in readers)


def _over(bias: Tensor, gain: Tensor) -> Tensor:
    """Divide the bias of a norm by its gain, 0 by 0 being 0."""
    if bool(((gain == 0) & (bias != 0)).any()):
        raise UserError(
            "expected gains other than 0 where readers have no bias to fold one into, got some; "
            "choose a permutation"
        )
    return torch.where(gain == 0, torch.zeros_like(bias), bias / torch.where(gain == 0, 1.0, gain))


def _gain(norm: Norm) -> Tensor:
    found = norm.gain
    return _like(norm, 1.0) if found is None else found.double()


def _bias(norm: Norm) -> Tensor:
    found = norm.bias
    return _like(norm, 0.0) if found is None else found.double()


def _like(norm: Norm, value: float) -> Tensor:
    device = None if norm.gain is None else norm.gain.device
    size = cast(tuple[int, ...], norm.module.normalized_shape)
    return torch.full(size, value, dtype=torch.float64, device=device)


def _write_norm(norm: Norm, gain: Tensor, bias: Tensor) -> None:
    for place, value, default in ((norm.gain, gain, 1.0), (norm.bias, bias, 0.0)):
        if place is not None:
            _set(place, value)
        elif bool((value != default).any()):
            raise UserError("expected a norm with a gain and a bias to write to, got one without")


def _row(values: Tensor) -> Tensor:
    """Lay (d,) out as one column (d, 1)."""
    return values.double()[:, None]


def _set(place: Tensor, value: Tensor) -> None:
    place.copy_(value)
