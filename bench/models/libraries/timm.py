"""timm's models: vision transformers in one vocabulary, any other by its features alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bench.models.libraries import Library, Place
from bench.records.nouns import UserError, first_line
from bench.records.settings import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models.vision import Architecture, VisionModel

WIDTHS = 64
"""What timm calls the classes of a CLIP tower is the width of its projection: a multiple of this,
which no set of labels is that timm has weights for."""


def make(architecture: Architecture) -> VisionModel:
    """Build a model with the weights that timm draws."""
    return _model(architecture)


def published(architecture: Architecture, revision: str | None) -> VisionModel:
    """Build a model with the weights that timm publishes, at a commit if one is named."""
    pinned: dict[str, Any] = {}
    if revision:
        hub = _config(architecture).hf_hub_id
        pinned["pretrained_cfg_overlay"] = {"hf_hub_id": f"{hub}@{revision}"}  # as timm writes it
    return _model(architecture, pretrained=True, **pinned)


def _model(architecture: Architecture, **extra: Any) -> VisionModel:
    import timm
    from timm.models.pit import PoolingVisionTransformer
    from timm.models.vision_transformer import VisionTransformer

    from bench.data.images import Preprocess
    from bench.models.backbones import OtherTrunk, PitTrunk, TimmViT, refuse_rest
    from bench.models.vision import VisionModel

    size = architecture.image_size
    if size is not None:
        extra["img_size"] = size
    if architecture.head != "own":
        extra["num_classes"] = 0
    elif architecture.classes is not None:
        extra["num_classes"] = architecture.classes
    try:
        net = timm.create_model(architecture.name, **extra)
    # A convolutional model takes no img_size; others say in many ways that they cannot be so large.
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if size is None and not isinstance(error, TypeError):
            raise
        why = first_line(error) if str(error) else f"cannot be made for images of {size} pixels"
        raise UserError(f"timm model {architecture.name}: {why}") from error
    kinds = {VisionTransformer: TimmViT, PoolingVisionTransformer: PitTrunk}
    kind = next((kinds[base] for base in kinds if isinstance(net, base)), OtherTrunk)
    trunk = kind(net)
    config = timm.data.resolve_model_data_config(net)  # type: ignore[attr-defined, no-untyped-call]
    own = (int(config["input_size"][-2]), int(config["input_size"][-1]))
    side = own if size is None else (size, size)
    refuse_rest(f"timm model {architecture.name}", trunk, side, own)
    border = config["crop_mode"] == "border"
    red, green, blue = (round(255 * value) for value in config["mean"])
    preprocess = Preprocess(
        side,
        float(config["crop_pct"]),
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        "border" if border else "squash" if config["crop_mode"] == "squash" else "center",
        (red, green, blue) if border else (0, 0, 0),
    )
    return VisionModel(architecture, trunk, preprocess, config["mean"], config["std"])


def check(architecture: Architecture) -> None:
    """Refuse what timm does not know: a model, or weights of one."""
    import timm

    name = architecture.name
    if not timm.is_model(name):
        raise UserError(f"timm has no model '{name}'{nearest(name, timm.list_models())}")
    try:
        _config(architecture)
    except RuntimeError:  # what timm says of an unknown tag
        tagged = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
        raise UserError(f"timm has no weights '{name}'{nearest(name, tagged)}") from None


def classifies(architecture: Architecture) -> bool:
    """Say whether these weights sort images into classes."""
    config = _config(architecture)
    return config is None or (config.num_classes > 0 and not _projects(config))


def convert(model: VisionModel, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Bring a state dict to a model's names and grid as timm does when it loads such files."""
    inner = next(model.trunk.children())
    filtered = getattr(sys.modules[type(inner).__module__], "checkpoint_filter_fn", None)
    return dict(filtered(dict(state), inner)) if filtered else state


def assumed(architecture: Architecture) -> str:
    """Say whose preprocessing was taken, where tags of a model differ and none was given."""
    import timm

    name = architecture.name
    tagged = [] if "." in name else timm.list_models(f"{name}.*", pretrained=True)
    found = [timm.get_pretrained_cfg(tag) for tag in tagged]
    keys = [k for k in CHOSEN if len({str(getattr(config, k)) for config in found}) > 1]
    if not keys:
        return ""
    own = _config(architecture).tag
    other = next(tag for tag in tagged if not tag.endswith(f".{own}"))
    return (
        f"no tag: {', '.join(keys)} of {name}.{own} assumed, its published weights differ; name "
        f"them as in {other}"
    )


CHOSEN = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size")
"""What timm lets a tag choose: how images are prepared."""


def place(architecture: Architecture) -> Place | None:
    """Find where timm keeps these weights."""
    config = _config(architecture)
    hub, file = getattr(config, "hf_hub_id", None), getattr(config, "hf_hub_filename", None)
    files = (file,) if file else ("model.safetensors", "pytorch_model.bin")
    return Place(hub, files) if hub else None


def in_python(architecture: Architecture) -> str:
    """Return the line of Python that makes this model."""
    size = f", img_size={architecture.image_size}" if architecture.image_size else ""
    own = f", num_classes={architecture.classes}" if architecture.classes else ""
    bare = own if architecture.head == "own" else ", num_classes=0"
    return f"timm.create_model('{architecture.name}', pretrained=False{size}{bare})"


def _projects(config: Any) -> bool:
    """Say whether what timm calls the classes of weights are the channels of an embedding."""
    return bool(config.num_classes > 0 and config.num_classes % WIDTHS == 0)


def _config(architecture: Architecture) -> Any:
    """Return what timm knows of the weights of a model; None if it has none."""
    import timm

    return timm.get_pretrained_cfg(architecture.name)


TIMM = Library(
    summary="any timm model; see timm.list_models()",
    make=make,
    check=check,
    classifies=classifies,
    published=published,
    place=place,
    in_python=in_python,
    layouts=({"": "trunk.vit."}, {"": "trunk.net."}, {"visual.trunk.": "trunk.vit."}),
    version=2,  # integers of resizing and cutting are timm's own
    convert=convert,
    assumed=assumed,
)
