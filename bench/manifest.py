"""List a data set's images, where each comes from and what it shows, and share it out to parties.

Five loaders: `digits` (1797 handwritten digits carried by scikit-learn), `photos` (square crops of
16 photographs carried by scikit-image and scikit-learn), `digit-scenes` (such digits on such crops,
with a mask that says which pixels show which digit), `folder` (files on disk, in class folders or
flat, with or without train/ and test/ above them) and `masks` (images/ and masks/, each flat or
with train/ and test/). Nothing is decoded here and nothing imports torch.
"""

from __future__ import annotations

import gzip
import importlib.util
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bench.files import file_digest
from bench.types import UserError, digest

VERSION = 1
"""Rises when the same files would give other pixels or other pools."""

SCENES_VERSION = 1
"""Rises when digits are put on photographs in another way."""

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

PHOTOGRAPHS = {
    name.partition(".")[0]: (package, f"{folder}/{name}")
    for package, folder, names in (
        (
            "skimage",
            "data",
            "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png "
            "gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png retina.jpg "
            "rocket.jpg",
        ),
        ("sklearn", "datasets/images", "china.jpg flower.jpg"),
    )
    for name in names.split()
}
"""Where each embedded photograph lies: its package, and the file inside it."""

IGNORE = 255
"""What a mask says, once loaded, where nothing is to be learnt or judged."""

Part = Literal["", "train", "test"]


@dataclass(frozen=True, slots=True)
class DataSettings:
    """What a suite says about one data set.

    `path` is relative to the data root, or absolute. `crops` counts per photograph, `max_images`
    per pool. `labels` numbers the files of a flat folder in sorted order where it is "sorted".
    Masks hold ids 0 .. `classes` - 1, or `ignore_index` where a pixel does not count.
    """

    loader: Literal["digits", "photos", "digit-scenes", "folder", "masks"]
    path: str = ""
    owner_share: float = 0.5
    held_out: float = 0.3
    crops: int = 64
    max_images: int | None = None
    labels: Literal["none", "sorted"] = "none"
    classes: int | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        for name, share in (("owner_share", self.owner_share), ("held_out", self.held_out)):
            if not 0.0 < share < 1.0:
                raise UserError(f"{name}: expected a share between 0 and 1, got {share}")
        for name, count in (("crops", self.crops), ("max_images", self.max_images)):
            if count is not None and count < 1:
                raise UserError(f"{name}: expected at least 1, got {count}")
        on_disk = self.loader in ("folder", "masks")
        if on_disk != bool(self.path):
            wanted = "a folder" if on_disk else "none, the images are embedded"
            raise UserError(f"path: expected {wanted} (loader '{self.loader}'), got '{self.path}'")
        if self.loader == "masks" and not 2 <= (self.classes or 0) <= IGNORE:
            raise UserError(f"classes: expected how many ids masks hold, got {self.classes}")
        if self.loader != "masks" and (self.classes, self.ignore_index) != (None, None):
            setting = "ignore_index" if self.classes is None else "classes"
            raise UserError(f"{setting}: expected none without masks (loader '{self.loader}')")


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
class Manifest:
    """A data set, listed. `digest` names pixels, labels, masks and pools; `root` is not in it."""

    name: str
    settings: DataSettings
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    digest: str
    root: Path | None = None

    @property
    def masked(self) -> bool:
        """Say whether classes are those of pixels, not of whole images."""
        return self.settings.loader in ("digit-scenes", "masks")


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
    content = ""  # for embedded images; a file's bytes are in its source
    if settings.loader == "digits":
        items, classes, content = _digits(), tuple("0123456789"), file_digest(digits_file())
    elif settings.loader == "photos":
        items = [Item(p, index=i) for p in PHOTOGRAPHS for i in range(settings.crops)]
        content = digest(*map(file_digest, map(photograph_file, PHOTOGRAPHS)))
    elif settings.loader == "digit-scenes":
        items = [Item(p, index=i) for p in PHOTOGRAPHS for i in range(settings.crops)]
        classes = ("background", *"0123456789")
        files = (digits_file(), *map(photograph_file, PHOTOGRAPHS))
        content = digest("scenes", SCENES_VERSION, *map(file_digest, files))
    elif settings.loader == "masks":
        root = _root(name, settings.path, data_dir)
        items, content = _masked(name, root)
        content = digest("masks", content, settings.ignore_index)
        classes = tuple(map(str, range(settings.classes or 0)))
    else:
        root = _root(name, settings.path, data_dir)
        items, classes = _folder(name, root, settings.labels == "sorted")
    images = [(i.source, i.label, i.index, i.part) for i in items]
    shares = (settings.owner_share, settings.held_out, settings.max_images)
    key = digest("images", VERSION, settings.loader, content, shares, images, classes)
    return Manifest(name, settings, tuple(items), classes, key, root)


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


