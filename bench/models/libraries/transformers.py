"""Hugging Face transformers' vision models, from the hub or from a folder that it wrote.

DINOv2, ViT, and the image towers of CLIP and SigLIP. Features are the library's pooled output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.models.libraries import Library, Place, hub
from bench.records.files import stands_for
from bench.records.nouns import Json, UserError, canonical, digest, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.data.images import Preprocess
    from bench.models.vision import Architecture, VisionModel

KINDS = {
    "dinov2": "Dinov2Model",
    "vit": "ViTModel",
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
}
"""The library's classes, by the `model_type` of a config.json."""

CONFIG, PREPARES = "config.json", "preprocessor_config.json"
"""What says how a model is made, and how its images are."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, the one to take first."""

SAID = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "torch_dtype")
"""Settings that do not change what a backbone computes."""

BESIDE = ("mask_token", "logit_scale", "logit_bias", "pooler", "text_model", "text_projection",
          "visual_projection")  # fmt: skip
"""Parts of names that pretraining leaves beside an image tower."""


def folder(name: str) -> Path | None:
    """Return the folder of a model that a name is the path of; None for a name on the hub."""
    path = Path(name).expanduser()
    return path.resolve() if path.is_dir() else None


def beside(name: str) -> tuple[Path, str] | None:
    """Find the weights in a folder, and name what is said there of the model by a digest.

    Raises:
        UserError: the folder holds no weights in one file.

    """
    found = folder(name)
    if found is None and (name.count("/") > 1 or name.startswith((".", "~", "/"))):
        raise UserError(f"transformers {name}: expected a folder, found none")
    if found is None:
        return None
    weights = [found / file for file in WEIGHTS if (found / file).is_file()]
    if not weights:
        raise UserError(
            f"{found.name}: expected {WEIGHTS[0]} beside {CONFIG}, found none; save the model "
            "with save_pretrained, in one file"
        )
    return weights[0], digest(*(_text(name, file, None) or "" for file in (CONFIG, PREPARES)))[:16]


def describe(architecture: Architecture, revision: str | None) -> Architecture:
    """Write what the model's own files say into its architecture, that these are not needed again.

    Raises:
        UserError: there are no such files, or they are of a model that is not supported.

    """
    if architecture.config is not None:
        return architecture
    name = architecture.name
    said, prepares = _text(name, CONFIG, revision), _text(name, PREPARES, revision)
    if said is None:
        raise UserError(f"transformers {name}: expected a {CONFIG}, found none")
    config = _read(name, CONFIG, said)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise UserError(f"transformers {name}: expected a model_type of {known}, got {kind!r}")
    vision = config.get("vision_config", {}) if kind in ("clip", "siglip") else config
    classes = config.get("architectures") or [KINDS[kind]]
    told = {
        "kind": kind,
        "vision": {k: v for k, v in vision.items() if k not in SAID and not k.startswith("text_")},
        # A ViT that was saved with a head has no pooler, and one without has.
        "pooler": classes[0] == "ViTModel" if kind == "vit" else None,
        "prepares": None if prepares is None else _read(name, PREPARES, prepares),
    }
    return dataclasses.replace(architecture, config=canonical(told))


def _text(name: str, file: str, revision: str | None) -> str | None:
    """Return the text of a model's file, from its folder or from the hub; None if it has none.

    Raises:
        UserError: the hub does not answer, or does not know the model.

    """
    if (found := folder(name)) is not None:
        return _decoded(name, found / file) if (found / file).is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    try:
        cached = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(cached, str):
            return _decoded(name, Path(cached))
        if not hub.answers():
            raise UserError(
                f"transformers {name}: expected a folder of that name, or a model on the hub, "
                "which does not answer and of which there is no copy here; give a folder"
            )
        got = hf_hub_download(name, file, revision=revision, etag_timeout=hub.PATIENCE)
    except UserError:  # said already, and a ValueError
        raise
    except EntryNotFoundError:
        return None
    except hub.failures() as error:
        raise UserError(
            f"transformers {name}: expected a folder, or a model on the hub, got neither "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None
    return _decoded(name, Path(got))


def _decoded(name: str, file: Path) -> str:
    """Read a model's file as text; refuse what was fetched in its place."""
    with contextlib.suppress(UnicodeDecodeError):
        text = file.read_text(encoding="utf-8")
        if text.lstrip().startswith(("{", "[")):
            return text
    got = stands_for(file) or "what is no text; fetch it again"
    raise UserError(f"transformers {name}: {file.name}: expected settings in JSON, got {got}")


def _read(name: str, file: str, text: str) -> dict[str, Json]:
    try:
        found = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"transformers {name}: {file}: expected settings in JSON, got a damaged file "
            f"({first_line(error)}); copy it again"
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"transformers {name}: {file}: expected a mapping, got {text[:40]!r}")
    return found


