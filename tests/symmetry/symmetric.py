"""Small transformers of every family, none of whose parameters is trivial, and what compares."""

import dataclasses
import functools
import json
import math

import torch
from made_models import shaken
from safetensors.torch import load, save

from bench.models import Architecture, build
from bench.models.symmetry import dimensions
from bench.models.weights import load_state
from bench.testing import CPU, context, owner

CASES = {
    "mini": ("embedded", "mini", None),
    "deit": ("timm", "deit_tiny_patch16_224", 32),
    "distilled": ("timm", "deit_tiny_distilled_patch16_224", 32),
    "deit3": ("timm", "deit3_small_patch16_224", 32),  # LayerScale, positions of patches alone
    "registers": ("timm", "vit_small_patch14_reg4_dinov2", 28),
    "gated": ("timm", "vit_giant_patch14_dinov2", 28),  # SwiGLU
    "clip": ("timm", "vit_base_patch32_clip_224", 64),
    "siglip": ("timm", "vit_base_patch16_siglip_224", 32),  # attention pooling, no CLS
    "open_clip": ("open_clip", "ViT-B-32", 64),
    "no bias": ("timm", "vit_medium_patch16_gap_256", 32),  # of queries, keys and values
    "raw": ("timm", "vit_little_patch16_reg4_gap_256", 32),  # pooled before any norm
    "normed": ("timm", "beit3_base_patch16_224", 32),  # behind values, and among hidden units
}
"""Libraries, names and sides of images."""

DEPTH = 2

NARROWED = {"gated", "clip", "deit3", "registers", "no bias", "raw", "normed"}
"""Which of these get fewer channels, too."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@functools.cache
def transformer(case):
    """The first two blocks of a model, in float64, every weight of which is drawn anew."""
    library, name, side = CASES[case]
    own = "own" if library == "timm" else None
    if case == "mini":
        return shaken(owner()).double()
    with torch.device("meta"):
        size = dataclasses.replace(dimensions(built(library, name, side, own)), depth=DEPTH)
    if case in NARROWED:
        size = dataclasses.replace(size, mlp=96, heads=2, width=128)
    model = empty(Architecture(library, name, side, own, dimensions=size))
    rng = generator(1)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            gain = path.endswith("gamma") or (
                ("norm" in path or ".ln_" in path) and "weight" in path
            )
            weight.normal_(float(gain), 0.1, generator=rng)
    return model.double().eval()


def built(*how):
    return build(Architecture(*how))


def empty(architecture):
    """A model without values: the largest are never drawn."""
    with torch.device("meta"):
        model = build(architecture)
    mean, std = model.scaling
    model.to_empty(device="cpu")
    model.mean.copy_(torch.tensor(mean).view(1, 3, 1, 1))
    model.std.copy_(torch.tensor(std).view(1, 3, 1, 1))
    return model


def haar(width, seed=0):
    """A random rotation about the all-ones direction."""
    first = torch.zeros(width).double()
    first[0] = 1
    gone = first - 1 / math.sqrt(width)
    mirror = torch.eye(width).double() - 2 * torch.outer(gone, gone) / gone.square().sum()
    turned = torch.randn(width - 1, width - 1, generator=generator(seed)).double()
    inner = torch.block_diag(torch.ones(1, 1).double(), torch.linalg.qr(turned)[0])
    return mirror @ inner @ mirror


def permuted(width):
    return torch.eye(width).double()[torch.randperm(width, generator=generator())]


def asked(model):
    """Noise, and photographs of digits, at the model's size."""
    size = model.preprocess.size
    noise = torch.rand(1, 3, *size, generator=generator(7)).double()
    digits = context().images.batch(slice(0, 1), CPU).double()
    return torch.cat([noise, torch.nn.functional.interpolate(digits, size)])


def apart(one, other):
    """How far tokens, what heads read of them, and answers are apart, over the largest."""
    images = asked(one).to(next(one.parameters()).dtype)
    with torch.no_grad():
        tokens, moved = one.forward_features(images), other.forward_features(images)
        pairs = [
            (tokens, moved),
            (one(images), other(images)),
            (one.embedding(tokens), other.embedding(moved)),
            (one.pooled(tokens), other.pooled(moved)),
        ]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def round_trip(model):
    described = Architecture.of(json.loads(json.dumps(model.architecture.json())))
    kind = next(model.parameters()).dtype
    made = empty(described).to(kind)
    return load_state(made, load(save(model.state_dict())), "it").eval()
