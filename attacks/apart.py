"""Hold some of a thief's images apart by their source: what is judged on them has not seen them."""

from __future__ import annotations

from bench.data import Images
from bench.types import UserError

EVERY = 4
"""One source in so many is held apart."""


def held_apart(images: Images, who: str) -> tuple[Images, Images]:
    """Split a thief's images into most and those held apart; no source is on both sides.

    Raises:
        UserError: there are too few sources; `who` asked.

    """
    held = set(sorted(set(images.sources))[EVERY - 1 :: EVERY])
    if not held:
        raise UserError(
            f"{who}: expected images of {EVERY} sources or more, got {len(images)} images of "
            f"{len(set(images.sources))}; give `data` a larger data set"
        )
    sides: tuple[list[int], list[int]] = [], []
    for i, source in enumerate(images.sources):
        sides[source in held].append(i)
    return images.subset(sides[0]), images.subset(sides[1])


def count_apart(images: int) -> int:
    """Count those that are held apart if all images are of different sources."""
    return images // EVERY
