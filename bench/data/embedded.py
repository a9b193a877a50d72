"""What comes with the packages: photographs, digits, and the weights of `mini`."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

from bench.data.item import Item, Listing
from bench.data.settings import DataSettings, Loader
from bench.records.files import file_digest
from bench.records.nouns import UserError, digest

SCENES_VERSION = 1
"""Rises when digits are put on photographs in another way."""

WEIGHTS = Path(__file__).parent / "weights"
"""Where the weights of `mini` lie, and the card that says how they were made."""

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


def _digits(_name: str, _settings: DataSettings, _root: Path) -> Listing:
    """List scikit-learn's digits, each its own source."""
    with gzip.open(digits_file(), "rt") as rows:
        labels = [int(row.rpartition(",")[2]) for row in rows]
    items = tuple(Item(_digit(i), label, index=i) for i, label in enumerate(labels))
    return Listing(items, tuple("0123456789"), file_digest(digits_file()))


def _digit(number: int) -> str:
    return f"digit {number}"


def _photos(_name: str, settings: DataSettings, _root: Path) -> Listing:
    content = digest(*map(file_digest, map(photograph_file, PHOTOGRAPHS)))
    return Listing(_crops(settings), content=content)


def _crops(settings: DataSettings) -> tuple[Item, ...]:
    return tuple(Item(p, index=i) for p in PHOTOGRAPHS for i in range(settings.crops))


def _scenes(_name: str, settings: DataSettings, _root: Path) -> Listing:
    files = (digits_file(), *map(photograph_file, PHOTOGRAPHS))
    content = digest("scenes", SCENES_VERSION, *map(file_digest, files))
    return Listing(_crops(settings), ("background", *"0123456789"), content)


DIGITS = Loader(
    "handwritten, carried by scikit-learn",
    listed=_digits,
    opened="bench.data.drawing:digits",
    on_disk=False,
)

PHOTOS = Loader(
    "crops of scikit-image's and -learn's",
    listed=_photos,
    opened="bench.data.drawing:photos",
    on_disk=False,
    labelled=False,
)

DIGIT_SCENES = Loader(
    "digits pasted on photographs, with masks",
    listed=_scenes,
    opened="bench.data.drawing:scenes",
    on_disk=False,
    masked=True,
    made_of=("digits", "photos"),
)
