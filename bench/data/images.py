"""Turn the images a manifest lists into pixels a model can take."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bench.data.item import IGNORE, Item, Picture
from bench.data.manifest import Manifest
from bench.data.settings import LOADERS
from bench.records.files import write_atomically
from bench.records.nouns import UserError, digest

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes `size` (height, width): the centre `crop_pct` of it, resampled.

    "center" keeps the shape of things and cuts what does not fit; "squash" keeps everything. timm's
    third mode, "border" (6 of its 1800 weights), is read as "center".
    """

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mode: Literal["center", "squash"] = "center"


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Decoded images: `pixels` uint8 (n, 3, h, w), `labels` int64 (n,) where the set has any.

    `masks` uint8 (n, h, w) say what each pixel shows, IGNORE where that does not count; where there
    are masks, `classes` counts theirs.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: int
    sources: tuple[str, ...]
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, indices: Sequence[int]) -> Images:
        """Return the images at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        labels = None if self.labels is None else self.labels[chosen]
        masks = None if self.masks is None else self.masks[chosen]
        sources = tuple(self.sources[i] for i in chosen.tolist())
        return Images(self.pixels[chosen], labels, self.classes, sources, masks)

    def batch(self, indices: Tensor | slice, device: torch.device) -> Tensor:
        """Return (b, 3, h, w) floats in [0, 1] on `device`."""
        # Bytes travel, floats are made where they are needed.
        return sent(self.pixels[indices], device).float() / 255


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Bring what a step needs to the device, without waiting for what the device is at.

    From ordinary memory a copy to a GPU waits for all work before it; from pinned memory the next
    batch is gathered and sent while the device is still at the last one. PyTorch keeps pinned
    memory for the next batch, so it never takes more than those under way.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def load(
    manifest: Manifest,
    indices: Sequence[int],
    preprocess: Preprocess,
    cache: Path | None = None,
    workers: int = min(8, os.cpu_count() or 1),
) -> Images:
    """Decode the items at `indices`, or read them from `cache` if they were decoded before."""
    items = [manifest.items[i] for i in indices]
    shapes: dict[str, tuple[int, ...]] = {"pixels": (len(items), 3, *preprocess.size)}
    if manifest.masked:
        shapes["masks"] = (len(items), *preprocess.size)
    key = digest("pixels", manifest.digest, list(indices), dataclasses.asdict(preprocess))
    decoded = None if cache is None else _cached(cache / f"{key}.safetensors", shapes)
    if decoded is None:
        decoded = _decode(manifest, items, preprocess, workers)
        if cache is not None:
            write_atomically(cache / f"{key}.safetensors", save(decoded))
    known = [item.label for item in items if item.label is not None]
    labels = torch.tensor(known) if manifest.classes and not manifest.masked else None
    sources = tuple(item.source for item in items)
    return Images(decoded["pixels"], labels, len(manifest.classes), sources, decoded.get("masks"))


def _cached(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError):  # absent or damaged: decoding again mends both
        return None
    whole = {name: tuple(value.shape) for name, value in found.items()} == shapes
    return found if whole and all(v.dtype == torch.uint8 for v in found.values()) else None


def _decode(
    manifest: Manifest, items: Sequence[Item], how: Preprocess, workers: int
) -> dict[str, Tensor]:
    pixels = np.empty((len(items), *how.size, 3), np.uint8)
    masks = np.empty((len(items) if manifest.masked else 0, *how.size), np.uint8)
    original = _opener(manifest, items)

    def fill(row: int) -> None:
        picture = original(items[row])
        _refuse_other_modes(manifest, picture)
        pixels[row] = _fit(picture.image, _whole(how) if picture.whole else how)
        if picture.mask is not None:
            masks[row] = _fit(picture.mask, how, Image.Resampling.NEAREST)  # ids do not blend

    with ThreadPoolExecutor(workers) as threads:
        for _ in threads.map(fill, range(len(items))):
            pass  # drawing the results raises what a thread raised
    found = {"pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()}  # (n, 3, h, w)
    return found | ({"masks": torch.from_numpy(masks)} if manifest.masked else {})


def _refuse_other_modes(manifest: Manifest, picture: Picture) -> None:
    """Refuse pixels that would be stored as others, or a mask that is not there."""
    wanted = ["RGB", *(["L"] if manifest.masked else [])]
    got = [image.mode for image in (picture.image, picture.mask) if image is not None]
    if got != wanted:
        raise UserError(
            f"data '{manifest.name}': loader '{manifest.settings.loader}': expected a picture in "
            f"{' and a mask in '.join(wanted)}, got {' and '.join(got)}"
        )


def _whole(how: Preprocess) -> Preprocess:
    # Few pixels are enlarged, where bicubic would ring.
    return Preprocess(how.size, interpolation="bilinear")


Opener = Callable[[Manifest, Sequence[Item]], Callable[[Item], Picture]]
"""What a loader names: it is told all that will be opened, and returns what opens one of them."""


def _opener(manifest: Manifest, items: Sequence[Item]) -> Callable[[Item], Picture]:
    name = manifest.settings.loader
    where = LOADERS.get(name).opened
    opened = LOADERS.imported(EntryPoint(name, where, LOADERS.group))
    if not callable(opened):
        raise UserError(
            f"loader '{name}': expected {where} to be a function, got {type(opened).__name__}"
        )
    return cast(Opener, opened)(manifest, items)


def files(manifest: Manifest, _items: Sequence[Item]) -> Callable[[Item], Picture]:
    """Return what opens an item's file, and its mask where the set has masks."""
    root, name = manifest.root or Path(), manifest.name
    if manifest.masked:
        return functools.partial(_masked, manifest)
    return lambda item: Picture(open_image(root / item.file, f"data '{name}': {item.file}"))


