"""Read weights from files, lay them into a model, and name a model by them."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.models.libraries import find
from bench.models.vision import VisionModel
from bench.records.nouns import UserError, first_line


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
    own, library = model.state_dict().keys(), find(model.architecture.library)
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
