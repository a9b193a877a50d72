"""Lay weights from files into a model and write them, and name a model by them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from bench.models.building import blank
from bench.models.checkpoints import Checkpoint, listed, read_weights
from bench.models.libraries import LIBRARIES
from bench.models.symmetry.anatomy import dimensions, dimensions_in
from bench.models.vision import Architecture, VisionModel
from bench.records.files import write_atomically
from bench.records.nouns import UserError, canonical, digest


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model from a file, the parts of the file that are no backbone, and its weights' name."""

    model: VisionModel
    ignored: Mapping[str, int]  # tensors left out, by the first part of their names
    digest: str
    notes: tuple[str, ...]  # what was understood: which set of weights, prefix, grid and head
    image_size: int | None = None  # at which positions that were resampled would stay as they are


def load_state(model: VisionModel, state: Mapping[str, Tensor], origin: str) -> VisionModel:
    """Put `state` into `model`, in the model's precision, and return it.

    Raises:
        UserError: the state is of another architecture; names the first differing entry.

    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        first = f"lacks '{missing[0]}'" if missing else f"has an unknown '{extra[0]}'"
        raise UserError(
            f"{origin}: expected weights of {model.architecture.name}, got another architecture's "
            f"({first}; {len(missing)} missing, {len(extra)} unknown)"
        )
    for name, value in state.items():
        if own[name].shape != value.shape:
            raise UserError(
                f"{origin}: expected {name} of shape {tuple(own[name].shape)}, "
                f"got {tuple(value.shape)}; the checkpoint is of another architecture"
            )
    model.load_state_dict(dict(state))
    return model


def weights_digest(model: VisionModel) -> str:
    """Name a backbone by its weights: 16 hex digits, whatever head sits on it.

    Served otherwise it is another, for it answers otherwise.
    """
    found = hashlib.sha256()
    for name, value in sorted(model.trunk.state_dict().items()):
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    for served in model.architecture.served or ():
        found.update(canonical(dataclasses.asdict(served)).encode())
    return found.hexdigest()[:16]


SKETCH = 64
"""Numbers in a sketch: enough for distances to a fifth."""


def sketch(model: VisionModel) -> tuple[float, ...]:
    """Project a backbone's matrices at random on a few numbers, whatever head sits on it.

    Every weight is added to or taken from one of the numbers, drawn by its tensor's name and shape:
    sketches of one architecture are as far apart as the weights (M. Charikar, K. Chen, M.
    Farach-Colton, "Finding frequent items in data streams", 2002). Norms, biases and counters are
    left out: they are much alike in all models. See `bench.verdicts.copies` for what it is for.
    """
    found = torch.zeros(SKETCH, dtype=torch.float64)
    for name, value in sorted(headless(model).trunk.state_dict().items()):
        if value.ndim < 2 or not value.is_floating_point():
            continue
        seed = int(digest("sketch", name, list(value.shape)), 16) >> 1
        drawn = torch.randint(
            2 * SKETCH, (value.numel(),), generator=torch.Generator().manual_seed(seed)
        )
        signed = value.detach().cpu().flatten().double() * (1 - 2 * (drawn % 2))
        found += torch.bincount(drawn // 2, signed, minlength=SKETCH)
    return tuple(float(f"{number:.9g}") for number in found.tolist())


def secret_digest(secret: Mapping[str, Tensor]) -> str:
    """Name a secret by its content, 16 hex digits, in whatever order its queries come.

    Two keys of a method that give one and the same set of queries are one key.
    """
    found = hashlib.sha256()
    for name, value in sorted(secret.items()):
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        rows = value.detach().cpu().contiguous()
        if rows.ndim < 2:  # numbers, which sort by themselves
            found.update(rows.reshape(-1).sort().values.view(torch.uint8).numpy().tobytes())
            continue
        each = (hashlib.sha256(row.reshape(-1).view(torch.uint8).numpy()).digest() for row in rows)
        for row in sorted(each):
            found.update(row)
    return found.hexdigest()[:16]


HEADS = (
    *("head", "heads", "head_dist", "classifier", "fc", "linear", "decode_head", "segmentation"),
    "readout",  # a linear map behind the final norm
)
"""What libraries call a head: beside a backbone its tensors, and a decoder's, may go unread."""

