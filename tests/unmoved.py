"""Say by digests which keys a suite asks for and which bytes a report has, to hold them still.

`python tests/unmoved.py` compares with `tests/unmoved.json`; `--update` writes it anew, which is
right where keys or reports are meant to change, and wrong in any other commit.
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

from bench.cli import main
from bench.records.nouns import UserError
from bench.suite import innocents, plan, reader

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_suffix(".json")
FORMATS = ("terminal", "markdown", "latex", "csv", "html")
FLAGS = ("--reference", "--price", "--frontier", "--calibration")
ASKED = (
    *((form,) for form in FORMATS),
    *(("markdown", flag) for flag in FLAGS),
    ("html", "--reference"),
)
"""Every format once, every flag once: what a flag adds is written in any format alike."""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def suites() -> list[Path]:
    """Every suite file: one that only holds what others include has no name."""
    files = sorted((ROOT / "suites").rglob("*.yaml"))
    return [file for file in files if "\nname:" in f"\n{file.read_text()}"]


def planned(file: Path, data: Path | None) -> str | None:
    """Return a digest of a suite's keys, in order, if its data are there or can be assumed."""
    # A machine chooses what `precision: auto` is, and keys hold the choice: here all choose alike.
    everywhere = mock.patch.object(innocents, "fast_precision", return_value="float32")
    with everywhere, contextlib.suppress(UserError):
        made = plan.make(reader.load(file), data or Path("/nowhere"), assume=True)
        keys = [*made.stages, *(question.key for question in made.questions)]
        return digest("\n".join(keys).encode())
    return None


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def plans(data: Path | None) -> dict[str, str]:
    found = {name(file): planned(file, data) for file in suites()}
    return {file: keys for file, keys in found.items() if keys}


def folders() -> list[Path]:
    return sorted(file.parent for file in (ROOT / "results").rglob("suite.json"))


def report(folder: Path, form: str, *flags: str) -> str:
    """Return a digest of a report's status, of what it prints and of the files it writes."""
    with tempfile.TemporaryDirectory() as made:
        home = shutil.copytree(folder, Path(made, "results"), ignore=_only_records)
        there = {path.relative_to(home) for path in home.rglob("*")}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = main(["report", str(home), "--format", form, *flags])
        written = sorted(p for p in home.rglob("*") if p.relative_to(home) not in there)
        parts = [
            bytes([status]),
            printed.getvalue().encode(),
            *(path.read_bytes() for path in written),
        ]
        return digest(b"\0".join(parts))


def _only_records(folder: str, names: list[str]) -> list[str]:
    kept = (".jsonl", ".json", "figure-2.csv")
    return [n for n in names if not n.endswith(kept) and not os.path.isdir(os.path.join(folder, n))]


def reports(asked: tuple[tuple[str, ...], ...] = ASKED) -> dict[str, str]:
    """Return the digests of these formats and flags, for every folder of results."""
    return {
        " ".join([name(folder), *how]): report(folder, *how)
        for folder, how in itertools.product(folders(), asked)
    }


def everything(data: Path | None) -> dict[str, dict[str, str]]:
    return {"plans": plans(None), "plans with data": plans(data), "reports": reports()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--data", type=Path, required=True, help="the photographs and weights")
    asked = parser.parse_args()
    now = everything(asked.data)
    if asked.update:
        KEPT.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    before = json.loads(KEPT.read_text())
    moved = [
        f"{part}: {name}"
        for part in now
        for name in sorted(before[part].keys() | now[part].keys())
        if before[part].get(name) != now[part].get(name)
    ]
    print(*(moved or [f"{sum(map(len, now.values()))} digests, none moved"]), sep="\n")
    sys.exit(bool(moved))
