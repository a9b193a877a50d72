"""Turn the images a manifest lists into pixels a model can take."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import struct
import warnings
import zlib
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
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bench.data.item import IGNORE, Item, Picture
from bench.data.manifest import Manifest
from bench.data.settings import LOADERS
from bench.records.files import stands_for, write_atomically
from bench.records.nouns import UserError, digest, first_line

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


LARGEST = 1 << 24
"""Pixels that are resampled to keep some of them; a longer thread is first cut, then resampled."""

PIXELS = 2
"""Rises when the same files and the same preprocessing would give other pixels."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes `size` (height, width), in the integers of timm and open_clip.

    It is resampled to `size` / `crop_pct`, rounded down, and `size` is cut from its centre.
    "center" brings the shorter side to that, and keeps the shape of things; "squash" both sides;
    "border" the longer one. Where something is missing, `fill` is put beside it.
    """

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mode: Literal["center", "squash", "border"] = "center"
    fill: tuple[int, int, int] = (0, 0, 0)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which an image is resampled before it is cut.

        Source: `timm.data.transforms_factory.transforms_imagenet_eval` and what it calls.
        """
        high, wide = (math.floor(side / self.crop_pct) for side in self.size)
        if self.mode == "squash":
            return high, wide
        if self.mode == "center" and high == wide:  # torchvision's Resize, which rounds down
            longer = int(high * max(height, width) / min(height, width))
            return (high, longer) if height <= width else (longer, wide)
        ratios = height / high, width / wide
        ratio = max(ratios) if self.mode == "border" else min(ratios)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)


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
    how = dataclasses.asdict(preprocess)
    key = digest("pixels", PIXELS, manifest.digest, list(indices), how)
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
            masks[row] = _fit(picture.mask, how, ids=True)

    # Pillow warns of a torn tag, and of a size that it opens all the same: nothing to act upon.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(workers) as threads:
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
    """Open a file as RGB; `name` is what an error calls it.

    It is read as torchvision reads it: the first of several frames, colours under alpha, as stored,
    whatever its EXIF orientation. Of 16 bits the upper 8 stay.
    """
    with _decoding(path, name), Image.open(path) as image:
        return _rgb(image, name)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    # What Pillow calls I is 16 bits in these two formats; in others nobody knows what white is.
    deep = image.mode in ("I;16", "I;16L", "I;16B", "I;16N")
    if deep or (image.mode == "I" and image.format in ("PNG", "PPM")):
        levels = np.asarray(image).astype(np.int64) >> _bits(image) - 8
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode[0] in "IF":
        raise UserError(
            f"{name}: expected 8 or 16 bits a channel, got mode {image.mode}, which does not say "
            "what is white; save it as PNG"
        )
    # Transparent palettes need the detour: Pillow warns when it is left out.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _bits(image: Image.Image) -> int:
    """Return the bits of a grey level: 16, or what a TIFF says, whose 12 Pillow does not spread."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16
    return int(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])


@contextmanager
def _decoding(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except UserError:  # said already, and a ValueError
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        size = int(next(iter(re.findall(r"\d+", str(error))), 0))
        raise UserError(
            f"{name}: expected an image of {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels at most, "
            f"got one that says it has {size:,}: a decompression bomb, or to be made smaller"
        ) from None
    except _DAMAGED as error:
        raise UserError(f"{name}: expected an image, {_instead(path, error)}") from None


def _instead(path: Path, error: Exception) -> str:
    """Say what lies in the place of an image, or why it cannot be decoded; and the way out."""
    try:
        what = stands_for(path)
    except OSError:  # it cannot be read at all, as the error says
        what = ""
    if what:
        return f"got {what}"
    named = isinstance(error, UnidentifiedImageError)  # names the whole path, and nothing else
    reason = "of no kind that is known" if named else first_line(error)
    return f"cannot decode it ({reason}); copy it again, or save it as PNG"


_DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError),
    *(AttributeError, struct.error, zlib.error, MemoryError),
)
"""What Pillow says of a damaged file."""


def _masked(manifest: Manifest, item: Item) -> Picture:
    """Open an image and its mask, whose ids beyond the classes are refused or ignored."""
    root, name = manifest.root or Path(), f"data '{manifest.name}': {item.mask}"
    shown = f"data '{manifest.name}': {item.file}"
    with _decoding(root / item.file, shown), Image.open(root / item.file) as stored:
        turned, image = _orientation(stored), _rgb(stored, shown)
    with _decoding(root / item.mask, name), Image.open(root / item.mask) as mask:
        masks, ids = _orientation(mask), _ids(mask, name)
    if turned != masks:
        image = _as_seen(image, (turned, masks), ids.shape, shown)
    if ids.shape != image.size[::-1]:
        got, wanted = ("{} x {}".format(*size) for size in (ids.shape[::-1], image.size))
        raise UserError(f"{name}: expected a mask of the image's size {wanted}, got {got}")
    return Picture(image, Image.fromarray(_classes(manifest, ids, name)))


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What a viewer does with what is stored, by the value of the tag."""


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in TURNS else 1


