"""Keep what stages made, each artefact under the digest of its recipe: made once, found ever after.

An artefact is a JSON sidecar and, where it holds tensors, a safetensors file beside it. Both are
written under a temporary name and renamed, the sidecar last: whoever sees it sees a whole artefact.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.files import file_digest, write_atomically
from bench.types import SCHEMA, Json, canonical

if TYPE_CHECKING:
    from torch import Tensor


class Damaged(Exception):
    """An artefact whose bytes are not those its sidecar recorded."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """What one stage made. `payload` is JSON; `tensors` is the digest of the file, "" for none."""

    key: str
    kind: str
    recipe: Json
    parents: tuple[str, ...]
    payload: Json
    tensors: str
    bytes: int


class Store:
    """A folder of artefacts, two levels deep, named by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

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
        """Say whether the artefact is there and its tensors' bytes are the ones recorded."""
        found = self.find(key)
        if found is None:
            return False
        path = self._tensors(key)
        return not found.tensors or (path.exists() and file_digest(path) == found.tensors)

    def damaged(self, key: str) -> bool:
        """Say whether there was an artefact of which not every byte is as it was written.

        A sidecar is written last: what a killed run left unfinished has none, and is not damaged.
        """
        return self._sidecar(key).exists() and not self.verify(key)

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
        artefact = Artefact(key, kind, recipe, parents, payload, seal, size)
        body = {name: getattr(artefact, name) for name in Artefact.__slots__} | {"schema": SCHEMA}
        text = canonical(
            {"artefact": body, "sha256": hashlib.sha256(canonical(body).encode()).hexdigest()}
        )
        write_atomically(self._sidecar(key), text.encode())
        return artefact

    def tensors(self, key: str) -> dict[str, Tensor]:
        """Load an artefact's tensors to the CPU.

        Raises:
            Damaged: the file is missing or its digest is not the one recorded.

        """
        from safetensors.torch import load_file

        if not self.verify(key):
            raise Damaged(f"{key}: the stored tensors are not those recorded")
        return load_file(self._tensors(key))

    def remove(self, key: str) -> None:
        """Forget one artefact; the sidecar goes first, so nobody sees half of it."""
        self._sidecar(key).unlink(missing_ok=True)
        self._tensors(key).unlink(missing_ok=True)

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
            self._tensors(a.key) for a in self if a.tensors
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

    def _write_tensors(self, key: str, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
        from safetensors.torch import save

        # Cloned, so that tensors which share memory are kept one by one.
        plain = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        data = save({name: value.contiguous() for name, value in plain.items()})
        write_atomically(self._tensors(key), data)
        return hashlib.sha256(data).hexdigest(), len(data)

    def _sidecar(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"

    def _tensors(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"
