"""Build a model of any library from its architecture: the embedded one, timm, open_clip."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bench.data.images import Preprocess
from bench.models.backbones import OpenClipViT, OtherTrunk, TimmViT
from bench.models.heads import make_head
from bench.models.surgery import narrow
from bench.models.vision import Architecture, Part, VisionModel
from bench.records.nouns import Json, UserError, digest, first_line

MINI: dict[str, Json] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 6,
    "num_heads": 3,
    "mlp_ratio": 1.0,
    "num_classes": 0,
}
"""The embedded owner's shape: timm's VisionTransformer, 65 tokens, 16 MFLOP a forward pass."""

SHAPES: dict[str, dict[str, Json]] = {
    "mini": {},
    "mini-deep": {"depth": 8},
    "mini-wide": {"embed_dim": 64, "num_heads": 4},
}
"""The embedded architectures, by where they differ from `MINI`."""

DRAWS = frozenset(
    {"uniform_", "normal_", "kaiming_uniform_", "xavier_uniform_"}
    | {"erfinv_", "mul_", "add_", "clamp_"}
)
"""What the libraries make first weights with, in place."""


def build(
    architecture: Architecture, pretrained: bool = False, revision: str | None = None
) -> VisionModel:
    """Make a model of this architecture, untrained unless `pretrained` asks the model hub.

    From open_clip's hub come the weights that `architecture.tag` names. `revision` is a commit of
    the hub, by default the latest.

    Raises:
        UserError: the library does not know the name, or keeps no revisions of its weights.

    """
    makers = {"embedded": _embedded, "timm": _timm, "open_clip": _open_clip}
    # The libraries draw first weights on the global generator: it is put back where it was.
    with torch.random.fork_rng(devices=[]), _quietly():
        make, pruned = makers[architecture.library], architecture.pruned
        if pruned is None:
            return make(architecture, pretrained, revision).eval()
        own: Literal["own"] | None = "own" if architecture.head == "own" else None
        model = make(dataclasses.replace(architecture, head=own), pretrained, revision)
        for part, left in dataclasses.asdict(pruned).items():
            narrow(model, cast(Part, part), left)
        # A head of ours comes last: it is as wide as what is left.
        model.architecture = architecture
        if not isinstance(architecture.head, str | None):
            model.head = make_head(model.trunk, architecture.head, model.preprocess.size[0])
        return model.eval()


def blank(architecture: Architecture) -> VisionModel:
    """Make a model whose weights are about to be loaded: nothing is drawn, what is there is junk.

    Drawing is most of the time it takes to make a large model.
    """
    with _Undrawn():
        return build(architecture)


class _Undrawn(TorchFunctionMode):
    """Leave parameters as they are where their values would be drawn; buffers are computed."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        given = kwargs or {}
        changed = args[0] if args else given.get("tensor")
        if func.__name__ in DRAWS and isinstance(changed, nn.Parameter):
            return changed
        return func(*args, **given)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep libraries from logging: open_clip calls every model unweighted before we load it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _embedded(architecture: Architecture, pretrained: bool, revision: str | None) -> VisionModel:
    from timm.models.vision_transformer import VisionTransformer

    changes = SHAPES.get(architecture.name)
    if changes is None:
        known = ", ".join(SHAPES)
        raise UserError(f"expected an embedded model of {known}, got '{architecture.name}'")
    half = (0.5, 0.5, 0.5)
    trunk = TimmViT(VisionTransformer(**{**MINI, **changes}))
    return VisionModel(architecture, trunk, Preprocess((32, 32)), half, half)


def _timm(architecture: Architecture, pretrained: bool, revision: str | None) -> VisionModel:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    size = architecture.image_size
    extra: dict[str, Any] = {} if size is None else {"img_size": size}
    if architecture.head != "own":
        extra["num_classes"] = 0
    if pretrained and revision:
        hub = getattr(timm.get_pretrained_cfg(architecture.name), "hf_hub_id", None)
        extra["pretrained_cfg_overlay"] = {"hf_hub_id": _pinned(architecture, hub, revision)}
    try:
        net = timm.create_model(architecture.name, pretrained=pretrained, **extra)
    except TypeError as error:  # a convolutional model takes no img_size
        raise UserError(f"timm model {architecture.name}: {first_line(error)}") from error
    trunk = TimmViT(net) if isinstance(net, VisionTransformer) else OtherTrunk(net)
    config = timm.data.resolve_model_data_config(net)  # type: ignore[attr-defined, no-untyped-call]
    side = config["input_size"][-2:] if size is None else (size, size)
    preprocess = Preprocess(
        (int(side[0]), int(side[1])),
        float(config["crop_pct"]),
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        "squash" if config["crop_mode"] == "squash" else "center",
    )
    return VisionModel(architecture, trunk, preprocess, config["mean"], config["std"])


def _pinned(architecture: Architecture, hub: str | None, revision: str) -> str:
    """Name a place on the hub at one commit, as timm writes it."""
    if not hub:
        raise UserError(
            f"{architecture.library} {architecture.name}: revision: expected none, the library "
            "keeps these weights elsewhere than on the hub; leave it out, or give their `digest`"
        )
    return f"{hub}@{revision}"


def _open_clip(architecture: Architecture, pretrained: bool, revision: str | None) -> VisionModel:
    import open_clip
    from timm.models.vision_transformer import VisionTransformer

    tag, size = architecture.tag, architecture.image_size
    published = open_clip.get_pretrained_cfg(architecture.name, tag) if tag else {}
    weights = tag if pretrained else None
    if pretrained and revision:
        # open_clip takes no revision, but a file that it fetched itself.
        hub, _, file = published.get("hf_hub", "").rpartition("/")
        _pinned(architecture, hub, revision)
        weights = open_clip.pretrained.download_pretrained_from_hf(hub, file or None, revision)
    model = open_clip.create_model(
        architecture.name,
        pretrained=weights,
        device=torch.get_default_device(),
        force_image_size=size,
        force_quick_gelu=bool(published.get("quick_gelu")),
    )
    visual = model.visual
    inner = getattr(visual, "trunk", None)
    trunk: TimmViT | OpenClipViT
    if isinstance(inner, VisionTransformer):
        trunk = TimmViT(inner, visual.head)
    elif isinstance(visual, open_clip.transformer.VisionTransformer):
        trunk = OpenClipViT(visual)
    else:
        raise UserError(
            f"expected a vision transformer, got open_clip {architecture.name}, "
            f"whose image tower is a {type(visual).__name__}"
        )
    side = visual.image_size
    size2 = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    config = {**open_clip.get_model_preprocess_cfg(model), **published}
    preprocess = Preprocess(
        size2,
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        mode="squash" if config.get("resize_mode") == "squash" else "center",
    )
    return VisionModel(architecture, trunk, preprocess, tuple(config["mean"]), tuple(config["std"]))


def randomised(architecture: Architecture, seed: int) -> VisionModel:
    """Make a model with the weights its library draws for an untrained one, fixed by `seed`."""
    with torch.random.fork_rng(devices=[]):
        # The libraries' initialisers take no generator: they get the global one, for a while.
        torch.default_generator.manual_seed(int(digest("random weights", seed), 16) >> 1)
        return build(architecture)
