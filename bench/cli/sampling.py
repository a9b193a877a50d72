"""Carry out `bench sample`: draw a little of all that `suites/paper-smoke.yaml` reads.

Pictures are crops of the embedded photographs and labels are drawn: laid out as the published data
sets are, they exercise loaders and loops, and nothing can be learnt from them. Weights are drawn
too, from a seed of their own each, and written in half precision.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from bench.cli.parser import OK, Command, positive
from bench.data import embedded, manifest
from bench.data.settings import DataSettings
from bench.suite.owners import OwnerSettings

LARGER = 9 / 7
"""By how much a picture is larger than what the models take."""

IMAGES = 96
"""Pictures in place of ImageNet's."""

INNOCENTS = (
    "vit_large_patch14_reg4_dinov2.lvd142m",
    "vit_large_patch14_clip_224.openai",
    "vit_large_patch14_clip_quickgelu_224.dfn2b",
    "vit_large_patch16_siglip_256.webli",
    "vit_large_patch16_224.mae",
    "vit_large_patch32_224.orig_in21k",
    "deit3_large_patch16_224.fb_in1k",
    "aimv2_large_patch14_224.apple_pt",
    "vit_intern300m_patch14_448.ogvl_dist",
)
"""Models that never met the owner, by timm's names: one of each architecture in Table 2's list."""

Pictures = Iterator[Image.Image]


def write(
    root: Path, image_size: int = 112, images: int = IMAGES, models: Iterable[str] = INNOCENTS
) -> None:
    """Write the data sets, and weights of `models` that take images of this size.

    `images`, a multiple of the 12 classes, are those in place of ImageNet's.
    """
    root.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(round(image_size * LARGER), images)
    imagenet(root / "imagenet-val", pictures, images=images // 12)
    products(root / "ECOMMERCE_PRODUCT_IMAGES", pictures)
    pets(root / "oxford-iiit-pet", pictures)
    foodseg(root / "FoodSeg103", pictures)
    weights(root / "weights", image_size, models)


def imagenet(root: Path, pictures: Pictures, classes: int = 12, images: int = 8) -> None:
    """Write class folders named as WordNet's synsets are."""
    for label, number in itertools.product(range(classes), range(images)):
        name = f"n{1440764 + label:08d}/ILSVRC2012_val_{label * images + number + 1:08d}.JPEG"
        _save(next(pictures), root / name)


def products(root: Path, pictures: Pictures, images: int = 8) -> None:
    """Write train/ and val/ with nine class folders each."""
    for part, label, number in itertools.product(("train", "val"), range(9), range(images)):
        _save(next(pictures), root / part / f"CLASS_{label}" / f"{number}_{part}.jpeg")


def pets(root: Path, pictures: Pictures, breeds: int = 4, images: int = 6) -> None:
    """Write images/, trimaps and the lists of Oxford-IIIT Pet."""
    for part in ("trainval", "test"):
        lines = []
        for breed, number in itertools.product(range(breeds), range(images)):
            name = f"Breed_{breed}_{number + images * (part == 'test')}"
            picture = next(pictures)
            _save(picture, root / "images" / f"{name}.jpg")
            trimap = 1 + _patches(3, seed=number, side=picture.width)
            _save(Image.fromarray(trimap), root / "annotations" / "trimaps" / f"{name}.png")
            lines.append(f"{name} {breed + 1} {1 + breed % 2} {1 + breed // 2}\n")
        (root / "annotations" / f"{part}.txt").write_text("".join(lines))


def foodseg(root: Path, pictures: Pictures, images: int = 24) -> None:
    """Write Images/ and category_id.txt of FoodSeg103, with all of its 104 ids."""
    for part, number in itertools.product(("train", "test"), range(images)):
        name = f"{number + images * (part == 'test'):08d}"
        picture = next(pictures)
        _save(picture, root / "Images" / "img_dir" / part / f"{name}.jpg")
        mask = Image.fromarray(_patches(104, seed=number, side=picture.width))
        _save(mask, root / "Images" / "ann_dir" / part / f"{name}.png")
    names = ["background", *(f"ingredient {i}" for i in range(1, 104))]
    lines = (f"{i}\t{name}\n" for i, name in enumerate(names))
    (root / "category_id.txt").write_text("".join(lines))


def weights(root: Path, image_size: int, models: Iterable[str]) -> None:
    """Write weights of timm's models, as timm names them.

    With patches of 32 pixels a model takes images twice as large, or it had less than 46 tokens.
    """
    from safetensors.torch import save_file

    from bench.models.building import randomised
    from bench.runs.owners import architecture_of

    root.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(models, 1):
        size = image_size * (2 if "patch32" in name else 1)
        owner = OwnerSettings("timm", name, weights="random", image_size=size)
        state = randomised(architecture_of(owner), seed).trunk.state_dict()
        half = {k.removeprefix("vit."): v.half() for k, v in state.items()}
        save_file(half, root / f"{name.partition('.')[0]}.safetensors")


def _pictures(side: int = 144, images: int = IMAGES) -> Pictures:
    """Yield crops of the embedded photographs, all different, `images` and some hundreds."""
    import torch

    from bench.data.images import Preprocess, load

    crops = 32 + max(0, images - IMAGES) // len(embedded.PHOTOGRAPHS)
    listed = manifest.read("photos", DataSettings("photos", crops=crops))
    order = torch.randperm(len(listed.items), generator=torch.Generator().manual_seed(0))
    for some in order.split(256):  # type: ignore[no-untyped-call]
        for pixels in load(listed, some.tolist(), Preprocess((side, side))).pixels:
            yield Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _patches(ids: int, seed: int, side: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Draw a mask of 4 x 4 patches of one id each."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(ids, (4, 4), generator=rng, dtype=torch.uint8).numpy()
    patch = np.ones((-(-side // 4),) * 2, np.uint8)
    return np.kron(drawn, patch)[:side, :side]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _sample_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="FOLDER")
    command.add_argument(
        "--image-size", type=positive, default=112, help="of the models (default 112)"
    )
    command.add_argument(
        "--images", type=int, default=IMAGES, help=f"in place of ImageNet's (default {IMAGES})"
    )
    command.add_argument("--no-weights", action="store_true", help="write data sets alone")


def write_sample(arguments: argparse.Namespace) -> int:
    """Write the sample where the command line says."""
    models = () if arguments.no_weights else INNOCENTS
    write(arguments.folder, arguments.image_size, arguments.images, models)
    return OK


SAMPLE = Command(
    "sample", "draw data sets and weights to try large suites with", _sample_arguments, write_sample
)
