"""Read weights from files and write them, lay them into a model, and name a model by them."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bench.models.building import build
from bench.models.libraries import LIBRARIES
from bench.models.vision import Architecture, VisionModel
from bench.records.files import write_atomically
from bench.records.nouns import UserError, first_line


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A model from a file, the parts of the file that are no backbone, and its weights' name."""

    model: VisionModel
    ignored: Mapping[str, int]  # tensors left out, by the first part of their names
    digest: str


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
    """Name a backbone by its weights: 16 hex digits, whatever head sits on it."""
    found = hashlib.sha256()
    for name, value in sorted(model.trunk.state_dict().items()):
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


HEADS = ("head", "heads", "head_dist", "classifier", "fc", "linear", "decode_head", "segmentation")
"""What libraries call a head: the only tensors beside the backbone's that a suspect may hold."""

WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict")
"""Keys under which training scripts put the weights of a checkpoint."""


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """Read a safetensors file, or a PyTorch checkpoint as plain tensors: nothing is executed.

    Raises:
        UserError: the file is missing, truncated, or holds anything but tensors and containers.

    """
    if not file.is_file():
        raise UserError(f"expected weights at {file}, found no such file")
    safe = file.suffix == ".safetensors"
    try:
        with warnings.catch_warnings(action="ignore"):  # what cannot be read is an error below
            found = load_file(file) if safe else torch.load(file, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{file.name}: expected a PyTorch checkpoint of tensors only, got a pickle of other "
            "things, which is not opened; save the model's state_dict() as safetensors"
        ) from None
    # A damaged pickle sends the restricted reader wherever its bytes point.
    except (SafetensorError, OSError, EOFError, RuntimeError, LookupError, TypeError,
            ValueError, AttributeError, AssertionError) as error:  # fmt: skip
        kind = "safetensors file" if safe else "PyTorch checkpoint"
        raise UserError(
            f"{file.name}: expected a {kind}, got a damaged one ({first_line(error)}); "
            "copy it again"
        ) from None
    return _state(found, file.name)


def _state(found: object, origin: str) -> Mapping[str, Tensor]:
    """Return the state dict in a checkpoint, from under whatever key the script put it."""
    if isinstance(found, Mapping):
        found = next((found[k] for k in WRAPPERS if isinstance(found.get(k), Mapping)), found)
    if not isinstance(found, Mapping):
        raise UserError(f"{origin}: expected a state dict, got a {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{origin}: expected a state dict, name by name a tensor, "
                f"got {name!r:.60}: {type(value).__name__}"
            )
    return found


def renamed(state: Mapping[str, Tensor], model: VisionModel) -> Mapping[str, Tensor]:
    """Match a library's names to ours, where a file has not ours: the layout that most fit."""
    own, library = model.state_dict().keys(), LIBRARIES.get(model.architecture.library)
    bare = _laid_out(state, {library.prefix: ""})
    laid_out = [_laid_out(s, layout) for s in (state, bare) for layout in library.layouts]
    found = max([state, *laid_out], key=lambda names: len(names.keys() & own))
    surplus = library.surplus(model.architecture)
    return {name: value for name, value in found.items() if not name.startswith(surplus)}


def _laid_out(state: Mapping[str, Tensor], layout: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"{new}{name.removeprefix(old)}": value
        for name, value in state.items()
        for old, new in layout.items()
        if name.startswith(old)
    }


def release(model: VisionModel, path: Path) -> None:
    """Write a model's weights in the layout of its library; `mini`'s in the bench's own."""
    own, prefix = model.state_dict(), LIBRARIES.get(model.architecture.library).prefix
    state = {
        f"{prefix}{name}": own[ours].detach().cpu().contiguous().clone()
        for name, ours in _library_names(model).items()
    }
    write_atomically(path, save(state, {"format": "pt"}))


def load_suspect(file: Path, architecture: Architecture) -> Loaded:
    """Load a suspect's backbone from a file that may hold any head, under any prefix.

    A classifier comes along where the file's is the library's own, for the owner's classes.

    Raises:
        UserError: the file cannot be read, or holds another architecture.

    """
    state = read_weights(file)
    model = build(architecture)
    prefix = _prefix(state, _library_names(headless(model)))
    given = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    if not _fits(model, given):
        model = headless(model)
    names, own = _library_names(model), model.state_dict()
    for name, ours in names.items():
        shape = tuple(given[name].shape) if name in given else "none"
        if shape != tuple(own[ours].shape):
            expected = f"{name} of shape {tuple(own[ours].shape)}"
            raise _another_architecture(file, architecture, expected, str(shape))
    spare = [name for name in given if name not in names]
    for name in spare:
        if _first(name) not in HEADS:
            raise _another_architecture(file, architecture, "nothing beside it but a head", name)
    model.load_state_dict({ours: given[name] for name, ours in names.items()})
    outside = [name for name in state if not name.startswith(prefix)]
    ignored = Counter(map(_first, [*outside, *spare]))
    return Loaded(model, ignored, weights_digest(headless(model)))


def _library_names(model: VisionModel) -> dict[str, str]:
    """Map the library's names of a model's tensors to ours; without its `prefix`."""

    def laid_out(layout: Mapping[str, str]) -> dict[str, str]:
        return {
            f"{theirs}{name.removeprefix(ours)}": name
            for name in model.state_dict()
            for theirs, ours in layout.items()
            if name.startswith(ours)
        }

    return max(map(laid_out, LIBRARIES.get(model.architecture.library).layouts), key=len)


def _prefix(state: Mapping[str, Tensor], names: Collection[str]) -> str:
    """Find what stands before the backbone's names in a file, going by most names that fit."""
    first = next(iter(names))
    found = {name.removesuffix(first) for name in state if name.endswith(first)}
    return max(sorted(found), key=lambda p: sum(p + name in state for name in names), default="")


def _first(name: str) -> str:
    return name.partition(".")[0]


def _another_architecture(
    file: Path, architecture: Architecture, expected: str, got: str
) -> UserError:
    return UserError(
        f"{file.name}: expected a {architecture.name} ({expected}), got another architecture's "
        f"weights ({got}); name the suspect's with --model"
    )


def _fits(model: VisionModel, given: Mapping[str, Tensor]) -> bool:
    own = model.state_dict()
    return all(
        name in given and given[name].shape == own[ours].shape
        for name, ours in _library_names(model).items()
    )


def headless(model: VisionModel) -> VisionModel:
    """Return a model without its library's classifier: what names and digests are made of."""
    if model.architecture.head is None:
        return model
    bare = build(dataclasses.replace(model.architecture, head=None)).to(model.mean.device)
    kept = bare.state_dict().keys()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k in kept})
    return bare
