"""What a user may say of a data set, and the loaders that read one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.data.item import IGNORE, Listing
from bench.data.published import DATA_SETS, DataSet
from bench.records.nouns import UserError
from bench.records.plugins import Values
from bench.records.settings import nearest

Setting = Literal["classes", "ignore_index", "targets", "dataset"]
"""A setting that some loaders take; the others go with any."""


@dataclass(frozen=True, slots=True)
class Loader:
    """How data sets of one kind are listed and opened.

    `listed` is given the name that a suite calls the set, what it says of it, and its folder.
    `opened`, "module:function", is given the manifest and those of its items that are wanted, and
    returns a function from an item to its `Picture`. It is imported with the first pixel, and may
    need what listing does without; by default it opens the files that items name. Unless it is
    `on_disk` a set has no folder. `made_of` names the loaders whose images it shows, `download`
    fetches a set into the folder of relative paths.
    """

    summary: str
    listed: Callable[[str, DataSettings, Path], Listing]
    opened: str = "bench.data.images:files"
    on_disk: bool = True
    takes: frozenset[Setting] = frozenset()
    labelled: bool = True
    masked: bool = False
    made_of: tuple[str, ...] = ()
    published: DataSet | None = None
    download: Callable[[str, DataSettings, Path], None] | None = None


LOADERS = Values(
    "loader",
    Loader,
    key="loader",
    built_in={
        "digits": "bench.data.embedded:DIGITS",
        "photos": "bench.data.embedded:PHOTOS",
        "digit-scenes": "bench.data.embedded:DIGIT_SCENES",
        "folder": "bench.data.folders:FOLDER",
        "masks": "bench.data.folders:MASKS",
        "oxford-pets": "bench.data.layouts:OXFORD_PETS",
        "foodseg103": "bench.data.layouts:FOODSEG103",
    },
)
"""Every loader, by the name that `loader:` takes."""


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What a suite says about one data set.

    `path` is relative to the data root, or absolute. `crops` counts per photograph, `max_images`
    per pool. `labels` numbers the files of a flat folder in sorted order where it is "sorted".
    Masks hold ids 0 .. `classes` - 1, or `ignore_index` where a pixel does not count. `targets`
    says what of Oxford-IIIT Pet is asked for. `dataset` names what should lie in a folder, for
    `bench check` to tell where to get it, and for `bench plan` to know its size before it is there.
    """

    loader: str
    path: str = ""
    owner_share: float = 0.5
    held_out: float = 0.3
    crops: int = 64
    max_images: int | None = None
    labels: Literal["none", "sorted"] = "none"
    classes: int | None = None
    ignore_index: int | None = None
    targets: Literal["classes", "trimaps"] = "classes"
    dataset: str | None = None

    def __post_init__(self) -> None:
        loader = LOADERS.get(self.loader)
        for name, share in (("owner_share", self.owner_share), ("held_out", self.held_out)):
            if not 0.0 < share < 1.0:
                raise UserError(f"{name}: expected a share between 0 and 1, got {share}")
        for name, count in (("crops", self.crops), ("max_images", self.max_images)):
            if count is not None and count < 1:
                raise UserError(f"{name}: expected at least 1, got {count}")
        if loader.on_disk != bool(self.path):
            wanted = "a folder" if loader.on_disk else "none, the images are embedded"
            raise UserError(f"path: expected {wanted} (loader '{self.loader}'), got '{self.path}'")
        if self.dataset is not None and self.dataset not in DATA_SETS:
            known = ", ".join(DATA_SETS)
            raise UserError(f"dataset: expected one of {known}, got '{self.dataset}'")
        if "classes" in loader.takes and not 2 <= (self.classes or 0) <= IGNORE:
            got = "none" if self.classes is None else self.classes
            raise UserError(f"classes: expected how many ids masks hold, 2 to {IGNORE}, got {got}")
        given: dict[Setting, bool] = {
            "classes": self.classes is not None,
            "ignore_index": self.ignore_index is not None,
            "targets": self.targets != "classes",
            "dataset": self.dataset is not None,
        }
        for setting, value in given.items():
            if value and setting not in loader.takes:
                raise UserError(f"{setting}: expected none (loader '{self.loader}')")

    @property
    def masked(self) -> bool:
        """Say whether classes are those of pixels, not of whole images."""
        return LOADERS.get(self.loader).masked or self.targets == "trimaps"

    @property
    def labelled(self) -> bool:
        """Say whether images have labels, as far as that is known before they are there."""
        return LOADERS.get(self.loader).labelled and not self.masked

    @property
    def published(self) -> DataSet | None:
        """Return the published data set that this is, if it is one."""
        known = LOADERS.get(self.loader).published
        return known if self.dataset is None else DATA_SETS[self.dataset]


EMBEDDED = ("photos", "digits")
"""Data sets that come with the packages, by the names that stand for them beside a folder's."""


def described(
    images: str, labels: Literal["none", "sorted"] = "none", data_dir: Path | None = None
) -> DataSettings:
    """Return the data set that somebody names in a word: an embedded one, or a folder.

    Raises:
        UserError: it is neither, and the nearest name is asked for.

    """
    if images in EMBEDDED:
        return DataSettings(images)
    near = nearest(images, EMBEDDED)
    if near and not ((data_dir or Path()) / Path(images).expanduser()).is_dir():
        raise UserError(f"--images: expected a folder, photos or digits, got '{images}'{near}")
    return DataSettings("folder", path=images, labels=labels)
