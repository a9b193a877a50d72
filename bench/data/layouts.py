"""List published data sets by their own files: Oxford-IIIT Pet and FoodSeg103."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench.data import folders
from bench.data.item import IGNORE, Item, Listing, Part
from bench.data.published import DATA_SETS
from bench.data.settings import DataSettings, Loader
from bench.records.nouns import UserError, digest, first_line

TRIMAP: Mapping[int, int] = {1: 1, 2: 0, 3: 255}
"""What the ids of Oxford-IIIT Pet's trimaps become: pet 1, background 0, the border ignored."""


PETS, FOOD = DATA_SETS["oxford-iiit-pet"], DATA_SETS["foodseg103"]


def _pets(name: str, settings: DataSettings, root: Path) -> Listing:
    items, breeds = _breeds(name, root)
    if not settings.masked:
        return Listing(tuple(items), breeds)
    masked = _trimaps(name, root, items)
    content = digest("trimaps", folders.masks_digest(root, masked))
    return Listing(masked, PETS.trimaps, content, TRIMAP)


def _breeds(name: str, root: Path) -> tuple[list[Item], tuple[str, ...]]:
    """List Oxford-IIIT Pet by its own lists, with the breeds as classes; trainval is train."""
    lists: tuple[tuple[Part, Path], ...] = (
        ("train", root / "annotations" / "trainval.txt"),
        ("test", root / "annotations" / "test.txt"),
    )
    listed: list[tuple[str, int, Part]] = []
    for part, file in lists:
        for number, line in folders.lines(name, root, file):
            found = re.fullmatch(r"(\S+)\s+([1-9]\d*)\s+\d+\s+\d+", line)
            if found is None:
                raise UserError(
                    f"data '{name}': {file.relative_to(root)}:{number}: expected an image, its "
                    f"class from 1 on, species and breed, got '{line:.60}'"
                )
            listed.append((found[1], int(found[2]), part))
    breeds = {label: image.rpartition("_")[0] for image, label, _ in listed}
    if sorted(breeds) != list(range(1, len(breeds) + 1)):
        lost = next(i for i in itertools.count(1) if i not in breeds)
        raise UserError(
            f"data '{name}': expected classes 1 .. {max(breeds)}, no image is of {lost}"
        )
    files = [f"images/{image}.jpg" for image, _, _ in listed]
    folders.refuse_lost(name, root, files, "the images that annotations/ lists")
    sources = folders.sources(root, files)
    items = [
        Item(source, label - 1, file, part=part)
        for source, file, (_, label, part) in zip(sources, files, listed, strict=True)
    ]
    return items, tuple(breeds[label] for label in sorted(breeds))


def _trimaps(name: str, root: Path, items: Sequence[Item]) -> tuple[Item, ...]:
    """Give every pet its trimap instead of its breed."""
    masks = [f"annotations/trimaps/{Path(item.file).stem}.png" for item in items]
    folders.refuse_lost(name, root, masks, "a trimap for every image")
    return tuple(replace(i, label=None, mask=mask) for i, mask in zip(items, masks, strict=True))


def _foodseg(name: str, _settings: DataSettings, root: Path) -> Listing:
    """List FoodSeg103 by its folders and name its classes by category_id.txt, background first."""
    names = list[str]()
    for number, line in folders.lines(name, root, root / "category_id.txt"):
        found = re.fullmatch(r"(\d+)\s+(\S.*)", line)
        if found is None or int(found[1]) != len(names):
            raise UserError(
                f"data '{name}': category_id.txt:{number}: expected '{len(names)}' and the name "
                f"of that class, got '{line:.60}'"
            )
        names.append(found[2])
    if not 2 <= len(names) <= IGNORE:
        raise UserError(f"data '{name}': expected 2 to {IGNORE} classes, got {len(names)}")
    files, masks = list[str](), list[str]()
    for part in ("train", "test"):
        pictures = root / "Images" / "img_dir" / part
        if not pictures.is_dir():
            raise UserError(f"data '{name}': expected Images/img_dir/{part}/ in {root}, found none")
        found_here = sorted(path.name for path in folders.images_under(name, pictures))
        files += [f"Images/img_dir/{part}/{file}" for file in found_here]
        masks += [f"Images/ann_dir/{part}/{Path(file).stem}.png" for file in found_here]
    if not files:
        raise UserError(f"data '{name}': expected images in Images/img_dir/, none in {root}")
    folders.refuse_lost(name, root, masks, "a mask for every image")
    items = tuple(
        Item(
            source,
            None,
            file,
            part=folders.part_of(Path(file).relative_to("Images/img_dir")),
            mask=mask,
        )
        for source, file, mask in zip(folders.sources(root, files), files, masks, strict=True)
    )
    content = digest("foodseg103", folders.masks_digest(root, items))
    return Listing(items, tuple(names), content)


def _download_pets(name: str, settings: DataSettings, data_dir: Path) -> None:
    """Have torchvision fetch Oxford-IIIT Pet, which puts it in a folder of its own name."""
    folder = data_dir / Path(settings.path).expanduser()
    if (folder / "annotations").is_dir():
        return
    if folder.name != "oxford-iiit-pet":
        raise UserError(
            f"data '{name}': --download: expected a path that ends in oxford-iiit-pet, as "
            f"torchvision calls the folder, got '{settings.path}'"
        )
    from torchvision.datasets import OxfordIIITPet

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        OxfordIIITPet(folder.parent, download=True)
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"data '{name}': --download: torchvision could not ({reason})") from None


OXFORD_PETS = Loader(
    "Oxford-IIIT Pet as published: breeds, or trimaps as masks",
    listed=_pets,
    takes=frozenset({"targets"}),
    published=PETS,
    download=_download_pets,
)

FOODSEG103 = Loader(
    "FoodSeg103 as published: images and masks of 104 ids",
    listed=_foodseg,
    masked=True,
    published=FOOD,
)
