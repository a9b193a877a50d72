"""List a data set's images, where each comes from and what it shows, and share it out to parties.

Embedded: `digits` (1797 handwritten digits carried by scikit-learn), `photos` (square crops of 16
photographs carried by scikit-image and scikit-learn) and `digit-scenes` (such digits on such crops,
with a mask that says which pixels show which digit). On disk: `folder` (in class folders or flat,
with or without train/ and test/, val/ or check/ above them), `masks` (images/ and masks/, each flat
or with train/ and test/), `oxford-pets` and `foodseg103` (as their authors lay them out). Nothing
is decoded here and nothing imports torch.
"""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bench.files import file_digest
from bench.published import DATA_SETS, OWN
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

ON_DISK = frozenset({"folder", "masks", *OWN})
"""Loaders that read files of the user's."""

TRIMAP: Mapping[int, int] = {1: 1, 2: 0, 3: 255}
"""What the ids of Oxford-IIIT Pet's trimaps become: pet 1, background 0, the border ignored."""

IGNORE = 255
"""What a mask says, once loaded, where nothing is to be learnt or judged."""

Part = Literal["", "train", "test"]


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
    elif settings.loader == "foodseg103":
        root = _root(name, settings.path, data_dir)
        items, classes, content = _foodseg(name, root)
    elif settings.loader == "oxford-pets":
        root = _root(name, settings.path, data_dir)
        items, classes = _pets(name, root)
        if settings.masked:
            items, classes, ids = _trimaps(name, root, items), ("background", "pet"), TRIMAP
            content = digest("trimaps", _content(root, items))
    else:
        root = _root(name, settings.path, data_dir)
        items, classes = _folder(name, root, settings.labels == "sorted")
    images = [(i.source, i.label, i.index, i.part) for i in items]
    shares = (settings.owner_share, settings.held_out, settings.max_images)
    key = digest("images", VERSION, settings.loader, content, shares, images, classes)
    return Manifest(name, settings, tuple(items), classes, key, root, ids)


