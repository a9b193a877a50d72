"""List a data set's images, where each comes from and what it shows, and share it out to parties.

What can be listed stands in `LOADERS`. Nothing is decoded here and nothing imports torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.data import folders
from bench.data.item import Item, Listing, Part
from bench.data.settings import LOADERS, DataSettings
from bench.records.nouns import UserError, digest

VERSION = 1
"""Rises when a listing would give other pools."""

FILES_VERSION = 2
"""Rises when the same files would give other pixels; what is drawn has versions of its own."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A data set, listed. `digest` names pixels, labels, masks and pools; `root` is not in it.

    `ids` says what the ids in files of masks become; none stand for themselves. `notes` say what
    was understood that a user may not expect.
    """

    name: str
    settings: DataSettings
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    digest: str
    root: Path | None = None
    ids: Mapping[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
    loader = LOADERS.get(settings.loader)
    root = folders.root_of(name, settings.path, data_dir) if loader.on_disk else None
    found = loader.listed(name, settings, root or Path())
    _refuse_wrong(f"data '{name}': loader '{settings.loader}'", found, settings.masked)
    images = [(i.source, i.label, i.index, i.part) for i in found.items]
    shares = (settings.owner_share, settings.held_out, settings.max_images)
    version = FILES_VERSION if loader.on_disk else VERSION
    key = digest("images", version, settings.loader, found.content, shares, images, found.classes)
    return Manifest(name, settings, found.items, found.classes, key, root, found.ids, found.notes)


def _refuse_wrong(who: str, found: Listing, masked: bool) -> None:
    """Refuse what a loader may not return, before it is trained on."""
    if not isinstance(found, Listing):
        raise UserError(f"{who}: expected a Listing, got {type(found).__name__}")
    if not found.classes or masked:
        return
    numbers = range(len(found.classes))
    for item in found.items:
        if item.label not in numbers:
            raise UserError(
                f"{who}: expected labels 0..{numbers[-1]}, one an image, "
                f"got {item.label} of {item.file or item.source}"
            )


def is_there(name: str, settings: DataSettings, data_dir: Path | None = None) -> bool:
    """Say whether the folder of a data set exists at all; embedded ones are always there."""
    if not LOADERS.get(settings.loader).on_disk:
        return True
    try:
        return folders.root_of(name, settings.path, data_dir).is_dir()
    except UserError:
        return False


def assumed(name: str, settings: DataSettings) -> Manifest | None:
    """List a published data set that is not there, as large as its authors say; for plans only."""
    known = settings.published
    if known is None:
        return None
    count, trained = range(known.images), known.images - known.tested
    parts: list[Part] = [
        ("train" if i < trained else "test") if known.tested else "" for i in count
    ]
    labels = [None if settings.masked else i % known.classes for i in count]
    items = tuple(
        Item(f"{name} {i}", label, f"{i}.jpg", part=part)
        for i, label, part in zip(count, labels, parts, strict=True)
    )
    key = digest("assumed", known.name, settings.owner_share, settings.held_out, name)
    return Manifest(name, settings, items, known.classes_of(settings.targets), key)


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
        files, alike = len(manifest.items), len({item.source for item in manifest.items})
        of = f" (of {files} images, {alike} of them different)" if alike < files else ""
        raise UserError(
            f"data '{manifest.name}': expected two sources or more in every share to be divided, "
            f"got {len(sources)}{of}; add images or change owner_share and held_out"
        )
    first = min(max(round(share * len(sources)), 1), len(sources) - 1)
    return list(sources[:first]), list(sources[first:])


def _alternate(groups: Iterable[Sequence[int]]) -> tuple[int, ...]:
    # One item of each source in turn, so that a limit thins every source alike.
    turns = itertools.zip_longest(*groups)
    return tuple(item for turn in turns for item in turn if item is not None)


def shared(manifests: Mapping[str, Manifest]) -> Iterator[str]:
    """Warn of images that one data set gives the owner and another gives the thief."""
    for (ours, one), (theirs, other) in itertools.permutations(manifests.items(), 2):
        if {i.source for i in one.items}.isdisjoint(i.source for i in other.items):
            continue
        mine, yours = split(one), split(other)
        owner = {one.items[i].source for i in mine.owner_images + mine.owner_held_out}
        thief = {other.items[i].source for i in yours.thief_images + yours.thief_held_out}
        if both := len(owner & thief):
            yield (
                f"data {ours} gives the owner {both} images that data {theirs} gives the thief: "
                "the two share what they must not"
            )