AVERAGED = ("teacher", "ema", "model_ema", "ema_model")
"""Parts of names under which training keeps the average of the weights beside them."""

PLACES = ("pos", "position", "rel_pos")
"""What the names of tables of positions are made of: what may be resampled to another grid."""


def load_weights(
    file: Path, architecture: Architecture, entry: str | None = None, *, any_size: bool = False
) -> Loaded:
    """Load a backbone from a file that may hold any head, under any prefix: owner's or suspect's.

    A classifier comes along where the file's is the library's own, of as many classes. Positions of
    another grid are resampled as the library does. `entry` says which of several sets of weights is
    meant: the key it lies under, or a part of its names. With `any_size` a transformer of the
    architecture's kind may have another width, depth or number of heads or neurons, as a thief's.

    Raises:
        UserError: the file cannot be read, holds another architecture, two sets of weights of which
            none is the other's average, or values that are no numbers.

    """
    read = read_weights(file, entry)
    whole = blank(architecture)
    bare = blank(dataclasses.replace(architecture, head=None, classes=None))
    prefix, chosen = _prefix(read, bare, file.name)
    given = {n.removeprefix(prefix): v for n, v in read.state.items() if n.startswith(prefix)}
    kinds = (whole, bare) if architecture.head else (bare,)
    for model in kinds:
        fitted = _fitted(model, given)
        if fitted is not None:
            break
    if any_size and (fitted is None or _unknown(fitted)):
        model, fitted = _of_another_size(kinds, given) or (model, fitted)
    if fitted is None:
        raise _another_architecture(file.name, bare, given)
    _fill(model, fitted.ours, file.name)
    outside = [name for name in read.state if not name.startswith(prefix)]
    if spare := _unknown(fitted):
        raise UserError(
            f"{file.name}: expected a {architecture.name} (nothing beside it but a head), got "
            f"another architecture's weights (unknown {listed(spare)}); {WAY_OUT}"
        )
    taken = LIBRARIES.get(architecture.library).assumed(architecture)
    notes = [*read.notes, *chosen, *fitted.notes, *_rounded(fitted), *([taken] if taken else [])]
    if architecture.head and model.architecture.head is None:
        if architecture.classes is not None:
            raise _other_classes(file.name, whole, given)
        notes += _described_head(whole, given)
    ignored = Counter(map(_first, [*outside, *fitted.spare]))
    named = weights_digest(headless(model))
    return Loaded(model, ignored, named, tuple(notes), fitted.image_size)


WAY_OUT = "name the model that they are of, a suspect's with --model"


@dataclass(frozen=True, slots=True, eq=False)
class _Fitted:
    """Tensors of a file by our names, the names that are left over, and what was resampled."""

    ours: Mapping[str, Tensor]
    spare: Sequence[str]
    notes: tuple[str, ...] = ()
    image_size: int | None = None  # at which nothing would have been


def _fitted(model: VisionModel, given: Mapping[str, Tensor]) -> _Fitted | None:
    """Match tensors to a model's by the layouts of its library, else as the library converts them.

    It also knows what pretraining leaves beside an encoder. None where neither fits in every shape.
    """
    plain = None
    for layout in LIBRARIES.get(model.architecture.library).layouts:
        names = _laid_out(model, layout)
        if plain is None and _fits(model, names, given):
            spare = [name for name in given if name not in names]
            plain = _Fitted({ours: given[name] for name, ours in names.items()}, spare)
    if plain is not None and not _unknown(plain):
        return plain
    return _converted(model, given) or plain