def open_image(path: Path, name: str) -> Image.Image:
    """Open a file as RGB; `name` is what an error calls it."""
    with _decoding(path, name), Image.open(path) as image:
        # Transparent palettes need the detour: Pillow warns when it is left out.
        return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _ids(path: Path, name: str) -> NDArray[np.int64]:
    with _decoding(path, name), Image.open(path) as image:
        ids = np.asarray(image)  # of a palette image its indices
    if ids.ndim != 2:
        raise UserError(f"{name}: expected one id a pixel, got colours (mode {image.mode})")
    return ids.astype(np.int64)


@contextmanager
def _decoding(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for a damaged file
        reason = str(error).replace(str(path), path.name).partition("\n")[0]
        raise UserError(f"{name}: expected an image, cannot decode it ({reason})") from None


def _masked(manifest: Manifest, item: Item) -> Picture:
    """Open an image and its mask, whose ids beyond the classes are refused or ignored."""
    root, name = manifest.root or Path(), f"data '{manifest.name}': {item.mask}"
    image = open_image(root / item.file, f"data '{manifest.name}': {item.file}")
    ids = _ids(root / item.mask, name)
    if ids.shape != image.size[::-1]:
        got, wanted = ("{} x {}".format(*size) for size in (ids.shape[::-1], image.size))
        raise UserError(f"{name}: expected a mask of the image's size {wanted}, got {got}")
    if manifest.ids:
        ids = _translated(ids, manifest.ids, name)
    ids = np.where(ids == manifest.settings.ignore_index, IGNORE, ids)
    beyond = ids[(ids >= len(manifest.classes)) & (ids != IGNORE)]
    if beyond.size:
        way_out = "; raise `classes`, or name the id of pixels that do not count as `ignore_index`"
        raise UserError(
            f"{name}: expected ids 0..{len(manifest.classes) - 1}, got {beyond[0]}"
            f"{'' if manifest.settings.classes is None else way_out}"
        )
    return Picture(image, Image.fromarray(ids.astype(np.uint8)))


def _translated(ids: NDArray[np.int64], meaning: Mapping[int, int], name: str) -> NDArray[np.int64]:
    """Replace the ids of a data set's own files by ours."""
    table: NDArray[np.int64] = np.full(256, -1, np.int64)
    for found, meant in meaning.items():
        table[found] = meant
    made: NDArray[np.int64] = table[ids.clip(0, 255)]
    if (made < 0).any():
        known = ", ".join(map(str, meaning))
        raise UserError(f"{name}: expected ids {known}, got {ids[made < 0][0]}")
    return made


def _fit(
    image: Image.Image, how: Preprocess, resample: Image.Resampling | None = None
) -> NDArray[np.uint8]:
    """Resample the centred region that `how` keeps to (h, w, 3)."""
    height, width = how.size
    if how.mode == "squash":
        kept = how.crop_pct * image.width, how.crop_pct * image.height
    else:
        scale = how.crop_pct * min(image.height / height, image.width / width)
        kept = scale * width, scale * height
    # What is kept whole may come out larger than the image by a rounding, which Pillow refuses.
    left, top = (max((a - b) / 2, 0.0) for a, b in zip(image.size, kept, strict=True))
    box = (left, top, min(left + kept[0], image.width), min(top + kept[1], image.height))
    # Resizing from a box is one pass; Pillow's filters average when they shrink.
    chosen = RESAMPLE[how.interpolation] if resample is None else resample
    return np.asarray(image.resize((width, height), chosen, box=box))
