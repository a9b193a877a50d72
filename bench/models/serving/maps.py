"""Change what a server is asked, and what it answers: one function for each kind of map.

Images are (b, 3, h, w) in [0, 1] at the size in which they were sent. Answers are features,
tokens or scores: (b, d), (b, n, d) or (b, k). What is drawn is a function of the image, so asking
again does not average it out, and no order of questions matters.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bench.models.vision import Served
from bench.records.nouns import UserError

Seeds = Sequence[int]
"""One for each image of a batch."""


def seeds_of(images: Tensor, seed: int) -> list[int]:
    """Draw from each image of (b, 3, h, w), and a server's own number, a seed of its own."""
    rows = images.detach().float().cpu().contiguous().numpy()
    salt = seed.to_bytes(8, "little", signed=True)
    found = (hashlib.sha256(salt + row.tobytes()).digest() for row in rows)
    return [int.from_bytes(one[:8], "little") >> 1 for one in found]


def drawn(like: Tensor, seeds: Seeds) -> Tensor:
    """Draw standard normal numbers of a tensor's shape, row by row."""
    rows = [
        torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds
    ]
    return torch.stack(rows).to(like)


def flags(like: Tensor, seeds: Seeds, share: float) -> Tensor:
    """Draw which rows of a tensor are concerned, each with the probability `share`: (b,)."""
    rows = [float(torch.rand((), generator=torch.Generator().manual_seed(s))) for s in seeds]
    return torch.tensor([row < share for row in rows], device=like.device)


def jpeg(images: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Write every image as JPEG of quality `amount`, colours at half the size, and read it."""
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
    read = []
    for image in pixels:  # (h, w, 3)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(how.amount))
        read.append(np.asarray(Image.open(file)))
    made = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)
    return made.to(images) / 255


def resize(images: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Bring images to the share `amount` of their sides, and back."""
    size = tuple(images.shape[-2:])
    small = tuple(max(1, round(how.amount * side)) for side in size)
    return _resampled(_resampled(images, small), size)


def _resampled(images: Tensor, size: tuple[int, ...]) -> Tensor:
    made = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return made.clamp(0, 1)


def blur(images: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Blur with a Gaussian of deviation `amount` pixels, cut off at three of these."""
    radius = math.ceil(3 * how.amount)
    places = torch.arange(-radius, radius + 1, dtype=torch.float32)
    weights = torch.exp(-places.square() / (2 * how.amount**2))
    weights = (weights / weights.sum()).to(images)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    kernel = weights.expand(3, 1, 1, -1)  # (3, 1, 1, 2 r + 1): each colour by itself
    across = F.conv2d(padded, kernel, groups=3)
    return F.conv2d(across, kernel.mT, groups=3)


def noise(images: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Add Gaussian noise of deviation `amount`."""
    return (images + how.amount * drawn(images, seeds)).clamp(0, 1)


def bits(images: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Leave `amount` bits of each value."""
    steps = (1 << int(how.amount)) - 1
    return (images * steps).round() / steps


def flip(images: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Mirror left and right."""
    return images.flip(-1)


def rounded(found: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Round answers to `amount` decimals."""
    return found.round(decimals=int(how.amount))


def perturbed(found: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Add Gaussian noise of deviation `amount`, in deviations of each answer's own numbers."""
    scale = found.std(-1, correction=0, keepdim=True)
    return found + how.amount * scale * drawn(found, seeds)


def top_features(found: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Answer the `amount` features that are largest in magnitude; the others are 0."""
    return torch.where(_among(found.abs(), int(how.amount)), found, torch.zeros_like(found))


def top_scores(found: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Answer the `amount` highest scores; the others are as low as the lowest."""
    lowest = found.amin(-1, keepdim=True)
    return torch.where(_among(found, int(how.amount)), found, lowest)


def _among(values: Tensor, count: int) -> Tensor:
    """Say which numbers of each row are among the `count` largest."""
    chosen = values.topk(min(count, values.shape[-1]), dim=-1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, chosen, True)


def tempered(found: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Divide scores by the temperature `amount`."""
    return found / how.amount


def label_flipped(found: Tensor, how: Served, seeds: Seeds) -> Tensor:
    """Swap the two highest scores with probability `amount`, where they are within `bound`."""
    if found.shape[-1] < 2:
        return found
    best = found.topk(2, dim=-1)
    near = best.values[:, 0] - best.values[:, 1] < how.bound
    swapped = found.scatter(-1, best.indices, best.values.flip(-1))
    return torch.where((near & flags(found, seeds, how.amount))[:, None], swapped, found)


Map = Callable[[Tensor, Served, Seeds], Tensor]

INPUTS: Mapping[str, Map] = {
    "jpeg": jpeg,
    "resize": resize,
    "blur": blur,
    "noise": noise,
    "bits": bits,
    "flip": flip,
}
"""What is done to images before the model sees them."""

FEATURES: Mapping[str, Map] = {"round": rounded, "perturb": perturbed, "topk": top_features}
"""What is done to features; maps of scores alone leave them as they are."""

SCORES: Mapping[str, Map] = {
    "round": rounded,
    "perturb": perturbed,
    "topk": top_scores,
    "temperature": tempered,
    "labelflip": label_flipped,
}
"""What is done to class scores."""

DETECTORS = ("detect.features", "detect.pixels", "detect.jpeg")
"""How a server tells questions of a verifier from a client's."""

KINDS = (*INPUTS, *SCORES, *DETECTORS)
"""All that a server may do."""

DRAWS = ("noise", "perturb", "labelflip")
"""Kinds of which a number of the server's own decides what is drawn."""


def impossible(served: Sequence[Served]) -> str:
    """Say why a server cannot do these in turn; empty if it can.

    A detector must see what comes in, as earlier maps leave it: what changes it further stands no
    later in the list than the detector does.
    """
    detector = None
    for how in served:
        if how.kind in DETECTORS:
            detector = how.kind
        elif how.kind in INPUTS and detector:
            return (
                f"expected a detector to see what clients sent, got {how.kind} behind {detector}; "
                "put what changes questions before the detector"
            )
    return ""


def changed(images: Tensor, served: Sequence[Served], asked: Tensor) -> Tensor:
    """Map images (b, 3, h, w) as each input map does in turn; draws follow from those `asked`."""
    return _in_turn(images, served, INPUTS, asked)


def told(found: Tensor, served: Sequence[Served], asked: Tensor, scores: bool) -> Tensor:
    """Map answers as each output map does in turn; draws follow from the images `asked`."""
    return _in_turn(found, served, SCORES if scores else FEATURES, asked)


def _in_turn(
    value: Tensor, served: Sequence[Served], known: Mapping[str, Map], asked: Tensor
) -> Tensor:
    for how in served:
        if how.kind not in KINDS:
            raise UserError(
                f"served: expected one of {', '.join(KINDS)}, got '{how.kind}'; this version of "
                "the bench knows no other"
            )
        if how.kind in known:
            seeds = seeds_of(asked, how.seed) if how.kind in DRAWS else ()
            value = known[how.kind](value, how, seeds)
    return value