def _of_another_size(
    kinds: Sequence[VisionModel], given: Mapping[str, Tensor]
) -> tuple[VisionModel, _Fitted] | None:
    """Match tensors to a model of one of these kinds and another size, if they are of one.

    The last of them has no head.
    """
    bare = kinds[-1]
    for layout in LIBRARIES.get(bare.architecture.library).layouts:
        shapes = {
            f"{ours}{name.removeprefix(theirs)}": tuple(value.shape)
            for name, value in given.items()
            for theirs, ours in layout.items()
            if name.startswith(theirs)
        }
        try:
            own, found = dimensions(bare), dimensions_in(bare, shapes)
        except UserError:  # of no transformer whose parts are told apart
            return None
        if found is None or found == own:
            continue
        sizes = [
            f"{field.name} {there} instead of {here}"
            for field in dataclasses.fields(found)
            if (there := getattr(found, field.name)) != (here := getattr(own, field.name))
        ]
        name = bare.architecture.name
        said = f"read as a {name} of another size, heads as wide as its own: {', '.join(sizes)}"
        for kind in kinds:
            model = blank(dataclasses.replace(kind.architecture, dimensions=found))
            fitted = _fitted(model, given)
            if fitted is not None:
                return model, dataclasses.replace(fitted, notes=(said, *fitted.notes))
    return None


def _rounded(fitted: _Fitted) -> list[str]:
    """Say that weights come in fewer bits than they are read in: they are no longer the owner's."""
    short = {v.dtype for v in fitted.ours.values() if v.dtype.is_floating_point and v.itemsize < 4}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in short)
    return [f"weights in {' and '.join(names)} are read in float32"] if names else []


def _unknown(fitted: _Fitted) -> list[str]:
    """List the tensors beside a backbone that are neither of a head nor of a decoder."""
    return [
        name
        for name in fitted.spare
        if _first(name) not in HEADS and not name.startswith("decoder")
    ]


def _converted(model: VisionModel, given: Mapping[str, Tensor]) -> _Fitted | None:
    library, names = LIBRARIES.get(model.architecture.library), _library_names(model)
    try:
        made = library.convert(model, dict(given))
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError):
        return None  # what the library makes of weights that are none of its own is its business
    if not _fits(model, names, made):
        return None
    resampled = list[tuple[str, int | None]]()
    for name in names:
        before, after = _before(given, name), made[name]
        if before is not None and before.shape != after.shape:
            if not _are_positions([name]):
                return None  # patches of another size are another architecture
            resampled.append(_resampled(name, before, after, model))
    spare = [name for name in made if name not in names]
    ours = {ours: made[name] for name, ours in names.items()}
    if not resampled:
        return _Fitted(ours, spare)
    note, image_size = resampled[0]
    return _Fitted(ours, spare, (note,), image_size)


