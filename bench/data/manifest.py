"""List a data set's images, where each comes from and what it shows, and share it out to parties.

Embedded: `digits` (1797 handwritten digits carried by scikit-learn), `photos` (square crops of 16
photographs carried by scikit-image and scikit-learn) and `digit-scenes` (such digits on such crops,
with a mask that says which pixels show which digit). On disk: `folder` (in class folders or flat,
with or without train/ and test/, val/ or check/ above them), `masks` (images/ and masks/, each flat
or with train/ and test/), `oxford-pets` and `foodseg103` (as their authors lay them out). Nothing
is decoded here and nothing imports torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.data import embedded, folders, layouts
from bench.data.item import Item, Part
from bench.data.published import DATA_SETS
from bench.data.settings import ON_DISK, DataSettings
from bench.records.files import file_digest
from bench.records.nouns import UserError, digest

VERSION = 1
"""Rises when the same files would give other pixels or other pools."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A data set, listed. `digest` names pixels, labels, masks and pools; `root` is not in it.

    `ids` says what the ids in files of masks become; none stand for themselves.
    """

    name: str
    settings: DataSettings
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    digest: str
    root: Path | None = None
    ids: Mapping[int, int] = field(default_factory=dict)

    @property
    def masked(self) -> bool:
        """Say whether classes are those of pixels, not of whole images."""
        return self.settings.masked


@dataclass(frozen=True, slots=True)
class Pools:
    """Who may use which items, by position in the manifest; no source is in two of the four."""

    owner_images: tuple[int, ...]
    owner_held_out: tuple[int, ...]
    thief_images: tuple[int, ...]
    thief_held_out: tuple[int, ...]


def read(name: str, settings: DataSettings, data_dir: Path | None = None) -> Manifest:
    """List the data set a suite calls `name`; a relative path starts at `data_dir`."""
    root: Path | None = None
    classes: tuple[str, ...] = ()
    ids: Mapping[int, int] = {}
    content = ""  # for embedded images; a file's bytes are in its source
    if settings.loader == "digits":
        items, classes, content = (
            embedded.digits(),
            tuple("0123456789"),
            file_digest(embedded.digits_file()),
        )
    elif settings.loader == "photos":
        items = [Item(p, index=i) for p in embedded.PHOTOGRAPHS for i in range(settings.crops)]
        content = digest(*map(file_digest, map(embedded.photograph_file, embedded.PHOTOGRAPHS)))
    elif settings.loader == "digit-scenes":
        items = [Item(p, index=i) for p in embedded.PHOTOGRAPHS for i in range(settings.crops)]
        classes = ("background", *"0123456789")
        files = (embedded.digits_file(), *map(embedded.photograph_file, embedded.PHOTOGRAPHS))
        content = digest("scenes", embedded.SCENES_VERSION, *map(file_digest, files))
    elif settings.loader == "masks":
        root = folders.root_of(name, settings.path, data_dir)
        items, content = folders.with_masks(name, root)
        content = digest("masks", content, settings.ignore_index)
        classes = tuple(map(str, range(settings.classes or 0)))
    elif settings.loader == "foodseg103":
        root = folders.root_of(name, settings.path, data_dir)
        items, classes, content = layouts.foodseg(name, root)
    elif settings.loader == "oxford-pets":
        root = folders.root_of(name, settings.path, data_dir)
        items, classes = layouts.pets(name, root)
        if settings.masked:
            items, classes, ids = (
                layouts.trimaps(name, root, items),
                ("background", "pet"),
                layouts.TRIMAP,
            )
            content = digest("trimaps", folders.content(root, items))
    else:
        root = folders.root_of(name, settings.path, data_dir)
        items, classes = folders.class_folders(name, root, settings.labels == "sorted")
    images = [(i.source, i.label, i.index, i.part) for i in items]
    shares = (settings.owner_share, settings.held_out, settings.max_images)
    key = digest("images", VERSION, settings.loader, content, shares, images, classes)
    return Manifest(name, settings, tuple(items), classes, key, root, ids)


def is_there(name: str, settings: DataSettings, data_dir: Path | None = None) -> bool:
    """Say whether the folder of a data set exists at all; embedded ones are always there."""
    try:
        return (
            settings.loader not in ON_DISK
            or folders.root_of(name, settings.path, data_dir).is_dir()
        )
    except UserError:
        return False


def assumed(name: str, settings: DataSettings) -> Manifest | None:
    """List a published data set that is not there, as large as its authors say; for plans only."""
    if settings.published is None:
        return None
    known = DATA_SETS[settings.published]
    count, trained = range(known.images), known.images - known.tested
    parts: list[Part] = [
        ("train" if i < trained else "test") if known.tested else "" for i in count
    ]
    labels = [None if settings.masked else i % known.classes for i in count]
    items = tuple(
        Item(f"{name} {i}", label, f"{i}.jpg", part=part)
        for i, label, part in zip(count, labels, parts, strict=True)
    )
    classes = (
        ("background", "pet")
        if settings.loader == "oxford-pets" and settings.masked
        else (tuple(map(str, range(known.classes))))
    )
    key = digest("assumed", settings.published, settings.owner_share, settings.held_out, name)
    return Manifest(name, settings, items, classes, key)


def split(manifest: Manifest) -> Pools:
    """Share the sources out: first between the parties, then into images and held-out images.

    The order is that of the hashed source names, so nothing is drawn. A folder's own train/ and
    test/ serve as images and held-out images instead. Crops of several photographs alternate.
    """
    groups: dict[str, list[int]] = {}
    for position, item in enumerate(manifest.items):
        groups.setdefault(item.source, []).append(position)
    ordered = sorted(groups, key=digest)
    share, kept = manifest.settings.owner_share, 1 - manifest.settings.held_out
    # A file in both train/ and test/ counts as test: it must not be trained on.
    tested = {item.source for item in manifest.items if item.part == "test"}
    if any(item.part for item in manifest.items):
        owner_images, thief_images = _cut(manifest, [s for s in ordered if s not in tested], share)
        owner_held, thief_held = _cut(manifest, [s for s in ordered if s in tested], share)
    else:
        owner, thief = _cut(manifest, ordered, share)
        owner_images, owner_held = _cut(manifest, owner, kept)
        thief_images, thief_held = _cut(manifest, thief, kept)
    limit = manifest.settings.max_images
    pools = (owner_images, owner_held, thief_images, thief_held)
    return Pools(*(_alternate([groups[s] for s in pool])[:limit] for pool in pools))


def _cut(manifest: Manifest, sources: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    if len(sources) < 2:
        raise UserError(
            f"data '{manifest.name}': expected two sources or more in every share to be divided, "
            f"got {len(sources)}; add images or change owner_share and held_out"
        )
    first = min(max(round(share * len(sources)), 1), len(sources) - 1)
    return list(sources[:first]), list(sources[first:])


def _alternate(groups: Iterable[Sequence[int]]) -> tuple[int, ...]:
    # One item of each source in turn, so that a limit thins every source alike.
    turns = itertools.zip_longest(*groups)
    return tuple(item for turn in turns for item in turn if item is not None)