def _as_seen(
    image: Image.Image, turned: tuple[int, int], shape: tuple[int, ...], name: str
) -> Image.Image:
    """Turn an image as its mask lies: as it is stored, or as it is seen, if their sizes say which.

    Raises:
        UserError: they do not.

    """
    if turned[0] in TURNS and turned[1] == 1:
        seen = image.transpose(TURNS[turned[0]])
        if seen.size != image.size:
            return seen if seen.size == shape[::-1] else image
    raise UserError(
        f"{name}: expected an image and a mask that lie alike, got EXIF orientation {turned[0]} "
        f"and {turned[1]}; save both upright"
    )


def _ids(mask: Image.Image, name: str) -> NDArray[np.int64]:
    ids = np.asarray(mask)  # of a palette image its indices
    if ids.ndim != 2:
        raise UserError(f"{name}: expected one id a pixel, got colours (mode {mask.mode})")
    if ids.dtype.kind == "f":
        raise UserError(f"{name}: expected one id a pixel, got fractions (mode {mask.mode})")
    return ids.astype(np.int64)


def _classes(manifest: Manifest, ids: NDArray[np.int64], name: str) -> NDArray[np.uint8]:
    """Map ids in a file (h, w) to those of classes, and to IGNORE what is named as ignored."""
    if manifest.ids:
        ids = _translated(ids, manifest.ids, name)
    ignored = ids == manifest.settings.ignore_index
    if IGNORE in manifest.ids.values():
        ignored |= ids == IGNORE
    classes = len(manifest.classes)
    beyond = ids[((ids < 0) | (ids >= classes)) & ~ignored]
    if beyond.size:
        way_out = "; raise `classes`, or name the id of pixels that do not count as `ignore_index`"
        raise UserError(
            f"{name}: expected ids 0..{classes - 1}, got {beyond[0]}"
            f"{'' if manifest.settings.classes is None else way_out}"
        )
    return np.where(ignored, IGNORE, ids).astype(np.uint8)


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


def _fit(image: Image.Image, how: Preprocess, ids: bool = False) -> NDArray[np.uint8]:
    """Resample and cut an image (h, w, 3), or ids (h, w), which do not blend."""
    chosen = Image.Resampling.NEAREST if ids else RESAMPLE[how.interpolation]
    high, wide = how.resized(image.height, image.width)
    left, top = (_start(full, cut) for full, cut in ((wide, how.size[1]), (high, how.size[0])))
    right, bottom = min(left + how.size[1], wide), min(top + how.size[0], high)
    if high * wide <= LARGEST:
        kept = image.resize((wide, high), chosen).crop((left, top, right, bottom))
    else:  # a thread of an image: the same up to rounding, without gigabytes that are cut away
        x, y = image.width / wide, image.height / high
        kept = image.resize(
            (right - left, bottom - top), chosen, box=(left * x, top * y, right * x, bottom * y)
        )
    pixels: NDArray[np.uint8] = np.asarray(kept)
    if kept.size == how.size[::-1]:
        return pixels
    full = np.empty((*how.size, *pixels.shape[2:]), np.uint8)
    full[:] = IGNORE if ids else how.fill
    down, across = ((a - b) // 2 for a, b in zip(how.size, pixels.shape[:2], strict=True))
    full[down : down + pixels.shape[0], across : across + pixels.shape[1]] = pixels
    return full


def _start(full: int, cut: int) -> int:
    return max(round((full - cut) / 2), 0)  # torchvision's rounding, half to even
