"""Keep what stages made, each artefact under the digest of its recipe: made once, found ever after.

An artefact is a JSON sidecar and, where it holds tensors, a safetensors file beside it. Both are
written under a temporary name and renamed, the sidecar last: whoever sees it sees a whole artefact.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.records.files import file_digest, write_atomically, written_whole
from bench.records.nouns import SCHEMA, Json, canonical

if TYPE_CHECKING:
    from torch import Tensor


class _Stamp(NamedTuple):
    """By what a file is seen to have changed."""

    inode: int
    size: int
    changed: int  # ns

    @staticmethod
    def of(path: Path) -> _Stamp:
        found = path.stat()
        return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns)


class Damaged(Exception):
    """An artefact whose bytes are not those its sidecar recorded."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """What one stage made. `payload` is JSON; `tensors` is the digest of the file, "" for none.

    Where the file was `dropped` to free its `bytes`, all the rest is still there.
    """

    key: str
    kind: str
    recipe: Json
    parents: tuple[str, ...]
    payload: Json
    tensors: str
    bytes: int
    dropped: bool = False

    @property
    def on_disk(self) -> int:
        """Return the bytes that its tensors take now."""
        return 0 if self.dropped else self.bytes


SETTLED = 2.0
"""Seconds a file must have lain still before an equal time of change tells that it still does."""


class Store:
    """A folder of artefacts, two levels deep, named by key.

    A file that was once read byte by byte is not read again before it changes, going by its inode,
    size and time of change: a run loads each model many times.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._read_before: dict[str, tuple[str, _Stamp]] = {}

    def find(self, key: str) -> Artefact | None:
        """Return the artefact called `key`, or None where there is none or its sidecar is damaged.

        Reads the sidecar only: tensors are checked by `verify` and when they are loaded.
        """
        try:
            text = json.loads(self._read(self._sidecar(key)))
            body = text["artefact"]
            whole = hashlib.sha256(canonical(body).encode()).hexdigest() == text["sha256"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if not whole or (body["schema"], body["key"]) != (SCHEMA, key):
            return None
        del body["schema"]
        return Artefact(**{**body, "parents": tuple(body["parents"])})

    def verify(self, key: str) -> bool:
        """Say whether the artefact is there, whole, and its tensors' bytes are those recorded."""
        found = self.find(key)
        if found is None or found.dropped:
            return False
        if not found.tensors:
            return True
        path = self._tensors(key)
        try:
            stamp = _Stamp.of(path)
            if self._read_before.get(key) != (found.tensors, stamp):
                if file_digest(path) != found.tensors:
                    return False
                if time.time() - stamp.changed / 1e9 > SETTLED:
                    self._read_before[key] = found.tensors, stamp
        except FileNotFoundError:
            return False
        return True

    def damaged(self, key: str) -> bool:
        """Say whether there was an artefact of which not every byte is as it was written.

        A sidecar is written last: what a killed run left unfinished has none, and is not damaged.
        """
        if not self._sidecar(key).exists() or self.verify(key):
            return False
        found = self.find(key)  # only now: another run may have dropped it meanwhile
        return found is None or not found.dropped

    def put(
        self,
        key: str,
        kind: str,
        recipe: Json,
        parents: tuple[str, ...] = (),
        payload: Json = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Artefact:
        """Keep one artefact, whole or not at all, and return it."""
        seal, size = "", 0
        if tensors is not None:
            seal, size = self._write_tensors(key, tensors)
        return self._write(Artefact(key, kind, recipe, parents, payload, seal, size))

    def tensors(self, key: str) -> dict[str, Tensor]:
        """Load an artefact's tensors to the CPU.

        Raises:
            Damaged: the file is missing or its digest is not the one recorded.

        """
        if not self.verify(key):
            raise Damaged(f"{key}: the stored tensors are not those recorded")
        from safetensors.torch import load_file

        return load_file(self._tensors(key))

    def drop(self, key: str) -> None:
        """Delete an artefact's tensors and keep what it says; who needs them makes it again."""
        found = self.find(key)
        if found is not None and found.tensors and not found.dropped:
            self._write(dataclasses.replace(found, dropped=True))
            self._tensors(key).unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        """Forget one artefact; the sidecar goes first, so nobody sees half of it."""
        self._sidecar(key).unlink(missing_ok=True)
        self._tensors(key).unlink(missing_ok=True)

    def keys(self) -> set[str]:
        """Return the keys of all artefacts that have a sidecar, readable or not."""
        return {path.stem for path in self.root.glob("??/*.json")}

    def __iter__(self) -> Iterator[Artefact]:
        """Yield every readable artefact, in order of key."""
        for path in sorted(self.root.glob("??/*.json")):
            found = self.find(path.stem)
            if found is not None:
                yield found

    @property
    def leases(self) -> Path:
        """The folder in which runs say what they are making."""
        return self.root / "leases"

    @property
    def pixels(self) -> Path:
        """The folder of decoded images: a cache beside the artefacts, rebuilt when missing."""
        return self.root / "pixels"

    def decoded(self) -> list[Path]:
        """List the files of decoded images."""
        return sorted(self.pixels.glob("*.safetensors"))

    def leftovers(self) -> list[Path]:
        """List files no readable artefact owns: torn writes and damaged sidecars."""
        owned = {self._sidecar(a.key) for a in self} | {
            self._tensors(a.key) for a in self if a.tensors and not a.dropped
        }
        return [p for p in sorted(self.root.glob("??/*")) if p not in owned]

    def _read(self, sidecar: Path) -> str:
        try:
            return sidecar.read_text()
        except FileNotFoundError:
            # A network file system remembers for a while what was absent, until its folder is
            # opened; another machine may have made it since.
            with suppress(OSError):
                os.close(os.open(sidecar.parent, os.O_RDONLY))
            return sidecar.read_text()

    def _write(self, artefact: Artefact) -> Artefact:
        body = {name: getattr(artefact, name) for name in Artefact.__slots__} | {"schema": SCHEMA}
        text = canonical(
            {"artefact": body, "sha256": hashlib.sha256(canonical(body).encode()).hexdigest()}
        )
        write_atomically(self._sidecar(artefact.key), text.encode())
        return artefact

    def _write_tensors(self, key: str, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
        from safetensors.torch import save_file

        plain: dict[str, Tensor] = {}
        memory = set[int]()
        for name, value in tensors.items():
            flat = value.detach().cpu().contiguous()
            place = flat.untyped_storage().data_ptr()
            # Tensors that share memory are kept one by one; the others need no second copy.
            plain[name] = flat.clone() if place in memory else flat
            memory.add(place)
        with written_whole(self._tensors(key)) as temporary:
            save_file(plain, temporary)
            return file_digest(temporary), temporary.stat().st_size

    def _sidecar(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"

    def _tensors(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"
