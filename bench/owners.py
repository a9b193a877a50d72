"""Load an owner's model: from the package, a library's hub, a file, or drawn at random."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.models import Architecture, VisionModel, build, load_state
from bench.types import UserError, digest

if TYPE_CHECKING:
    from bench.suite import OwnerSettings

WRAPPERS = ("state_dict", "model", "teacher", "model_state_dict")
"""Keys under which training scripts put the weights of a checkpoint."""


def load_owner(owner: OwnerSettings, file: Path | None) -> VisionModel:
    """Return the owner's model on the CPU, in eval mode; `file` holds weights given by path.

    A timm model keeps its own classifier where it has one.

    Raises:
        UserError: the file cannot be read or is of another architecture, or the hub is unreachable.

    """
    architecture = _architecture(owner)
    if owner.library == "embedded" and owner.weights == "hub":
        file = Path(__file__).parent / "weights" / f"{owner.name}.safetensors"
    if file is not None:
        model = build(architecture)
        state = {f"trunk.vit.{k}": v for k, v in _unwrapped(read_weights(file)).items()}
        if not any(k in model.state_dict() for k in state):  # a state of ours, or another trunk
            state = _renamed(_unwrapped(read_weights(file)), model)
        return load_state(model, state, file.name)
    if owner.weights == "random":
        return randomised(build(architecture), owner.seed)
    return _from_hub(architecture, owner.pretrained or True)


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """Read a safetensors file, or a PyTorch checkpoint as plain tensors: nothing is executed.

    Raises:
        UserError: the file is missing, truncated, or holds anything but tensors and containers.

    """
    if not file.is_file():
        raise UserError(f"expected weights at {file}, found no such file")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(
            f"{file.name}: expected a safetensors file, got a damaged one ({error}); copy it again"
        ) from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{file.name}: expected tensors only, got a pickle that would run code; "
            "save the model's state_dict() as safetensors and give that"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file.name}: expected a PyTorch checkpoint ({reason[:200]})") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{file.name}: expected a state dict, got a {type(found).__name__}")
    return found


def randomised(model: VisionModel, seed: int) -> VisionModel:
    """Draw every weight anew from `seed`, in the spread the library gave it; return `model`."""
    rng = torch.Generator().manual_seed(int(digest("random weights", seed), 16) >> 1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
                for name, weight in module.named_parameters(recurse=False):
                    _draw(name, weight, rng)
        for name, weight in model.named_parameters():
            if name.endswith(("pos_embed", "cls_token", "class_embedding", "positional_embedding")):
                weight.normal_(std=0.02, generator=rng)
    return model


def _draw(name: str, weight: Tensor, rng: torch.Generator) -> None:
    if weight.ndim < 2:
        weight.zero_()
    else:
        weight.normal_(std=weight[0].numel() ** -0.5, generator=rng)


def _architecture(owner: OwnerSettings) -> Architecture:
    keeps_head = owner.library == "timm" and _has_classifier(owner)
    return Architecture(owner.library, owner.name, owner.image_size, "own" if keeps_head else None)


def _has_classifier(owner: OwnerSettings) -> bool:
    import timm

    if not timm.is_model(owner.name):
        import difflib

        near = difflib.get_close_matches(owner.name, timm.list_models(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"timm has no model '{owner.name}'{hint}")
    config = timm.get_pretrained_cfg(owner.name)
    return config is None or config.num_classes > 0


def _unwrapped(found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for key in WRAPPERS:
        inner = found.get(key)
        if isinstance(inner, Mapping):
            return inner
    return found


def _renamed(state: Mapping[str, Tensor], model: VisionModel) -> dict[str, Tensor]:
    """Match a library's plain names to ours, whichever trunk holds them."""
    own = model.state_dict()
    for prefix in ("", "trunk.", "trunk.visual.", "trunk.net."):
        named = {f"{prefix}{k.removeprefix('visual.')}": v for k, v in state.items()}
        if named.keys() & own.keys():
            # an open_clip checkpoint holds the text tower too
            return {k: v for k, v in named.items() if k in own or prefix != "trunk.visual."}
    return {f"trunk.{k}": v for k, v in state.items()}


def _from_hub(architecture: Architecture, pretrained: str | bool) -> VisionModel:
    try:
        return build(architecture, pretrained)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises whatever its transport does
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{architecture.library} {architecture.name}: expected weights from the model hub, "
            f"could not get them ({type(error).__name__}: {reason}); give a file as `weights:`"
        ) from None