def is_there(name: str, settings: DataSettings, data_dir: Path | None = None) -> bool:
    """Say whether the folder of a data set exists at all; embedded ones are always there."""
    try:
        return settings.loader not in ON_DISK or _root(name, settings.path, data_dir).is_dir()
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
    items = [
        Item(source, number.get(n), file.as_posix(), 0, _part(file) if parted else "")
        for source, n, file in zip(_sources(root, files), names, files, strict=True)
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
    _refuse_lost(name, root, masks, "a mask for every image")
    items = [
        replace(item, file=f"images/{item.file}", mask=mask)
        for item, mask in zip(listed, masks, strict=True)
    ]
    return items, _content(root, items)


def _pets(name: str, root: Path) -> tuple[list[Item], tuple[str, ...]]:
    """List Oxford-IIIT Pet by its own lists, with the breeds as classes; trainval is train."""
    lists: tuple[tuple[Part, Path], ...] = (
        ("train", root / "annotations" / "trainval.txt"),
        ("test", root / "annotations" / "test.txt"),
    )
    listed: list[tuple[str, int, Part]] = []
    for part, file in lists:
        for number, line in _lines(name, root, file):
            found = re.fullmatch(r"(\S+)\s+([1-9]\d*)\s+\d+\s+\d+", line)
            if found is None:
                raise UserError(
                    f"data '{name}': {file.relative_to(root)}:{number}: expected an image, its "
                    f"class from 1 on, species and breed, got '{line:.60}'"
                )
            listed.append((found[1], int(found[2]), part))
    breeds = {label: image.rpartition("_")[0] for image, label, _ in listed}
    if sorted(breeds) != list(range(1, len(breeds) + 1)):
        lost = next(i for i in itertools.count(1) if i not in breeds)
        raise UserError(
            f"data '{name}': expected classes 1 .. {max(breeds)}, no image is of {lost}"
        )
    files = [f"images/{image}.jpg" for image, _, _ in listed]
    _refuse_lost(name, root, files, "the images that annotations/ lists")
    sources = _sources(root, files)
    items = [
        Item(source, label - 1, file, part=part)
        for source, file, (_, label, part) in zip(sources, files, listed, strict=True)
    ]
    return items, tuple(breeds[label] for label in sorted(breeds))


def _trimaps(name: str, root: Path, items: Sequence[Item]) -> list[Item]:
    masks = [f"annotations/trimaps/{Path(item.file).stem}.png" for item in items]
    _refuse_lost(name, root, masks, "a trimap for every image")
    return [replace(i, label=None, mask=mask) for i, mask in zip(items, masks, strict=True)]


def _foodseg(name: str, root: Path) -> tuple[list[Item], tuple[str, ...], str]:
    """List FoodSeg103 by its folders and name its classes by category_id.txt, background first."""
    names = list[str]()
    for number, line in _lines(name, root, root / "category_id.txt"):
        found = re.fullmatch(r"(\d+)\s+(\S.*)", line)
        if found is None or int(found[1]) != len(names):
            raise UserError(
                f"data '{name}': category_id.txt:{number}: expected '{len(names)}' and the name "
                f"of that class, got '{line:.60}'"
            )
        names.append(found[2])
    if not 2 <= len(names) <= IGNORE:
        raise UserError(f"data '{name}': expected 2 to {IGNORE} classes, got {len(names)}")
    files, masks = list[str](), list[str]()
    for part in ("train", "test"):
        pictures = root / "Images" / "img_dir" / part
        if not pictures.is_dir():
            raise UserError(f"data '{name}': expected Images/img_dir/{part}/ in {root}, found none")
        found_here = sorted(path.name for path in _images_under(pictures))
        files += [f"Images/img_dir/{part}/{file}" for file in found_here]
        masks += [f"Images/ann_dir/{part}/{Path(file).stem}.png" for file in found_here]
    if not files:
        raise UserError(f"data '{name}': expected images in Images/img_dir/, none in {root}")
    _refuse_lost(name, root, masks, "a mask for every image")
    items = [
        Item(source, None, file, part=_part(Path(file).relative_to("Images/img_dir")), mask=mask)
        for source, file, mask in zip(_sources(root, files), files, masks, strict=True)
    ]
    return items, tuple(names), digest("foodseg103", _content(root, items))


def _lines(name: str, root: Path, file: Path) -> list[tuple[int, str]]:
    """Read a data set's own list, numbered, without empty lines and comments."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"data '{name}': expected {file.relative_to(root)} in {root}, found none"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"data '{name}': {file.relative_to(root)}: this is not text") from None
    lines = enumerate((line.strip() for line in text.splitlines()), 1)
    found = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not found:
        raise UserError(f"data '{name}': {file.relative_to(root)}: expected a list, it is empty")
    return found


def _refuse_lost(name: str, root: Path, files: Sequence[str], wanted: str) -> None:
    lost = [file for file in files if not (root / file).is_file()]
    if lost:
        raise UserError(
            f"data '{name}': expected {wanted}, found no {lost[0]} "
            f"({len(lost)} of {len(files)} missing)"
        )


def _sources(root: Path, files: Iterable[str | Path]) -> list[str]:
    """Name files by their bytes."""
    with ThreadPoolExecutor() as threads:
        return [found[:16] for found in threads.map(file_digest, (root / file for file in files))]


def _content(root: Path, items: Iterable[Item]) -> str:
    """Name the masks of a data set by their bytes."""
    with ThreadPoolExecutor() as threads:
        return digest(*threads.map(file_digest, (root / item.mask for item in items)))


def _images_under(root: Path) -> Iterable[Path]:
    # Names with a leading dot are the leftovers of archivers, even where they end in .jpg.
    return (
        path
        for path in root.rglob("*")
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
    )


def _is_parted(name: str, root: Path) -> bool:
    there = {part for part in ("train", "test") if (root / part).is_dir()}
    if "train" in there:  # without it a folder of such a name is a class
        there |= {part for part in ("val", "check") if (root / part).is_dir()}
    others = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in there)
    if there and (len(there) == 1 or others):
        found = ", ".join([*sorted(there), *others])
        raise UserError(
            f"data '{name}': expected train/ beside test/, val/ or check/ alone, or none of them, "
            f"got {found}"
        )
    return bool(there)


def _part(file: Path) -> Part:
    return "train" if file.parts[0] == "train" else "test"


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
