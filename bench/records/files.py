"""Write files whole or not at all, and name them, and what they are, by their bytes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"%PDF-": "a PDF document",
}
"""What files begin with that are neither pictures nor weights, and what they are."""

STARTS = 256
"""Bytes of a file that are looked at to tell what it is."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it: readers see the whole file or none."""
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to; what was written gets its own once all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp's 0600 would lock out the others on a shared store
        os.replace(name, path)
    except BaseException:  # interrupted or killed as well: nothing half-written may lie about
        Path(name).unlink(missing_ok=True)
        raise


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stands_for(file: Path) -> str:
    """Say what lies in the place of a picture or of weights, with the way out; nothing if unknown.

    That is what a download leaves that went wrong, or a clone without Git LFS, by the first bytes.
    """
    with file.open("rb") as opened:
        start = opened.read(STARTS)
    if not start:
        return "an empty file; copy it again"
    if start.startswith(b"version https://git-lfs"):
        return "Git LFS's pointer to it; fetch it with `git lfs pull`"
    if what := next((what for sign, what in ARCHIVES.items() if start.startswith(sign)), ""):
        return f"{what}; unpack it, or fetch it again"
    return f"{what}; fetch it again" if (what := _text(start)) else ""


def _text(start: bytes) -> str:
    """Name a text by its beginning, or as a web page; empty if this is no text."""
    plain = start.lstrip(b"\xef\xbb\xbf")
    # A letter may be cut in two where the look at the file ends.
    kept = 3 if len(start) == STARTS else 0
    text = plain.decode(errors="replace").strip()
    body = text[: len(text) - kept]
    if not body or "\N{REPLACEMENT CHARACTER}" in body:
        return ""
    if not all(letter.isprintable() or letter.isspace() for letter in body):
        return ""
    return "a web page" if text.startswith("<") else f"a text ({text.splitlines()[0][:40]!r})"
