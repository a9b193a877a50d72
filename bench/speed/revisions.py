"""Time two revisions of a repository against each other, turn by turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench import workload
from bench.records.nouns import UserError

Ask = Callable[[str | None], float]
"""Has a process prepare the workload of a name, or run it (None) and say how long that took."""

PATIENCE = 30.0
"""Seconds for a process to end by itself."""


class Unmeasured(Exception):
    """Why a revision cannot be timed at a workload."""


@contextmanager
def revisions(base: str, files: Sequence[Path], device: str) -> Iterator[tuple[Ask, Ask]]:
    """Yield two processes, one at each tree: revision `base`, and the working tree as it stands.

    Both run the workloads of `files`, as they are now.
    """
    here = "--base: expected to be in a git repository"
    head = Path(_git(Path.cwd(), "rev-parse", "--show-toplevel", complaint=here))
    with (
        worktree(head, base) as tree,
        rival(base, tree, files, device) as old,
        rival("this tree", head, files, device) as new,
    ):
        yield old, new


@contextmanager
def worktree(repository: Path, revision: str) -> Iterator[Path]:
    """Yield a temporary tree of one revision, and remove it whatever happens.

    Raises:
        UserError: the repository has no such revision.

    """
    unknown = f"--base: expected a revision of this repository, got '{revision}'"
    asked = ("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    commit = _git(repository, *asked, complaint=unknown)
    with tempfile.TemporaryDirectory() as folder:
        tree, busy = Path(folder).resolve() / "base", "--base: expected git to make a worktree"
        _git(repository, "worktree", "add", "--detach", str(tree), commit, complaint=busy)
        try:
            yield tree
        finally:
            _git(repository, "worktree", "remove", "--force", str(tree), complaint=busy)


@contextmanager
def rival(name: str, tree: Path, files: Sequence[Path], device: str) -> Iterator[Ask]:
    """Yield what asks a process whose packages are those of `tree`, and end it afterwards."""
    # -P: beside the program lie modules of the bench that are called as some of Python's are.
    program = [sys.executable, "-P", workload.__file__, device, str(tree)]
    paths = filter(None, [str(tree / "src"), str(tree), os.environ.get("PYTHONPATH")])
    environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*program, *(str(file.resolve()) for file in files)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tree,
        env=os.environ | environment,
    )
    _settle(process.pid)
    assert process.stdin is not None
    assert process.stdout is not None
    asked, told = process.stdin, process.stdout

    def ask(work: str | None) -> float:
        line = ""
        with suppress(BrokenPipeError):
            print(json.dumps(work), file=asked, flush=True)
            line = told.readline()
        answer = json.loads(line or json.dumps({"error": f"ended with status {process.wait()}"}))
        if "error" in answer:
            raise Unmeasured(f"{name}: {answer['error']}")
        return float(answer["seconds"])

    try:
        yield ask
    finally:
        try:
            process.communicate(timeout=PATIENCE)  # no more questions: it tidies up and ends
        except subprocess.TimeoutExpired:
            process.kill()


def _settle(process: int) -> None:
    """Keep a process to one processor, the same for all: of two, one may be slower all along.

    They run in turns, so nothing is lost by it.
    """
    if hasattr(os, "sched_setaffinity"):  # on Linux
        os.sched_setaffinity(process, {min(os.sched_getaffinity(0))})


def _git(folder: Path, *arguments: str, complaint: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        raise UserError("--base: expected git, found none") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["it failed"])[-1]
        raise UserError(f"{complaint} ({said})") from None
    return done.stdout.strip()
