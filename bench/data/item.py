"""One image of a data set: where it lies, what it shows, and what it was cut from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
