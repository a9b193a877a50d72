"""List a user's own folders of images, of classes or of masks."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench.data.item import Item, Listing, Part
from bench.data.settings import DataSettings, Loader
from bench.records.files import file_digest
from bench.records.nouns import UserError, digest
from bench.records.settings import nearest

MASKS_IN = (".png", ".tif", ".tiff", ".bmp", ".tga", ".pgm", ".ppm", ".pnm")
"""What a file of masks is called: kinds that keep every id, as JPEG does not."""

EXTENSIONS = frozenset(
    {*MASKS_IN, ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".webp", ".avif", ".jp2", ".dib", ".pbm"}
)
"""What a file is called that is read as an image, whatever its case."""

LEFTOVERS = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN"})
"""Folders that archivers and file systems leave behind; so are all names with a leading dot."""

PACKED = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})
"""What a file is called that holds a folder."""

PARTS = frozenset(["train", "training", "test", "testing", "val", "valid", "validation", "check"])
"""Names of folders that divide a data set, and are hardly ever those of all its classes."""


MOST_WAYS = 256
"""Ways by which links may lead to one folder; more is a net of links, which has no end."""


def root_of(name: str, path: str, data_dir: Path | None) -> Path:
    """Return the folder of a data set, or say where it was looked for."""
    root = Path(path).expanduser() if data_dir is None else data_dir / Path(path).expanduser()
    if not root.is_absolute() and data_dir is None:
        raise UserError(f"data '{name}': give --data DIR or set BENCH_DATA to find '{path}'")
    if root.is_file():
        way_out = "unpack it" if root.suffix.lower() in PACKED else "name the folder it lies in"
        raise UserError(f"data '{name}': expected a folder, got a file at {root}; {way_out}")
    if not root.is_dir():
        raise UserError(
            f"data '{name}': expected a folder, found none at {root}{_folder_near(root)}; "
            "--data DIR or BENCH_DATA sets where relative paths start"
        )
    return root


def _folder_near(root: Path) -> str:
    """Ask whether a folder of a name near this one was meant, if one stands beside it."""
    above = root.parent
    return nearest(root.name, _folders(above)) if above.is_dir() else ""


def _folder(name: str, settings: DataSettings, root: Path) -> Listing:
    found = _class_folders(name, root, settings.labels == "sorted")
    if len(found.classes) != 1:
        return found
    alone = f"one class, '{found.classes[0]}': nothing to tell apart, its images have no labels"
    items = tuple(replace(item, label=None) for item in found.items)
    return Listing(items, notes=(*found.notes, alone))


def _class_folders(name: str, root: Path, sorted_labels: bool) -> Listing:
    """List a folder of images and name its classes, if it has any."""
    found = list(_walk(name, root))
    files = sorted(path.relative_to(root) for path in found if _is_image(path))
    if not files:
        others = _endings(path for path in found if not _is_hidden(path.name))
        raise UserError(
            f"data '{name}': expected images ({_known(EXTENSIONS)}), none in {root}"
            f"{f'; got {others}' if others else ''}"
        )
    parted = _is_parted(name, root)
    inner = [Path(*file.parts[1:]) if parted else file for file in files]
    flat = {len(path.parts) == 1 for path in inner}
    if len(flat) > 1:
        stray = next(str(f) for f, p in zip(files, inner, strict=True) if len(p.parts) == 1)
        raise UserError(f"data '{name}': expected class folders only, got also '{stray}'")
    if sorted_labels and (parted or flat == {False}):
        raise UserError(f"data '{name}': labels 'sorted' expects a flat folder, got subfolders")
    if sorted_labels:
        refuse_twins(name, files, "one file a class")
    names = [path.stem if sorted_labels else path.parts[0] for path in inner]
    classes = in_order(set(names)) if sorted_labels or flat == {False} else ()
    if flat == {False}:
        _refuse_empty_classes(name, root, parted, {file.parts[: 1 + parted] for file in files})
    number = {c: i for i, c in enumerate(classes)}
    items = tuple(
        Item(source, number.get(n), file.as_posix(), 0, part_of(file) if parted else "")
        for source, n, file in zip(sources(root, files), names, files, strict=True)
    )
    notes = (*_passed_over(root, found), *_order(classes), *_doubles(items))
    return Listing(items, classes, notes=notes)


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Sort names of classes: as numbers where all of them are whole numbers, else as text."""
    if _are_whole(names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _are_whole(names: Collection[str]) -> bool:
    return all(re.fullmatch("-?[0-9]+", name) for name in names)


def _order(classes: tuple[str, ...]) -> Iterator[str]:
    """Say where the order of classes is not that of their names' letters, or of their numbers."""
    if not classes or not _are_whole(classes):
        return
    first, last = classes[0], classes[-1]
    counted = [int(name) for name in classes] == list(range(len(classes)))
    if classes != tuple(sorted(classes)):
        yield f"classes {first} .. {last} are in the order of numbers, not of letters"
    if not counted:
        yield f"class {first} is label 0 and class {last} is label {len(classes) - 1}"


def _doubles(items: Sequence[Item]) -> Iterator[str]:
    """Say which images are there twice: under two labels, or encoded in two ways."""
    labels: dict[str, Item] = {}
    for item in items:
        other = labels.setdefault(item.source, item)
        if other.label != item.label:
            yield f"{other.file} and {item.file} are one image under two labels"
            break
    stems = Counter(Path(item.file).with_suffix("").as_posix() for item in items)
    if twice := [stem for stem, count in stems.items() if count > 1]:
        yield (
            f"{len(twice)} names stand for several files, such as {twice[0]}: one image in two "
            "encodings would be shared by owner and thief"
        )


def _passed_over(root: Path, found: Sequence[Path]) -> Iterator[str]:
    """Say which files and folders are no part of the data set, and why."""
    if hidden := sorted({path.name for path in found if _is_hidden(path.name)}):
        more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
        yield f"passed over {hidden[0]}{more}: hidden, or left by an archiver"
    others = [path for path in found if not _is_image(path) and not _is_hidden(path.name)]
    if others:
        yield f"passed over what is no image: {_endings(others)}"


def _endings(paths: Iterable[Path]) -> str:
    """Count files by how their names end: 3 .txt, 1 .heic."""
    counts = Counter(path.suffix.lower() or "without ending" for path in paths)
    return ", ".join(f"{count} {ending}" for ending, count in counts.most_common(5))


def _known(extensions: Iterable[str]) -> str:
    return ", ".join(sorted(extension[1:] for extension in extensions))


def _masks(name: str, settings: DataSettings, root: Path) -> Listing:
    absent = [part for part in ("images", "masks") if not (root / part).is_dir()]
    if absent:
        got = ", ".join(f"{folder}/" for folder in _folders(root)[:5]) or "no folder"
        raise UserError(
            f"data '{name}': expected images/ and masks/ in {root}, no {absent[0]}/, got {got}; "
            "rename it"
        )
    listed = _class_folders(name, root / "images", False)
    if listed.classes:
        got = listed.classes[0]
        raise UserError(f"data '{name}': expected images without class folders, got '{got}'")
    files = [Path(item.file) for item in listed.items]
    refuse_twins(name, files, "one image a mask")
    there = _masks_by_stem(name, root / "masks")
    stems = [file.with_suffix("").as_posix() for file in files]
    masks = [f"masks/{there.get(stem, f'{stem}.png')}" for stem in stems]
    refuse_lost(name, root, masks, "a mask for every image", _no_masks(root, stems, there))
    items = tuple(
        replace(item, file=f"images/{item.file}", mask=mask)
        for item, mask in zip(listed.items, masks, strict=True)
    )
    content = digest("masks", masks_digest(root, items), settings.ignore_index)
    notes = listed.notes
    if spare := sorted(there.keys() - set(stems)):
        first = there[spare[0]]
        notes += (f"passed over {len(spare)} masks without an image, such as {first}",)
    return Listing(items, tuple(map(str, range(settings.classes or 0))), content, notes=notes)


def _no_masks(root: Path, stems: Sequence[str], there: Mapping[str, str]) -> str:
    """Say what lies among masks in the place of the first one that is not there, if anything."""
    lacking = next((Path(stem).name for stem in stems if stem not in there), None)
    if lacking is None:
        return ""
    others = sorted(path.name for path in (root / "masks").rglob(f"{glob.escape(lacking)}[!0-9]*"))
    way_out = f"masks are called like their images, and end in {_known(MASKS_IN)}"
    return f", got {others[0]}; {way_out}" if others else ""


def _masks_by_stem(name: str, root: Path) -> dict[str, str]:
    """Find every mask below a folder by its name without ending."""
    found = [path.relative_to(root) for path in _walk(name, root) if not _is_hidden(path.name)]
    masks = sorted(path for path in found if path.suffix.lower() in MASKS_IN)
    refuse_twins(name, masks, "one mask an image")
    return {path.with_suffix("").as_posix(): path.as_posix() for path in masks}


def refuse_twins(name: str, files: Iterable[Path], wanted: str) -> None:
    """Refuse files that differ in nothing but how their names end."""
    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(file.with_suffix("").as_posix(), file)
        if other is not file:
            raise UserError(
                f"data '{name}': expected {wanted}, got both {other.as_posix()} and {file.name}"
            )


def lines(name: str, root: Path, file: Path) -> list[tuple[int, str]]:
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


def refuse_lost(
    name: str, root: Path, files: Sequence[str], wanted: str, instead: str = ""
) -> None:
    """Refuse a data set some of whose files are missing; say how many, and what was found."""
    lost = [file for file in files if not (root / file).is_file()]
    if lost:
        raise UserError(
            f"data '{name}': expected {wanted}, found no {lost[0]} "
            f"({len(lost)} of {len(files)} missing){instead}"
        )


def sources(root: Path, files: Iterable[str | Path]) -> list[str]:
    """Name files by their bytes."""
    with ThreadPoolExecutor() as threads:
        return [found[:16] for found in threads.map(file_digest, (root / file for file in files))]


def masks_digest(root: Path, items: Iterable[Item]) -> str:
    """Name the masks of a data set by their bytes."""
    with ThreadPoolExecutor() as threads:
        return digest(*threads.map(file_digest, (root / item.mask for item in items)))


def images_under(name: str, root: Path) -> Iterator[Path]:
    """Yield every image below a folder."""
    return (path for path in _walk(name, root) if _is_image(path))


Mark = tuple[int, int]
"""What tells folders apart, whatever they are called: a device, and a number on it."""


def _walk(
    name: str,
    root: Path,
    above: frozenset[Mark] = frozenset(),
    met: Counter[Mark] | None = None,
) -> Iterator[Path]:
    """Yield every file below a folder, links followed but into no loop, and what is hidden as such.

    Raises:
        UserError: a folder may not be read, or links lead to it without end; an image is empty, no
            file, or a link to nowhere.

    """
    met = Counter() if met is None else met
    try:
        known = root.stat()
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"data '{name}': {root}: cannot be read ({error.strerror})") from None
    mark = (known.st_dev, known.st_ino)
    if mark in above:
        return
    met[mark] += 1
    if met[mark] > MOST_WAYS:
        raise UserError(
            f"data '{name}': {root}: expected few links to one folder, got more than {MOST_WAYS} "
            "ways to it; remove links between folders"
        )
    for entry in entries:
        path = Path(entry.path)
        if not _is_hidden(entry.name) and _is_folder(entry):
            yield from _walk(name, path, above | {mark}, met)
            continue
        if _is_image(path):
            _refuse_no_file(name, path)
        yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: what it is called says whether an image was expected
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFTOVERS


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not _is_hidden(path.name)