def digits_for(photograph: str, digits: int) -> tuple[int, ...]:
    """List which of so many digits scenes on this photograph may show; they show in no others.

    Photographs and digits are dealt in the order in which `split` shares them out, so that at equal
    shares a party's scenes show the digits that are its own in the `digits` set as well.
    """
    ranked = sorted(range(digits), key=lambda i: digest(_digit(i)))
    at, count = sorted(PHOTOGRAPHS, key=digest).index(photograph), len(PHOTOGRAPHS)
    return tuple(ranked[round(at * digits / count) : round((at + 1) * digits / count)])


def digits_file() -> Path:
    """Return scikit-learn's table of digits: 64 values in 0..16 and the label, one digit a row."""
    return _packaged("sklearn", "datasets/data/digits.csv.gz")


def photograph_file(source: str) -> Path:
    """Return the file of an embedded photograph."""
    return _packaged(*PHOTOGRAPHS[source])


def _packaged(package: str, file: str) -> Path:
    # find_spec locates the package without the second that importing it costs.
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else Path(file)
    if not path.is_file():
        raise UserError(f"expected {package} to carry {file}, it does not; reinstall {package}")
    return path


def _digits() -> list[Item]:
    with gzip.open(digits_file(), "rt") as rows:
        labels = [int(row.rpartition(",")[2]) for row in rows]
    return [Item(_digit(i), label, index=i) for i, label in enumerate(labels)]


def _digit(number: int) -> str:
    return f"digit {number}"


def _root(name: str, path: str, data_dir: Path | None) -> Path:
    root = Path(path).expanduser() if data_dir is None else data_dir / Path(path).expanduser()
    if not root.is_absolute() and data_dir is None:
        raise UserError(f"data '{name}': give --data DIR or set BENCH_DATA to find '{path}'")
    if not root.is_dir():
        raise UserError(
            f"data '{name}': expected a folder, found none at {root}; "
            "--data DIR or BENCH_DATA sets where relative paths start"
        )
    return root


def _folder(name: str, root: Path, sorted_labels: bool) -> tuple[list[Item], tuple[str, ...]]:
    files = sorted(path.relative_to(root) for path in _images_under(root))
    if not files:
        raise UserError(f"data '{name}': expected images (jpg, png, webp, bmp), none in {root}")
    parted = _is_parted(name, root)
    inner = [Path(*file.parts[1:]) if parted else file for file in files]
    flat = {len(path.parts) == 1 for path in inner}
    if len(flat) > 1:
        stray = next(str(f) for f, p in zip(files, inner, strict=True) if len(p.parts) == 1)
        raise UserError(f"data '{name}': expected class folders only, got also '{stray}'")
    if sorted_labels and (parted or flat == {False}):
        raise UserError(f"data '{name}': labels 'sorted' expects a flat folder, got subfolders")
    names = [path.stem if sorted_labels else path.parts[0] for path in inner]
    classes = tuple(sorted(set(names))) if sorted_labels or flat == {False} else ()
    number = {c: i for i, c in enumerate(classes)}
    with ThreadPoolExecutor() as threads:
        sources = threads.map(file_digest, (root / file for file in files))
    items = [
        Item(source[:16], number.get(n), file.as_posix(), 0, _part(file) if parted else "")
        for source, n, file in zip(sources, names, files, strict=True)
    ]
    return items, classes


def _masked(name: str, root: Path) -> tuple[list[Item], str]:
    """List the images and their masks; the second value names the masks by their bytes."""
    absent = [part for part in ("images", "masks") if not (root / part).is_dir()]
    if absent:
        raise UserError(f"data '{name}': expected images/ and masks/ in {root}, no {absent[0]}/")
    listed, folders = _folder(name, root / "images", False)
    if folders:
        raise UserError(f"data '{name}': expected images without class folders, got '{folders[0]}'")
    masks = [Path("masks", i.file).with_suffix(".png").as_posix() for i in listed]
    lost = [mask for mask in masks if not (root / mask).is_file()]
    if lost:
        raise UserError(
            f"data '{name}': expected a mask for every image, found no {lost[0]} "
            f"({len(lost)} of {len(masks)} missing)"
        )
    with ThreadPoolExecutor() as threads:
        content = digest(*threads.map(file_digest, (root / mask for mask in masks)))
    items = [
        replace(item, file=f"images/{item.file}", mask=mask)
        for item, mask in zip(listed, masks, strict=True)
    ]
    return items, content


def _images_under(root: Path) -> Iterable[Path]:
    # Names with a leading dot are the leftovers of archivers, even where they end in .jpg.
    return (
        path
        for path in root.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    )


def _is_parted(name: str, root: Path) -> bool:
    there = {part for part in ("train", "test") if (root / part).is_dir()}
    others = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in there)
    if there and (len(there) == 1 or others):
        found = ", ".join([*sorted(there), *others])
        raise UserError(f"data '{name}': expected train/ and test/ alone or neither, got {found}")
    return bool(there)


def _part(file: Path) -> Part:
    return "test" if file.parts[0] == "test" else "train"


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
