"""Let several runs on one store do each stage once: who holds a stage's lease is at it.

A lease is a file that one run alone can create. Its holder touches it every few seconds; a lease
that stands still is that of a killed run, and is broken. Where the holder ran on this machine,
whether it lives is asked instead. Nothing is needed of the file system but exclusive creation and
renaming, and no two clocks are compared, so that runs on several machines may share a store. That
a run is there at all is seen likewise: nobody drops what another may count on.
Should a run be held up so long that it is taken for dead, a stage is done twice, and one whose copy
was dropped meanwhile fails until it is run again. That costs time and nothing else: artefacts
appear whole, and both are alike.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from bench.records.nouns import canonical

if TYPE_CHECKING:
    from bench.records.store import Store


BEAT = 5.0
"""Seconds between two touches of a lease by its holder."""

PATIENCE = 30.0
"""Seconds after which a lease that nobody touched is that of a killed run."""

POLL = 0.5
"""Seconds between two looks at a lease that another run holds."""


class _Sign(NamedTuple):
    """What is seen of a lease: who holds it, and when it was last touched by its server's clock."""

    holder: str
    touched: int


PRESENCE = "run-"
"""How the name of the lease begins that a run holds for as long as it lasts."""

DOOR = "door"
"""The name of the lease that keeps runs out while one deletes what they might count on."""

KEPT = "--drop-copies: another run is on this store, no copy is dropped while it lasts"
"""What is said where copies have to stay."""


class Leases:
    """The stages this run is at. A context: at its end everything is given back.

    Whoever enters shows that it is there and then passes the door, so that a run which deletes
    behind it either sees the newcomer or is seen to be done.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._name = folder, f"{PRESENCE}{uuid.uuid4().hex}"
        self._mine: dict[str, int] = {}  # the open files
        self._seen: dict[str, tuple[_Sign, float]] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        self._toucher = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():  # what was made before its run died, nobody asks for
            sign = _sign(path)
            if sign is not None and _dead(sign.holder):
                self._break(path.name, sign)
        self._create(self._name)
        self._toucher.start()
        self.wait_for(DOOR)
        self.release(DOOR)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._toucher.join()  # or it might make a lease again that was just given back
        for key in list(self._mine):
            self.release(key)

    def take(self, key: str) -> bool:
        """Take on a stage; False if another run is at it."""
        if self._create(key):
            return True
        sign = _sign(self._folder / key)
        if sign is not None:
            if not self._abandoned(key, sign):
                return False
            self._break(key, sign)
        return self._create(key)

    def wait_for(self, key: str) -> None:
        """Take on a stage as soon as no other run is at it."""
        while not self.take(key):
            time.sleep(POLL)

    def alone(self) -> bool:
        """Say whether no other run is on this store now; a dead one does not count."""
        for path in self._folder.glob(f"{PRESENCE}*"):
            sign = None if path.name == self._name else _sign(path)
            if sign is not None:
                if not self._abandoned(path.name, sign):
                    return False
                self._break(path.name, sign)
        return True

    @contextmanager
    def behind_the_door(self) -> Iterator[bool]:
        """Say whether this run is alone, as it stays until the end: who comes meanwhile waits."""
        if not self.take(DOOR):
            yield False
            return
        try:
            yield self.alone()
        finally:
            self.release(DOOR)

    def release(self, key: str) -> None:
        """Give a stage back, unless the lease was broken and is another run's by now."""
        path = self._folder / key
        with self._lock:
            handle = self._mine.pop(key)
            with suppress(OSError):  # it is gone
                if os.path.samestat(os.fstat(handle), path.stat()):
                    path.unlink()
            os.close(handle)

    def _create(self, key: str) -> bool:
        try:
            handle = os.open(self._folder / key, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        os.write(handle, _holder().encode())
        with self._lock:
            broken = self._mine.get(key)
            self._mine[key] = handle
        if broken is not None:
            os.close(broken)
        return True

    def _break(self, key: str, sign: _Sign) -> None:
        """Remove the lease that bore this sign, and no other: one breaker at a time looks again."""
        path, breaking = self._folder / key, f"{key}.breaking"
        try:
            os.close(os.open(self._folder / breaking, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            other = _sign(self._folder / breaking)
            if other is not None and self._abandoned(breaking, other):  # killed while at it
                (self._folder / breaking).unlink(missing_ok=True)
            return
        # While this one is at it nobody else removes the lease, and while it is there nobody
        # creates another: what is read now is what is removed.
        if _sign(path) == sign:
            path.unlink(missing_ok=True)
        (self._folder / breaking).unlink(missing_ok=True)

    def _abandoned(self, key: str, sign: _Sign) -> bool:
        """Say whether the holder is dead, or has not touched the lease for too long to be alive."""
        if _dead(sign.holder):
            return True
        now = time.monotonic()
        seen, since = self._seen.get(key, (None, now))
        if seen != sign:
            self._seen[key] = (sign, now)
            return False
        return now - since > PATIENCE

    def _touch(self) -> None:
        while not self._over.wait(BEAT):
            with self._lock:
                for handle in self._mine.values():
                    with suppress(OSError):  # broken, and gone on its server
                        os.utime(handle)
            with suppress(OSError):  # if not now, then at the next beat
                self._create(self._name)  # it is there, unless this run was taken for dead


def drop_spare(store: Store, leases: Leases, keys: Iterable[str]) -> bool:
    """Drop copies; False, and all are kept, where another run is there that may count on one."""
    with leases.behind_the_door() as alone:
        for key in keys if alone else ():
            store.drop(key)
    return alone


def _sign(path: Path) -> _Sign | None:
    """Read a lease; None if there is none any more."""
    try:
        with path.open() as file:  # network file systems bring what is opened up to date
            return _Sign(file.read(), os.fstat(file.fileno()).st_mtime_ns)
    except OSError:
        return None


def _holder() -> str:
    """Name this process so that no other lease, and no later process, has the same name."""
    pid = os.getpid()
    return canonical({"lease": uuid.uuid4().hex, "place": _place(), "pid": pid, "born": _born(pid)})


def _dead(holder: str) -> bool:
    """Say whether the holder was a process of this machine and is none any more."""
    try:
        who = json.loads(holder)
        if not who["place"] or who["place"] != _place():
            return False
        os.kill(who["pid"], 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):  # half written, or another user's process
        return False
    return bool(_born(who["pid"]) != who["born"])


def _place() -> str:
    """Name the machine since it was started, and the container; "" where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """Return when a process began, in ticks since the machine did; None if it is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
