"""List a user's own folders of images, of classes or of masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bench.data.item import Item, Listing, Part
from bench.data.settings import DataSettings, Loader
from bench.records.files import file_digest
from bench.records.nouns import UserError, digest

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def root_of(name: str, path: str, data_dir: Path | None) -> Path:
    """Return the folder of a data set, or say where it was looked for."""
    root = Path(path).expanduser() if data_dir is None else data_dir / Path(path).expanduser()
    if not root.is_absolute() and data_dir is None:
        raise UserError(f"data '{name}': give --data DIR or set BENCH_DATA to find '{path}'")
    if not root.is_dir():
        raise UserError(
            f"data '{name}': expected a folder, found none at {root}; "
            "--data DIR or BENCH_DATA sets where relative paths start"
        )
    return root


def _folder(name: str, settings: DataSettings, root: Path) -> Listing:
    items, classes = _class_folders(name, root, settings.labels == "sorted")
    return Listing(tuple(items), classes)


def _class_folders(
    name: str, root: Path, sorted_labels: bool
) -> tuple[list[Item], tuple[str, ...]]:
    """List a folder of images and name its classes, if it has any."""
    files = sorted(path.relative_to(root) for path in images_under(root))
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
        Item(source, number.get(n), file.as_posix(), 0, part_of(file) if parted else "")
        for source, n, file in zip(sources(root, files), names, files, strict=True)
    ]
    return items, classes


def _masks(name: str, settings: DataSettings, root: Path) -> Listing:
    absent = [part for part in ("images", "masks") if not (root / part).is_dir()]
    if absent:
        raise UserError(f"data '{name}': expected images/ and masks/ in {root}, no {absent[0]}/")
    listed, folders = _class_folders(name, root / "images", False)
    if folders:
        raise UserError(f"data '{name}': expected images without class folders, got '{folders[0]}'")
    masks = [Path("masks", i.file).with_suffix(".png").as_posix() for i in listed]
    refuse_lost(name, root, masks, "a mask for every image")
    items = tuple(
        replace(item, file=f"images/{item.file}", mask=mask)
        for item, mask in zip(listed, masks, strict=True)
    )
    content = digest("masks", masks_digest(root, items), settings.ignore_index)
    return Listing(items, tuple(map(str, range(settings.classes or 0))), content)


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


def refuse_lost(name: str, root: Path, files: Sequence[str], wanted: str) -> None:
    """Refuse a data set some of whose files are missing; say how many."""
    lost = [file for file in files if not (root / file).is_file()]
    if lost:
        raise UserError(
            f"data '{name}': expected {wanted}, found no {lost[0]} "
            f"({len(lost)} of {len(files)} missing)"
        )


def sources(root: Path, files: Iterable[str | Path]) -> list[str]:
    """Name files by their bytes."""
    with ThreadPoolExecutor() as threads:
        return [found[:16] for found in threads.map(file_digest, (root / file for file in files))]


def masks_digest(root: Path, items: Iterable[Item]) -> str:
    """Name the masks of a data set by their bytes."""
    with ThreadPoolExecutor() as threads:
        return digest(*threads.map(file_digest, (root / item.mask for item in items)))


def images_under(root: Path) -> Iterable[Path]:
    """Yield every image below a folder."""
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
