"""open_clip's image towers: its own vision transformers, and timm's within it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from bench.models.libraries import Library, Place
from bench.records.nouns import UserError
from bench.records.settings import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.backbones import Backbone
    from bench.models.vision import Architecture, VisionModel


def make(architecture: Architecture) -> VisionModel:
    """Build an image tower with the weights that open_clip draws."""
    return _model(architecture, None)


def published(architecture: Architecture, revision: str | None) -> VisionModel:
    """Build an image tower with the weights its tag names, at a commit of the hub if one is."""
    import open_clip

    weights, found = architecture.tag, place(architecture)
    if revision and found is not None:
        # open_clip takes no revision, but a file that it fetched itself.
        file = _published(architecture)["hf_hub"].rpartition("/")[2] or None
        fetch = open_clip.pretrained.download_pretrained_from_hf
        weights = fetch(found.repository, file, revision)
    return _model(architecture, weights)


def _model(architecture: Architecture, weights: str | None) -> VisionModel:
    import open_clip
    import torch

    from bench.data.images import Preprocess
    from bench.models.backbones import refuse_rest
    from bench.models.vision import VisionModel

    known = _settings(architecture)
    model = open_clip.create_model(
        architecture.name,
        pretrained=weights,
        device=torch.get_default_device(),
        force_image_size=architecture.image_size,
        force_quick_gelu=bool(known.get("quick_gelu")),
    )
    side = model.visual.image_size
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    config = {**open_clip.get_model_preprocess_cfg(model), **known}
    modes: dict[Any, Literal["squash", "border"]] = {"squash": "squash", "longest": "border"}
    filled = config.get("fill_color") or 0
    red, green, blue = (filled,) * 3 if isinstance(filled, int) else filled
    preprocess = Preprocess(
        size,
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        mode=modes.get(config.get("resize_mode"), "center"),
        fill=(red, green, blue),
    )
    trunk = _trunk(model.visual, architecture.name)
    if architecture.image_size is not None:
        side = open_clip.get_model_config(architecture.name)["vision_cfg"].get("image_size", 224)
        own = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
        refuse_rest(f"open_clip model {architecture.name}", trunk, size, own)
    return VisionModel(architecture, trunk, preprocess, tuple(config["mean"]), tuple(config["std"]))


def _trunk(visual: Any, name: str) -> Backbone:
    import open_clip
    from timm.models.vision_transformer import VisionTransformer

    from bench.models.backbones import OpenClipViT, TimmViT

    inner = getattr(visual, "trunk", None)
    if isinstance(inner, VisionTransformer):
        return TimmViT(inner, visual.head)
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return OpenClipViT(visual)
    raise UserError(
        f"expected a vision transformer, got open_clip {name}, "
        f"whose image tower is a {type(visual).__name__}"
    )


def convert(model: VisionModel, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Resample a state dict's positions to a tower's grid, as open_clip does when it loads."""
    import open_clip

    tower = next(model.trunk.children())
    whole = {f"visual.{name}": value for name, value in state.items()}
    open_clip.model.resize_pos_embed(whole, SimpleNamespace(visual=tower))
    return {name.removeprefix("visual."): value for name, value in whole.items()}


def check(architecture: Architecture) -> None:
    """Refuse what open_clip does not know: a model, or weights of one."""
    import open_clip

    name, tag, known = architecture.name, architecture.tag, open_clip.list_models()
    if name not in known:
        raise UserError(f"open_clip has no model '{name}'{nearest(name, known)}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is not None and tag not in tags:
        raise UserError(f"open_clip has no weights '{tag}' of {name}{nearest(tag, tags)}")


def place(architecture: Architecture) -> Place | None:
    """Find where open_clip keeps the weights that a tag names."""
    hub, _, file = _published(architecture).get("hf_hub", "").rpartition("/")
    files = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    return Place(hub, files) if hub else None


def _published(architecture: Architecture) -> dict[str, Any]:
    """Return what open_clip knows of the weights that a tag names."""
    import open_clip

    tag = architecture.tag
    return open_clip.get_pretrained_cfg(architecture.name, tag) if tag else {}


CHOSEN = ("mean", "std", "interpolation", "resize_mode", "quick_gelu")
"""What open_clip lets a tag choose: how images are prepared, and the activation function."""


def _choices(name: str) -> dict[str, list[Any]]:
    """List what the published weights of a model choose, tag by tag."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    found = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    return {key: [one.get(key) for one in found] for key in CHOSEN if found}


def _settings(architecture: Architecture) -> dict[str, Any]:
    """Return what a tag chooses; without one, what all published weights of the model agree on."""
    if architecture.tag:
        return _published(architecture)
    return {
        key: values[0]
        for key, values in _choices(architecture.name).items()
        if values[0] is not None and all(value == values[0] for value in values)
    }


def assumed(architecture: Architecture) -> str:
    """Say what was taken for the tag of weights in a file, where none was given."""
    import open_clip

    name, choices = architecture.name, _choices(architecture.name)
    if architecture.tag or not choices:
        return ""
    tags = open_clip.list_pretrained_tags_by_model(name)
    split = [key for key, values in choices.items() if any(v != values[0] for v in values)]
    if not split:
        return f"no tag: images are prepared as for all published weights of {name}"
    return (
        f"no tag: open_clip's own {' and '.join(split)} is assumed for {name}, of which its "
        f"published weights differ; `pretrained`, such as {tags[0]}, says it"
    )


OPEN_CLIP = Library(
    summary="any open_clip image tower; see open_clip.list_models()",
    make=make,
    check=check,
    published=published,
    place=place,
    tag="openai",
    prefix="visual.",  # a checkpoint holds the text tower, too
    layouts=(
        {"": "trunk.visual."},
        {"trunk.": "trunk.vit.", "head.": "trunk.projection."},  # around a timm tower
        {"": "trunk.vit."},  # that tower alone
    ),
    version=2,  # integers of resizing and cutting are open_clip's own
    convert=convert,
    assumed=assumed,
)
