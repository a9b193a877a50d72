"""Say what work is watched for its speed, and let two processes take turns at it.

Everything here needs the standard library and `UserError` alone: run as a program, the file times
its workloads in whatever revision of the bench is on the path, an older one too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TextIO

from bench.records.nouns import UserError

if TYPE_CHECKING:
    import torch


_SCHEDULED = Path("/proc/thread-self/schedstat")


@dataclass(frozen=True, slots=True)
class Prepared:
    """Work ready to run again and again, the same each time.

    `ideal` makes the fewest passes that could do it, on the same tensors. What `run` writes below
    `store` is counted.
    """

    run: Callable[[], object]
    ideal: Callable[[], object] | None = None
    store: Path | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Work by name; `limit` is promised of its time by its ideal's, whatever a baseline says.

    A run takes 0.05 to 1 s on one core. `prepare` imports what it needs by itself: a revision that
    lacks it then lacks this workload and no other. `only` names a type of device, "cuda", where
    the others would take too long.
    """

    name: str
    prepare: Callable[[torch.device], Prepared]
    limit: float | None = None
    only: str | None = None


def load(files: Iterable[Path]) -> dict[str, Workload]:
    """Return the workloads of some Python files, each a sequence called WORKLOADS, by name."""
    found = dict[str, Workload]()
    for number, file in enumerate(files):
        listed = getattr(_module(f"workloads_{number}", file), "WORKLOADS", None)
        if not isinstance(listed, Sequence) or not all(isinstance(w, Workload) for w in listed):
            got = "none" if listed is None else repr(listed)[:60]
            raise UserError(f"{file}: expected a sequence of workloads, WORKLOADS, got {got}")
        for workload in listed:
            if workload.name in found:
                raise UserError(f"{file}: expected names of its own, got '{workload.name}' again")
            found[workload.name] = workload
    return found


def meant_for(device: torch.device, workloads: Mapping[str, Workload]) -> dict[str, Workload]:
    """Return those that a device of this type can be asked for."""
    return {name: one for name, one in workloads.items() if one.only in (None, device.type)}


def _module(name: str, file: Path) -> ModuleType:
    if not file.is_file():
        raise UserError(f"expected a file of workloads, found none at {file}; give --workloads")
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"expected a Python file of workloads, got {file}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever importing it raises is its author's to put right
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{file}: expected a file that can be imported, got {reason}") from error
    return module


def waited() -> float:
    """Return the seconds this thread was ready and another had its processor; 0 off Linux."""
    try:
        return int(_SCHEDULED.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def elapsed(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall time of one run of `work`, less what others had of its processor."""
    start = _now(device) - waited()
    work()
    return _now(device) - waited() - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def take_turns(
    device: torch.device, tree: Path, files: list[Path], asked: TextIO, told: TextIO
) -> None:
    """Answer line by line: a name has that workload prepared, null has it run once and timed."""
    run: Callable[[], object] = _nothing
    for line in asked:
        name = json.loads(line)
        answer: dict[str, float | str] = {"seconds": 0.0}
        try:
            if name is None:
                answer = {"seconds": elapsed(run, device)}
            else:
                run = _ready(load(files)[name].prepare(device), tree)
        except Exception as error:  # a revision may lack anything: its row says so, others go on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=told, flush=True)


def _nothing() -> None:
    raise UserError("expected a workload to be named first")


def _ready(prepared: Prepared, tree: Path) -> Callable[[], object]:
    prepared.run()  # the first is not timed: it is cold
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    if not any(Path(file).is_relative_to(tree) for file in files if file):
        raise UserError("nothing of this tree was imported: its packages are found elsewhere")
    return prepared.run


def _main() -> None:
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the work prints is no answer
    device, tree, *files = sys.argv[1:]
    take_turns(torch.device(device), Path(tree), [*map(Path, files)], sys.stdin, answers)


if __name__ == "__main__":
    # Workloads mean this file by `bench.workload`, whatever revision `bench` is.
    sys.modules["bench.workload"] = sys.modules["__main__"]
    _main()