def _refuse_no_file(name: str, path: Path) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"data '{name}': {path}: expected an image ({error.strerror})") from None
    if not os.access(path, os.R_OK):
        raise UserError(f"data '{name}': {path}: cannot be read; change its permissions")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"data '{name}': {path}: expected an image, got what is no file")
    if found.st_size == 0:
        raise UserError(
            f"data '{name}': {path}: expected an image, got an empty file; copy it again"
        )


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not _is_hidden(p.name))


def _refuse_empty_classes(
    name: str, root: Path, parted: bool, shown: Collection[tuple[str, ...]]
) -> None:
    """Refuse folders that would be classes if there were an image in them."""
    for base in [root / part for part in _folders(root)] if parted else [root]:
        for folder in _folders(base):
            if (base / folder).relative_to(root).parts in shown:
                continue
            others = _endings(_walk(name, base / folder)) or "nothing"
            raise UserError(
                f"data '{name}': expected images ({_known(EXTENSIONS)}) in every class folder, "
                f"got {others} in {(base / folder).relative_to(root)}/; remove it or convert them"
            )


def _is_parted(name: str, root: Path) -> bool:
    folders = _folders(root)
    there = {folder for folder in folders if folder in ("train", "test")}
    if "train" in there:  # without it a folder of such a name is a class
        there |= {folder for folder in folders if folder in ("val", "check")}
    others = [folder for folder in folders if folder not in there]
    divided = bool(folders) and all(folder.lower() in PARTS for folder in folders)
    if (there and (len(there) == 1 or others)) or (divided and others):
        found = ", ".join([*sorted(there), *others])
        raise UserError(
            f"data '{name}': expected train/ beside test/, val/ or check/ alone, or none of them, "
            f"got {found}"
        )
    return bool(there)


def part_of(file: Path) -> Part:
    """Say which part of a divided data set a file lies in."""
    return "train" if file.parts[0] == "train" else "test"


FOLDER = Loader(
    "your images: path/class/file, or path/{train,test}/class/file",
    listed=_folder,
    takes=frozenset({"dataset"}),
)

MASKS = Loader(
    "your images and masks: path/images/... and path/masks/...",
    listed=_masks,
    takes=frozenset({"classes", "ignore_index", "dataset"}),
    masked=True,
)
