"""Draw the embedded images: digits, crops of photographs, and scenes of both."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.data.embedded import digits_file, digits_for, photograph_file
from bench.data.images import open_image
from bench.data.item import Item, Picture
from bench.data.manifest import Manifest
from bench.records.nouns import Json, digest

SMALLEST_CROP = 64
"""Shortest side, in pixels, of a crop of an embedded photograph."""

SCENE = 128
"""Side of a scene in pixels; a digit takes 1/2 to 3/4 of it."""


def digits(_manifest: Manifest, _items: Sequence[Item]) -> Callable[[Item], Picture]:
    """Return what opens a digit, which fills its 8 x 8 pixels."""
    table = digits_table()
    return lambda item: Picture(table.picture(item.index).convert("RGB"), whole=True)


def photos(_manifest: Manifest, items: Sequence[Item]) -> Callable[[Item], Picture]:
    """Return what cuts crops of photographs."""
    photographs = _photographs(items)
    return lambda item: Picture(_crop(photographs[item.source], item))


def scenes(_manifest: Manifest, items: Sequence[Item]) -> Callable[[Item], Picture]:
    """Return what puts digits on crops of photographs."""
    photographs, table = _photographs(items), digits_table()
    dealt = {source: digits_for(source, len(table.labels)) for source in photographs}
    return lambda item: _scene(photographs[item.source], item, table, dealt[item.source])


def _photographs(items: Sequence[Item]) -> Mapping[str, Image.Image]:
    """Open the photographs these items are cut from: once each, not once a crop."""
    sources = list(dict.fromkeys(item.source for item in items))
    with ThreadPoolExecutor() as threads:
        opened = threads.map(lambda source: open_image(photograph_file(source), source), sources)
        return dict(zip(sources, opened, strict=True))


class Digits(NamedTuple):
    """scikit-learn's digits: pixels uint8 (n, 8, 8), white on black, and labels (n,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def picture(self, number: int) -> Image.Image:
        """Return one of them, 8 x 8 and grey."""
        return Image.fromarray(self.pixels[number])


def digits_table() -> Digits:
    """Read scikit-learn's table."""
    with gzip.open(digits_file(), "rt") as rows:
        table = np.loadtxt(rows, delimiter=",")
    pixels = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8)  # 0..16 as they come
    return Digits(pixels.reshape(-1, 8, 8), table[:, 64].astype(np.uint8))


def _crop(image: Image.Image, item: Item) -> Image.Image:
    """Cut the square whose side and place are fixed by the photograph and the crop's number."""
    draw = _drawer("crop", item.source, item.index)
    side = draw(SMALLEST_CROP, min(image.size))
    left, top = draw(0, image.width - side), draw(0, image.height - side)
    return image.crop((left, top, left + side, top + side))


def _scene(image: Image.Image, item: Item, digits: Digits, dealt: Sequence[int]) -> Picture:
    """Paste one or two of the dealt digits on a crop; the mask is 1 + digit where there is ink.

    Which, how large and where is fixed by the photograph and the scene's number. A digit brings its
    dark ground along, which is background like the rest: white ink alone is lost on a bright sky.
    """
    draw = _drawer("scene", item.source, item.index)
    ground = _crop(image, item).resize((SCENE, SCENE), Image.Resampling.BICUBIC)
    mask = Image.new("L", ground.size)
    for _ in range(draw(1, 2)):
        number, side = dealt[draw(0, len(dealt) - 1)], draw(SCENE // 2, SCENE * 3 // 4)
        place = draw(0, SCENE - side), draw(0, SCENE - side)
        ink = digits.picture(number).resize((side, side), Image.Resampling.BILINEAR)
        ground.paste(ink.convert("RGB"), place)
        shown = 1 + int(digits.labels[number])
        mask.paste(ink.point([shown * (level > 127) for level in range(256)]), place)
    return Picture(ground, mask)


def _drawer(*key: Json) -> Callable[[int, int], int]:
    """Return a draw from low .. high that depends on the key alone."""
    rng = torch.Generator().manual_seed(int(digest(*key), 16) >> 1)  # torch seeds are signed
    return lambda low, high: int(torch.randint(low, high + 1, (), generator=rng))