def _no_number(text: str) -> Json:
    raise ValueError(f"{text} is no number")


def make(architecture: Architecture) -> VisionModel:
    """Build a model with the weights that the library draws.

    Raises:
        UserError: the settings beside the weights are such that no model can be made of them.

    """
    from bench.models.backbones import TransformersViT, refuse_rest
    from bench.models.vision import VisionModel

    library = _library()
    architecture = describe(architecture, None)
    told, who = _told(architecture), f"transformers {architecture.name}"
    prepares = told["prepares"] or {}
    with _refusing(who, told["kind"]):
        native = int(_config(library, told).image_size)
    preprocess = _preprocess(architecture.name, prepares, native, architecture.image_size)
    side = preprocess.size[0]
    with _refusing(who, told["kind"]):
        trunk = TransformersViT(_net(library, told, side))
        if not list(trunk.blocks.children()):
            raise ValueError("it has no block")
    refuse_rest(who, trunk, (side, side), (native, native))
    mean, std = (_three(who, prepares, key) for key in ("image_mean", "image_std"))
    return VisionModel(architecture, trunk, preprocess, mean, std)


@contextlib.contextmanager
def _refusing(who: str, kind: str) -> Iterator[None]:
    """Say that the library cannot make a model of the settings in its config.json."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except UserError:  # said already, and a ValueError
        raise
    # What the library raises depends on where it comes upon a value that makes no sense.
    except (StrictDataclassError, TypeError, ValueError, LookupError, ArithmeticError,
            AttributeError, AssertionError, RuntimeError, MemoryError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{who}: {CONFIG}: expected the settings of a {KINDS[kind]}, got some that no model "
            f"can be made of ({reason}); save it again with save_pretrained"
        ) from None


def _three(who: str, said: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    """Read a number for each colour, by default a half; deviations are above 0."""
    given = said.get(key) or (0.5, 0.5, 0.5)
    numbers = isinstance(given, list | tuple) and all(isinstance(v, int | float) for v in given)
    if not numbers or len(given) != 3 or (key == "image_std" and min(given) <= 0):
        kind = "three numbers above 0" if key == "image_std" else "three numbers"
        raise UserError(f"{who}: {PREPARES}: {key}: expected {kind}, got {given!r:.60}")
    red, green, blue = given
    return red, green, blue


def published(architecture: Architecture, revision: str | None) -> VisionModel:
    """Build a model with the weights that lie on the hub, at a commit if one is named."""
    architecture = describe(architecture, revision)
    model = make(architecture)
    model.trunk.net.load_state_dict(_loaded(model, architecture.name, None, revision)[0])  # type: ignore[union-attr]
    return model


def convert(model: VisionModel, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Bring a state dict to a model's names and grid as the library does when it loads such files.

    Raises:
        LookupError: a tensor of the model is not among them.

    """
    import torch

    made, spare = _loaded(model, None, dict(state), None)
    others = [name for name in spare if not set(BESIDE) & {*name.split(".")}]
    # What the library renamed before it found no place for it is in no file under that name.
    return made | {name: state.get(name, torch.empty(0)) for name in others}


