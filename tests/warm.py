"""Start Python programs in processes that find the libraries loaded: forked from one that has.

Loading torch and its like takes longer than most programs of these tests work. A program started
here is a process as any other: it loads `bench` itself, may start others and may be killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

LIBRARIES = (
    *("torch", "timm", "open_clip", "pandas", "pydantic", "rich.live", "scipy.stats"),
    *("sklearn.datasets", "statsmodels.stats.multitest", "statsmodels.stats.proportion", "yaml"),
)

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(list(LIBRARIES))


class Running:
    """A program at work; what it says, on either stream, comes through a pipe."""

    def __init__(self, program: str, arguments: tuple[str, ...], env: Mapping[str, str]) -> None:
        self._reader, writer = _SERVER.Pipe(duplex=False)
        given = program, arguments, dict(env), os.getcwd(), writer
        self._process = _SERVER.Process(target=_become, args=given)
        self._process.start()
        writer.close()  # or the pipe would never end
        self._reader.recv_bytes()  # it leads a group of its own by now
        self.stdout = open(self._reader.fileno(), closefd=False)  # noqa: SIM115

    @property
    def pid(self) -> int:
        """Return the number of the process, and of the group and the session that it leads."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def over_within(self, seconds: float) -> bool:
        self._process.join(seconds)
        return self.returncode is not None

    def kill(self) -> None:
        """Kill it and all it has started."""
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.killpg(self.pid, signal.SIGKILL)

    def finish(self) -> str:
        """Wait for its end; return what it has said that nobody has read yet."""
        said = self.stdout.read()
        self._process.join()
        return said

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.returncode is None:
            self.kill()
        self.finish()
        self.stdout.close()
        self._reader.close()


def start(program: Path | str, *arguments: object, env: Mapping[str, str] | None = None) -> Running:
    """Start a program, the path of a file or the name of a module."""
    return Running(str(program), tuple(map(str, arguments)), os.environ if env is None else env)


def _become(
    program: str,
    arguments: tuple[str, ...],
    env: Mapping[str, str],
    folder: str,
    writer: Connection,
) -> None:
    """Turn this process into one that was started for a program."""
    os.setsid()
    writer.send_bytes(b"here")
    for stream in (1, 2):
        os.dup2(writer.fileno(), stream)
    writer.close()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p not in sys.path]
    # What a killed program leaves behind would be told of at the end of all tests.
    resource_tracker._resource_tracker._fd = None
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
