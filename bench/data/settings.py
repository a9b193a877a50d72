"""What a user may say of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.data.item import IGNORE
from bench.data.published import DATA_SETS, OWN
from bench.records.nouns import UserError

ON_DISK = frozenset({"folder", "masks", *OWN})
"""Loaders that read files of the user's."""


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What a suite says about one data set.

    `path` is relative to the data root, or absolute. `crops` counts per photograph, `max_images`
    per pool. `labels` numbers the files of a flat folder in sorted order where it is "sorted".
    Masks hold ids 0 .. `classes` - 1, or `ignore_index` where a pixel does not count. `targets`
    says what of Oxford-IIIT Pet is asked for. `dataset` names what should lie in a folder, for
    `bench check` to tell where to get it, and for `bench plan` to know its size before it is there.
    """

    loader: Literal[
        "digits", "photos", "digit-scenes", "folder", "masks", "oxford-pets", "foodseg103"
    ]
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
        for name, share in (("owner_share", self.owner_share), ("held_out", self.held_out)):
            if not 0.0 < share < 1.0:
                raise UserError(f"{name}: expected a share between 0 and 1, got {share}")
        for name, count in (("crops", self.crops), ("max_images", self.max_images)):
            if count is not None and count < 1:
                raise UserError(f"{name}: expected at least 1, got {count}")
        on_disk = self.loader in ON_DISK
        if on_disk != bool(self.path):
            wanted = "a folder" if on_disk else "none, the images are embedded"
            raise UserError(f"path: expected {wanted} (loader '{self.loader}'), got '{self.path}'")
        if self.loader == "masks" and not 2 <= (self.classes or 0) <= IGNORE:
            raise UserError(f"classes: expected how many ids masks hold, got {self.classes}")
        if self.loader != "masks" and (self.classes, self.ignore_index) != (None, None):
            setting = "ignore_index" if self.classes is None else "classes"
            raise UserError(f"{setting}: expected none without masks (loader '{self.loader}')")
        if self.targets != "classes" and self.loader != "oxford-pets":
            raise UserError(f"targets: expected none but of pets (loader '{self.loader}')")
        if self.dataset is not None and self.dataset not in DATA_SETS:
            known = ", ".join(DATA_SETS)
            raise UserError(f"dataset: expected one of {known}, got '{self.dataset}'")
        if self.dataset is not None and self.loader not in ("folder", "masks"):
            raise UserError(f"dataset: expected none (loader '{self.loader}')")

    @property
    def masked(self) -> bool:
        """Say whether classes are those of pixels, not of whole images."""
        trimaps = self.loader == "oxford-pets" and self.targets == "trimaps"
        return trimaps or self.loader in ("digit-scenes", "masks", "foodseg103")

    @property
    def published(self) -> str | None:
        """Name the published data set that this is, if it is one."""
        return self.dataset or OWN.get(self.loader)
