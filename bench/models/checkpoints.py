"""Read a file of weights as plain tensors: of several sets in it one, and say which."""

from __future__ import annotations

import dataclasses
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.records.files import stands_for
from bench.records.nouns import UserError, first_line
from bench.records.settings import nearest

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Keys of weights averaged over training. Of these and others timm, too, takes the average."""

PLAIN = ("state_dict", "model", "teacher", "model_state_dict", "module", "student")
"""Keys of weights in checkpoints of training scripts. A teacher is its student's average."""

DEEPEST = 8
"""How many keys a script may have put a state dict under, one within another."""

WRAPPED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile and shards of a model write into names, wherever a part was wrapped."""

OTHERS = {
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file of quantised weights",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"GIF8": "a picture (GIF)",
    b"RIFF": "a picture or a recording (RIFF)",
}
"""What files that are no weights of PyTorch begin with, and what they are."""

SHOWN = 3
"""Names that a message lists; the others are counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Tensors by name, and what was chosen to get there; `entry` is yet to be looked for."""

    state: Mapping[str, Tensor]
    notes: tuple[str, ...]
    entry: str | None = None


def read_weights(file: Path, entry: str | None = None) -> Checkpoint:
    """Read a safetensors file, or a PyTorch checkpoint as plain tensors: nothing is executed.

    Of several sets of weights the one under `entry` is read, by default an average. An entry that
    is no key of the file may be a part of its tensors' names.

    Raises:
        UserError: the file is missing, truncated, or holds anything but tensors and containers.

    """
    _refuse_what_is_no_checkpoint(file)
    named = file.suffix == ".safetensors"
    safe = not _begins_as_pytorch(file) if named else _begins_as_safetensors(file)
    try:
        with warnings.catch_warnings(action="ignore"):  # what cannot be read is an error below
            found = load_file(file) if safe else _unpickled(file)
    except pickle.UnpicklingError:
        raise UserError(
            f"{file.name}: expected a PyTorch checkpoint of tensors only, got a pickle of other "
            "things, which is not opened; save the model's state_dict() as safetensors"
        ) from None
    # A damaged pickle sends the restricted reader wherever its bytes point.
    except (SafetensorError, OSError, EOFError, RuntimeError, LookupError, TypeError,
            ValueError, AttributeError, AssertionError, struct.error) as error:  # fmt: skip
        kind = "safetensors file" if safe else "PyTorch checkpoint"
        raise UserError(
            f"{file.name}: expected a {kind}, got a damaged one ({first_line(error)}); "
            "copy it again"
        ) from None
    read = _checkpoint(found, file.name, entry)
    kind = "safetensors" if safe else "a PyTorch checkpoint"
    said = [] if safe == named else [f"{file.name} is read as {kind}, whatever its name says"]
    return dataclasses.replace(read, notes=(*said, *read.notes))


def _unpickled(file: Path) -> object:
    """Read with PyTorch's restricted reader, which by a name alone takes a file for safetensors."""
    with file.open("rb") as opened:
        return torch.load(opened, "cpu", weights_only=True)


def listed(names: Sequence[str]) -> str:
    """Return the first few names and the number of the others: 'a', 'b', 'c' and 4 more."""
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _refuse_what_is_no_checkpoint(file: Path) -> None:
    """Refuse folders, empty files and those that stand for another, by the first bytes."""
    if file.is_dir():
        inside = sorted(path.name for path in file.iterdir() if path.suffix)
        holds = f", which holds {listed(inside)}" if inside else ""
        raise UserError(f"{file.name}: expected a file of weights, got a folder{holds}; name one")
    if not file.is_file():
        what = "what is no file" if os.path.lexists(file) else f"no such file{_beside(file)}"
        raise UserError(f"expected weights at {file}, found {what}")
    if file.name.endswith(".index.json"):
        raise UserError(
            f"{file.name}: expected a file of weights, got an index of several; save the model's "
            "state_dict() as one safetensors file"
        )
    if what := stands_for(file):
        raise UserError(f"{file.name}: expected weights, got {what}")
    with file.open("rb") as opened:
        start = opened.read(8)
    for sign, what in OTHERS.items():
        if start.startswith(sign):
            raise UserError(f"{file.name}: expected weights, got {what}; name the file of weights")
    if start.startswith(b"PK") and zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                inside = archive.namelist()
        except zipfile.BadZipFile as error:
            raise UserError(
                f"{file.name}: expected a PyTorch checkpoint, got a damaged one "
                f"({first_line(error)}); copy it again"
            ) from None
        _refuse_other_archives(file.name, inside)