def _before(given: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Return a tensor of a file by the library's name, or by that after some prefix."""
    prefixed = (value for other, value in given.items() if other.endswith(f".{name}"))
    return given.get(name) if name in given else next(prefixed, None)


def _resampled(
    name: str, before: Tensor, after: Tensor, model: VisionModel
) -> tuple[str, int | None]:
    """Say from which grid to which positions were brought; return what `image_size` keeps them."""
    sides = [_side(table, model.prefix) for table in (before, after)]
    grids = [
        f"{side} x {side}" if side else f"{max(table.shape[:-1], default=0)}"
        for side, table in zip(sides, (before, after), strict=True)
    ]
    said = f"{name} of a grid of {grids[0]} is resampled to {grids[1]}, as the library does"
    kept_by = _kept_by(sides[0], sides[1], model)
    return said + (f"; `image_size: {kept_by}` keeps it" if kept_by else ""), kept_by


def _side(table: Tensor, prefix: int) -> int | None:
    """Return the side of the square grid that a table of positions (..., n, d) is of, if any."""
    tokens = max(table.shape[:-1], default=0)
    sides = {math.isqrt(n): n for n in (tokens, tokens - 1, tokens - prefix) if n > 0}
    return next((side for side, n in sides.items() if side * side == n), None)


def _kept_by(side: int | None, own: int | None, model: VisionModel) -> int | None:
    """Return the side of images at which a model has the grid of a file, if it is known."""
    patch, grid = model.trunk.patch, getattr(model.trunk, "grid", None)
    resizes = LIBRARIES.get(model.architecture.library).resizes
    # A table of relative positions is no grid of patches.
    if not side or patch is None or grid is None or own not in grid or not resizes:
        return None
    return side * patch[0]


def _fits(model: VisionModel, names: Mapping[str, str], given: Mapping[str, Tensor]) -> bool:
    own = model.state_dict()
    return len(names) == len(own) and all(
        name in given and given[name].shape == own[ours].shape for name, ours in names.items()
    )


def _fill(model: VisionModel, state: Mapping[str, Tensor], origin: str) -> None:
    """Put tensors into a model, in its precision.

    Raises:
        UserError: one is of whole numbers where the model's is not, or is not finite.

    """
    for name, own in model.state_dict().items():
        if state[name].dtype.is_floating_point != own.dtype.is_floating_point:
            raise UserError(
                f"{origin}: expected {name} in {str(own.dtype).removeprefix('torch.')}, got "
                f"{str(state[name].dtype).removeprefix('torch.')}, as of a quantised copy; save it "
                "as it was trained"
            )
    model.load_state_dict(dict(state))
    refuse_infinite(model, origin)


def refuse_infinite(model: VisionModel, origin: str) -> None:
    """Refuse weights that are not numbers: what they answer says nothing of anybody's model.

    Raises:
        UserError: a tensor holds a NaN or an infinity.

    """
    found = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if found:
        raise UserError(
            f"{origin}: expected finite weights, got NaN or infinity in {listed(found)}; the "
            "training diverged or the file is damaged: take another"
        )


def _other_classes(origin: str, whole: VisionModel, given: Mapping[str, Tensor]) -> UserError:
    """Say that a file has not the classifier that `classes` asks for."""
    found = [
        v.shape[0]
        for n, v in given.items()
        if _first(n) in HEADS and n.endswith("weight") and v.ndim > 1
    ]
    got = f"one of {found[-1]}; say so" if found else "no head; leave `classes` out"
    return UserError(f"{origin}: classes: expected a head of {whole.classes} classes, got {got}")


def _described_head(whole: VisionModel, given: Mapping[str, Tensor]) -> list[str]:
    """Name a classifier in a file that is not the model's own, or say that there is none."""
    heads = [
        n for n, v in given.items() if _first(n) in HEADS and n.endswith("weight") and v.ndim > 1
    ]
    wanted, own = f"{whole.architecture.name} has {whole.classes}", whole.architecture.head == "own"
    if not heads:
        none = f"{wanted} classes and the file no head: the backbone is read without one"
        return [none] if own else []  # what we train a head on is a file without one
    name, classes = heads[-1], given[heads[-1]].shape[0]
    said = f"{name} has {classes} classes where {wanted}: the backbone is read without its head"
    return [said + (f"; `classes: {classes}` of an owner reads it, too" if own else "")]


def release(model: VisionModel, path: Path) -> None:
    """Write a model's weights in the layout of its library; `mini`'s in the bench's own."""
    own, prefix = model.state_dict(), LIBRARIES.get(model.architecture.library).prefix
    state = {
        f"{prefix}{name}": own[ours].detach().cpu().contiguous().clone()
        for name, ours in _library_names(model).items()
    }
    write_atomically(path, save(state, {"format": "pt"}))


def _laid_out(model: VisionModel, layout: Mapping[str, str]) -> dict[str, str]:
    """Map the names that a layout gives to a model's tensors to ours."""
    return {
        f"{theirs}{name.removeprefix(ours)}": name
        for name in model.state_dict()
        for theirs, ours in layout.items()
        if name.startswith(ours)
    }


def _library_names(model: VisionModel) -> dict[str, str]:
    """Map the library's names of a model's tensors to ours; without its `prefix`."""
    layouts = LIBRARIES.get(model.architecture.library).layouts
    return max((_laid_out(model, layout) for layout in layouts), key=len)


def _prefix(read: Checkpoint, model: VisionModel, origin: str) -> tuple[str, list[str]]:
    """Find what stands before the backbone's names in a file, and say so if anything does.

    It is the prefix under which most names fit; of several as good, that of an average.

    Raises:
        UserError: several fit as well, or none has the entry that was asked for.

    """
    names, state = _library_names(model), read.state
    # A layer's names end alike, whatever the file lacks: a few are enough to find candidates.
    ends = [*names][:: max(1, len(names) // 16)]
    found = {n.removesuffix(end) for n in state for end in ends if n.endswith(end)}
    found = {prefix for prefix in found if not prefix or prefix.endswith(".")}
    if read.entry is not None:
        found = {prefix for prefix in found if read.entry in prefix.split(".")}
        if not found:
            tops = list(dict.fromkeys(map(_first, state)))
            raise UserError(
                f"{origin}: expected weights under '{read.entry}', got {listed(tops)}; leave "
                "`entry` out, or name one of these"
            )
    fits = {prefix: sum(prefix + name in state for name in names) for prefix in found}
    best = max(fits.values(), default=0)
    if 2 * best < len(names):
        return "", []  # other names, which the library may know, or another architecture
    most = sorted(prefix for prefix, count in fits.items() if count == best)
    means = [p for p in most if any(part in AVERAGED for part in p.split("."))]
    library = LIBRARIES.get(model.architecture.library)
    ours = [own for layout in library.layouts for own in layout.values()]
    if len(most) == 1:
        usual = most[0] in ("", library.prefix, *ours)
        return most[0], [] if usual else [f"names are read after {most[0]}"]
    if len(means) != 1:
        raise UserError(
            f"{origin}: expected one set of weights, got them under {listed(most)}; say which "
            "with `entry`"
        )
    others = (set(p.split(".")) - set(means[0].split(".")) for p in most if p != means[0])
    ways = " or ".join(f"`entry: {min(parts)}`" for parts in others if parts)
    return means[0], [f"names are read after {means[0]}, the average; or say {ways}"]


def _first(name: str) -> str:
    return name.partition(".")[0]


def _another_architecture(
    origin: str, model: VisionModel, given: Mapping[str, Tensor]
) -> UserError:
    """Say where a file differs: by the first names and by how many."""
    names, own = _library_names(model), model.state_dict()
    lacking = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names and _first(name) not in HEADS]
    other = [n for n, ours in names.items() if n in given and given[n].shape != own[ours].shape]
    parts = [f"lacks {listed(lacking)}"] if lacking else []
    if other:
        got, wanted = tuple(given[other[0]].shape), tuple(own[names[other[0]]].shape)
        parts.append(f"shape {got} instead of {wanted} in {listed(other)}")
    parts += [f"unknown {listed(unknown)}"] if unknown else []
    way_out = WAY_OUT
    if other and not lacking and not unknown and _are_positions(other):
        table = names[other[0]]
        there, here = (_side(state, model.prefix) for state in (given[other[0]], own[table]))
        kept_by = _kept_by(there, here, model)
        way_out = "its images are of another size or shape: give `image_size`"
        if kept_by:
            way_out = f"`image_size: {kept_by}` keeps it"
    return UserError(
        f"{origin}: expected weights of {model.architecture.name}, got another architecture's "
        f"({'; '.join(parts)}); {way_out}"
    )


def _are_positions(names: Sequence[str]) -> bool:
    """Say whether these are tables of positions alone."""
    return all(any(part in name for part in PLACES) for name in names)


def headless(model: VisionModel) -> VisionModel:
    """Return a model without its library's classifier: what names and digests are made of."""
    if model.architecture.head is None:
        return model
    bare = blank(dataclasses.replace(model.architecture, head=None)).to(model.mean.device)
    kept = bare.state_dict().keys()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k in kept})
    return bare