def _loaded(
    model: VisionModel, name: str | None, state: dict[str, Tensor] | None, revision: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Have the library load weights; return them on the model's grid, and the names left over."""
    library, told = _library(), _told(model.architecture)
    config, patch = _config(library, told), int(_config(library, told).patch_size)
    tables = [v for n, v in (state or {}).items() if _is_table(n)]
    if tables:
        config.image_size = patch * math.isqrt(max(tables[-1].shape[:-1]))
    how = _how(told)
    kind = getattr(library, KINDS[told["kind"]])
    with _quietly(library):
        net, info = kind.from_pretrained(
            name, config=config, state_dict=state, revision=revision or "main",
            output_loading_info=True, **how,
        )  # fmt: skip
    if info["missing_keys"]:
        raise LookupError(f"no {min(info['missing_keys'])}")
    made = dict(net.state_dict())
    key = next(n for n in made if _is_table(n))
    wanted = model.trunk.state_dict()[f"net.{key}"]
    if made[key].shape != wanted.shape:
        made[key] = _resampled(net, model).reshape(wanted.shape)
    return made, sorted(info["unexpected_keys"])


def _is_table(name: str) -> bool:
    """Say whether this is the name of an image tower's table of positions."""
    return "text_model" not in name and name.endswith(
        ("embeddings.position_embeddings", "embeddings.position_embedding.weight")
    )


def _resampled(net: Any, model: VisionModel) -> torch.Tensor:
    """Resample a table of positions as the library does for images of another size."""
    import torch

    height, width = model.preprocess.size
    tokens = model.trunk.grid[0] * model.trunk.grid[1] + model.prefix
    like = torch.empty(1, tokens, model.width)  # only its shape is looked at
    with torch.no_grad():
        found: Tensor = net.embeddings.interpolate_pos_encoding(like, height, width)
    return found


def _preprocess(name: str, said: Mapping[str, Any], native: int, asked: int | None) -> Preprocess:
    """Read how images are prepared; `asked` is another side than the model's own."""
    from bench.data.images import Preprocess

    resample, modes = said.get("resample", 3), {2: "bilinear", 3: "bicubic"}
    if resample not in modes:
        raise UserError(
            f"transformers {name}: {PREPARES}: resample: expected 2 (bilinear) or 3 (bicubic), "
            f"got {resample!r}"
        )
    way: Literal["bilinear", "bicubic"] = "bilinear" if resample == 2 else "bicubic"
    resized, cut = _side(name, said, "size"), _side(name, said, "crop_size")
    if not said.get("do_center_crop") or cut is None:
        shortest = isinstance(said.get("size"), Mapping) and "shortest_edge" in said["size"]
        mode: Literal["center", "squash"] = "center" if shortest else "squash"
        side = asked or resized or native
        return Preprocess((side, side), interpolation=way, mode=mode)
    resized = resized or cut
    share = cut / resized if math.floor(cut / (cut / resized)) == resized else cut / (resized + 0.5)
    side = asked or cut
    return Preprocess((side, side), min(share, 1.0), way, "center")


def _side(name: str, given: Mapping[str, Any], key: str) -> int | None:
    """Read a size of images: a number, equal height and width, or a shortest edge; None of none."""
    said = given.get(key)
    if isinstance(said, Mapping):
        edge, high, wide = (said.get(part) for part in ("shortest_edge", "height", "width"))
        said = edge or (high if high == wide or None in (high, wide) else f"{high} x {wide}")
    if said is None or (isinstance(said, int) and said > 0):
        return said
    raise UserError(
        f"transformers {name}: {PREPARES}: {key}: expected the side of a square in pixels, "
        f"got {said!r:.60}"
    )


def _told(architecture: Architecture) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(architecture.config or "{}")
    return found


def _config(library: Any, told: Mapping[str, Any]) -> Any:
    vision = dict(told["vision"])
    made = getattr(library, KINDS[told["kind"]]).config_class(**vision)
    if told["kind"] == "dinov2":
        made.use_mask_token = False  # of pretraining
    return made


def _how(told: Mapping[str, Any]) -> dict[str, Any]:
    return {} if told["pooler"] is None else {"add_pooling_layer": told["pooler"]}


def _net(library: Any, told: Mapping[str, Any], side: int) -> Any:
    config = _config(library, told)
    config.image_size = side
    with _quietly(library):
        return getattr(library, KINDS[told["kind"]])(config, **_how(told))


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError(
            "library transformers: expected the package of that name, found none; install it, "
            "or this program with its extra [hf]"
        ) from None
    return transformers


@contextlib.contextmanager
def _quietly(library: Any) -> Iterator[None]:
    """Keep the library from logging and from drawing bars while it loads."""
    logs, before = library.utils.logging, logging.root.manager.disable
    bars = logs.is_progress_bar_enabled()
    logs.disable_progress_bar()
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            logs.enable_progress_bar()


def place(architecture: Architecture) -> Place | None:
    """Find where on the hub these weights are."""
    return None if folder(architecture.name) else Place(architecture.name, WEIGHTS)


def in_python(architecture: Architecture) -> str:
    """Return the line of Python that makes this model."""
    told = _told(architecture)
    config = dict(told["vision"])
    if architecture.image_size is not None:
        config["image_size"] = architecture.image_size
    if told["kind"] == "dinov2":
        config["use_mask_token"] = False
    kind, more = KINDS[told["kind"]], "".join(f", {k}={v}" for k, v in _how(told).items())
    given = ", ".join(f"{key}={value!r}" for key, value in sorted(config.items()))
    return f"transformers.{kind}(transformers.{kind}.config_class({given}){more})"


def assumed(architecture: Architecture) -> str:
    """Say how images are prepared where no file says it."""
    if _told(architecture).get("prepares") is not None:
        return ""
    return (
        f"no {PREPARES}: images are brought to the model's size, whatever their shape, with mean "
        "and std 0.5"
    )


TRANSFORMERS = Library(
    summary="DINOv2, ViT, CLIP and SigLIP of transformers: a folder, or a name on the hub",
    make=make,
    describe=describe,
    beside=beside,
    published=published,
    place=place,
    in_python=in_python,
    layouts=({"": "trunk.net."},),
    convert=convert,
    assumed=assumed,
)
