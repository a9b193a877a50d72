"""The images of a data set: where each lies, what it shows, and what it was cut from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

IGNORE = 255
"""What a mask says, once loaded, where nothing is to be learnt or judged."""

Part = Literal["", "train", "test"]


@dataclass(frozen=True, slots=True)
class Item:
    """One image: where it comes from and what it shows.

    `source` is what no two parties may share: a photograph's name, a digit's number, or the digest
    of a file's bytes, so that a copy under another name stays with its original. `file` is relative
    to the data set's folder ("" for embedded images), `index` numbers a photograph's crops and the
    digits, `part` is the folder's own division into train/ and test/, if it has one. `mask` is the
    file that says what each pixel shows, where the set has such files.
    """

    source: str
    label: int | None = None
    file: str = ""
    index: int = 0
    part: Part = ""
    mask: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a loader found: the images and the names of their classes, or of their pixels'.

    `content` names what pixels and masks hang on beside the items, for the digest of the data set:
    the bytes of files that are nobody's source, a version of what draws. `ids` says what the ids in
    files of masks become; none stand for themselves. `notes` say what a user may not expect: files
    passed over, an order of classes.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...] = ()
    content: str = ""
    ids: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Picture(NamedTuple):
    """An image at its own size, and what each of its pixels shows, if that is known.

    The image is in RGB, the mask in L. One that is `whole` fills its pixels to the edge: nothing
    of it is cut away.
    """

    image: Image.Image
    mask: Image.Image | None = None
    whole: bool = False
