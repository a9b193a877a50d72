"""The models that come with the bench: small vision transformers of timm's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.data.embedded import WEIGHTS
from bench.models.libraries import Library
from bench.records.nouns import Json, UserError

if TYPE_CHECKING:
    from bench.models.vision import Architecture, VisionModel

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


def make(architecture: Architecture) -> VisionModel:
    """Build one of the embedded shapes, untrained."""
    from timm.models.vision_transformer import VisionTransformer

    from bench.data.images import Preprocess
    from bench.models.backbones import TimmViT
    from bench.models.vision import VisionModel

    changes = SHAPES.get(architecture.name)
    if changes is None:
        known = ", ".join(SHAPES)
        raise UserError(f"expected an embedded model of {known}, got '{architecture.name}'")
    half = (0.5, 0.5, 0.5)
    trunk = TimmViT(VisionTransformer(**{**MINI, **changes}))
    return VisionModel(architecture, trunk, Preprocess((32, 32)), half, half)


EMBEDDED = Library(
    summary="shipped with the bench; `python -m bench.training.pretraining` rebuilds it",
    make=make,
    names=("mini",),  # the other shapes are strangers'
    shipped=WEIGHTS,
    resizes=False,
    prefix="trunk.vit.",
    layouts=({"": "trunk.vit."},),
)