def _refuse_other_archives(origin: str, inside: Sequence[str]) -> None:
    """Refuse an archive of these files unless PyTorch's reader of tensors is to open it."""
    if any(name.endswith("/constants.pkl") for name in inside):
        raise UserError(
            f"{origin}: expected tensors only, got a TorchScript program, which is not "
            "run; save its state_dict() as safetensors"
        )
    if not any(name.endswith("data.pkl") for name in inside):
        what = f"an archive of {listed(inside)}" if inside else "an empty archive"
        raise UserError(
            f"{origin}: expected a PyTorch checkpoint, got {what}; unpack it and name the file of "
            "weights in it"
        )


def _beside(file: Path) -> str:
    """Ask whether a file of a name near this one was meant, if its folder holds one."""
    folder = file.parent
    return nearest(file.name, [path.name for path in folder.iterdir()]) if folder.is_dir() else ""


def _begins_as_pytorch(file: Path) -> bool:
    """Say whether a file has the first bytes that `torch.save` writes: of a zip, or a pickle."""
    with file.open("rb") as opened:
        return opened.read(2) in (b"PK", b"\x80\x02")


def _begins_as_safetensors(file: Path) -> bool:
    """Say whether a file under another suffix has the header of safetensors: a length, then {."""
    with file.open("rb") as opened:
        start = opened.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < file.stat().st_size


def _checkpoint(found: object, origin: str, entry: str | None) -> Checkpoint:
    """Find the state dict in a checkpoint, from under whatever keys the script put it."""
    notes = list[str]()
    for _ in range(DEEPEST):
        if not (isinstance(found, Mapping) and (sets := _sets(found, entry))):
            break
        key = entry if entry in sets else _first(sets)
        if len(sets) > 1:
            notes.append(_choice(key, [other for other in sets if other != key], entry))
        entry = None if key == entry else entry
        found = sets[key]
    if not isinstance(found, Mapping):
        raise UserError(f"{origin}: expected a state dict, got a {type(found).__name__}")
    if not found:
        raise UserError(f"{origin}: expected a state dict, got an empty one")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{origin}: expected a state dict, name by name a tensor, "
                f"got {name!r:.60}: {type(value).__name__}"
            )
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            raise UserError(
                f"{origin}: expected dense tensors, got '{name}', which is sparse, quantised or "
                "without values; save it in float32"
            )
    state = {_unwrapped(name): value for name, value in found.items()}
    if state.keys() != found.keys():
        words = sorted({w.rstrip(".") for w in WRAPPED for name in found if w in name})
        notes.append(f"names are read without {' and '.join(words)}")
    return Checkpoint(state, tuple(notes), entry)


def _sets(found: Mapping[str, object], entry: str | None) -> dict[str, Mapping[str, object]]:
    """Return the sets of weights in a checkpoint, the one to take by default first."""
    known = [*AVERAGES, *PLAIN, *([entry] if entry else [])]
    return {k: v for k in known if isinstance(v := found.get(k), Mapping) and _has_tensors(v)}


def _first(sets: Mapping[str, Mapping[str, object]]) -> str:
    """Choose a set: mmengine keeps the raw weights, and a count, where others keep the average."""
    swapped = "steps" in sets.get("ema_state_dict", ()) and "state_dict" in sets
    return "state_dict" if swapped else next(iter(sets))


def _choice(key: str, others: Sequence[str], entry: str | None) -> str:
    partner = {"state_dict": "ema_state_dict", "teacher": "student"}.get(key)
    average = key in AVERAGES or partner in others
    what = f"{key}, as asked" if key == entry else f"{key}, the average" if average else key
    ways = " or ".join(f"`entry: {other}`" for other in others)
    return f"of {' and '.join(sorted([key, *others]))} it is {what}, that is read; or say {ways}"


def _has_tensors(found: Mapping[str, object], depth: int = DEEPEST) -> bool:
    """Say whether a tensor is in it, or in a mapping in it, which an odd file may hold itself."""
    return any(
        isinstance(value, Tensor)
        or (depth > 0 and isinstance(value, Mapping) and _has_tensors(value, depth - 1))
        for value in found.values()
    )


def _unwrapped(name: str) -> str:
    for word in WRAPPED:
        name = name.replace(word, "")
    return name
