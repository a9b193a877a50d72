"""Turn the images a manifest lists into pixels a model can take."""

from __future__ import annotations

import dataclasses
import gzip
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bench.files import write_atomically
from bench.manifest import Item, Manifest, digits_file, photograph_file
from bench.types import UserError, digest

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

SMALLEST_CROP = 64
"""Shortest side, in pixels, of a crop of an embedded photograph."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image becomes `size` (height, width): the centre `crop_pct` of it, resampled."""

    size: tuple[int, int]
    crop_pct: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Decoded images: `pixels` uint8 (n, 3, h, w), `labels` int64 (n,) where the set has any."""

    pixels: Tensor
    labels: Tensor | None
    classes: int
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, indices: Sequence[int]) -> Images:
        """Return the images at `indices`, in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        labels = None if self.labels is None else self.labels[chosen]
        sources = tuple(self.sources[i] for i in chosen.tolist())
        return Images(self.pixels[chosen], labels, self.classes, sources)

    def batch(self, indices: Tensor | slice, device: torch.device) -> Tensor:
        """Return (b, 3, h, w) floats in [0, 1] on `device`."""
        # Bytes travel, floats are made where they are needed.
        return self.pixels[indices].to(device, non_blocking=True).float() / 255


def load(
    manifest: Manifest,
    indices: Sequence[int],
    preprocess: Preprocess,
    cache: Path | None = None,
    workers: int = min(8, os.cpu_count() or 1),
) -> Images:
    """Decode the items at `indices`, or read them from `cache` if they were decoded before."""
    items = [manifest.items[i] for i in indices]
    shape = (len(items), 3, *preprocess.size)
    key = digest("pixels", manifest.digest, list(indices), dataclasses.asdict(preprocess))
    pixels = None if cache is None else _cached(cache / f"{key}.safetensors", shape)
    if pixels is None:
        pixels = _decode(manifest, items, preprocess, workers)
        if cache is not None:
            write_atomically(cache / f"{key}.safetensors", save({"pixels": pixels}))
    known = [item.label for item in items if item.label is not None]
    labels = torch.tensor(known) if manifest.classes else None
    return Images(pixels, labels, len(manifest.classes), tuple(item.source for item in items))


def _cached(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        pixels: Tensor = load_file(path)["pixels"]
    except (OSError, SafetensorError, KeyError):  # absent or damaged: decoding again mends both
        return None
    return pixels if tuple(pixels.shape) == shape and pixels.dtype == torch.uint8 else None


def _decode(manifest: Manifest, items: Sequence[Item], how: Preprocess, workers: int) -> Tensor:
    if manifest.settings.loader == "digits":
        # A digit fills its 8 x 8 pixels: nothing is cut away, and bicubic would ring.
        how = Preprocess(how.size, interpolation="bilinear")
    pixels = np.empty((len(items), *how.size, 3), np.uint8)
    with ThreadPoolExecutor(workers) as threads:
        original = _opener(manifest, items, threads)

        def fill(row: int) -> None:
            pixels[row] = _fit(original(items[row]), how)

        for _ in threads.map(fill, range(len(items))):
            pass  # drawing the results raises what a thread raised
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # (n, 3, h, w)


def _opener(
    manifest: Manifest, items: Sequence[Item], threads: ThreadPoolExecutor
) -> Callable[[Item], Image.Image]:
    if manifest.settings.loader == "digits":
        table = _digits()
        return lambda item: Image.fromarray(table[item.index]).convert("RGB")
    if manifest.settings.loader == "photos":
        sources = list(dict.fromkeys(item.source for item in items))
        opened = threads.map(lambda source: _open(photograph_file(source), source), sources)
        photographs = dict(zip(sources, opened, strict=True))  # once each, not once a crop
        return lambda item: _crop(photographs[item.source], item)
    root = manifest.root or Path()
    return lambda item: _open(root / item.file, f"data '{manifest.name}': {item.file}")


def _digits() -> NDArray[np.uint8]:
    with gzip.open(digits_file(), "rt") as rows:
        values = np.loadtxt(rows, delimiter=",")[:, :64]  # 0..16
    return np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)


def _open(path: Path, name: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            # Transparent palettes need the detour: Pillow warns when it is left out.
            return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for a damaged file
        reason = str(error).replace(str(path), path.name).partition("\n")[0]
        raise UserError(f"{name}: expected an image, cannot decode it ({reason})") from None


def _crop(image: Image.Image, item: Item) -> Image.Image:
    """Cut the square whose side and place are fixed by the photograph and the crop's number."""
    seed = int(digest("crop", item.source, item.index), 16) >> 1  # torch seeds are signed
    rng = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=rng))

    side = draw(SMALLEST_CROP, min(image.size))
    left, top = draw(0, image.width - side), draw(0, image.height - side)
    return image.crop((left, top, left + side, top + side))


def _fit(image: Image.Image, how: Preprocess) -> NDArray[np.uint8]:
    """Resample the largest centred region of the wanted shape, less the margin, to (h, w, 3)."""
    height, width = how.size
    scale = how.crop_pct * min(image.height / height, image.width / width)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    # Resizing from a box is one pass; Pillow's filters average when they shrink.
    return np.asarray(image.resize((width, height), RESAMPLE[how.interpolation], box=box))
