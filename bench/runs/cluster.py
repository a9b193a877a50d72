"""Carry out a plan's stages on a Ray cluster: the GPUs of one machine, or many machines.

Every stage is one task, which asks for the processors, the GPU and the memory it needs and runs
wherever Ray finds them. Artefacts pass through the store, which every node must see under one path.
A task that is lost with its worker or its node is started again.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch

from bench.records.nouns import UserError, how_many
from bench.records.store import Store
from bench.runs.engines import Failure, Look, attempt, unseen, walk
from bench.runs.laboratory import Laboratory
from bench.runs.machine import pin_threads, usable_cores
from bench.suite.todo import alike

if TYPE_CHECKING:
    from ray import ObjectRef

    from bench.suite.graph import Question, Stage


ATTEMPTS = 3
"""How often a stage is started that takes its worker with it."""

MEMORY = 1500.0
"""Megabytes a stage asks for where the store holds none alike, and on a GPU."""

MARGIN = 1.25
"""By how much a stage may exceed what stages alike took."""

RENEW = 5.0
"""Seconds after which the cluster is looked at again: nodes come and go."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Join the cluster at `address` ("auto": the one on this machine), or start Ray here alone.

    Raises:
        UserError: Ray is not installed, or there is no cluster.

    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of a change
    options: dict[str, Any] = {}
    if address == "local":
        # Nobody else has any business here: by default Ray listens on the network.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # or others here starve the stages
        # What passes through Ray's memory is the plan alone.
        options = {"num_cpus": usable_cores(), "object_store_memory": 2**28}
        options["include_dashboard"] = False
    elif address != "auto":
        _refuse_silence(address)
    try:
        import ray

        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except ModuleNotFoundError:
        raise UserError(
            "--engine ray: expected Ray, it is not installed; pip install "
            "'vfm-ownership-bench[ray]'"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--address: expected a Ray cluster at '{address}': {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Refuse an address at which nothing listens; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if not host or "/" in host or not port.isdecimal():
            raise UserError(f"--address: expected HOST:PORT or auto, got '{address}'")
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address: expected a Ray cluster at {address}, nothing answers there ({error}); "
            "`ray start --head` prints where it listens"
        ) from None


def choose_device(name: str, threads: int) -> torch.device:
    """Return the device of every stage, a GPU where the cluster has any unless told otherwise.

    Raises:
        UserError: no node has such a device, or as many processors as a stage wants.

    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device: expected auto, cpu or cuda (Ray picks the GPU), got '{name}'")
    gpu = torch.device("cuda")
    if name == "cuda" or (name == "auto" and any(_has(node, "GPU") >= 1 for node in _nodes())):
        device = gpu
    else:
        device = torch.device("cpu")
    if not sum(_places(node, device, threads) for node in _nodes()):
        found = ", ".join(f"{_has(n, 'CPU'):g} and {_has(n, 'GPU'):g}" for n in _nodes())
        wanted = f"{threads} processors{' and a GPU' if device == gpu else ''}"
        raise UserError(
            f"--engine ray: expected a node with {wanted} for a stage, the processors and GPUs of "
            f"the nodes are {found}"
        )
    return device


def size(device: torch.device, threads: int) -> str:
    """Say how large the cluster is."""
    nodes = _nodes()
    places = sum(_places(node, device, threads) for node in nodes)
    what = "GPU" if device.type == "cuda" else "CPU"
    room = f"{how_many(places, 'stage')} at a time on {what}"
    return f"{how_many(len(nodes), 'Ray node')}, {room}, {how_many(threads, 'thread')} a stage"


def on_ray(
    laboratory: Laboratory,
    questions: Sequence[Question],
    device: torch.device,
    threads: int,
    workers: int | None = None,
    look: Look = unseen,
) -> Iterator[tuple[Question, Failure | None]]:
    """Carry out stages on the cluster joined, as many as it has room for or at most `workers`."""
    there = _anywhere(dataclasses.replace(laboratory, device=device))
    return walk(laboratory, questions, _RayTasks(there, laboratory, threads, workers), look)


class _Report(NamedTuple):
    """What a task brings back."""

    node: str
    seconds: float
    failure: Failure | None
    notes: list[str]


class _RayTasks:
    """The tasks that run on the cluster."""

    def __init__(
        self, there: Laboratory, here: Laboratory, threads: int, workers: int | None
    ) -> None:
        import ray

        self._there, self._here = there, here
        self._threads, self._workers = threads, workers
        self._memory = dict.fromkeys(there.plan.stages, MEMORY)
        if there.device.type == "cpu":  # of a GPU's stages, it is the GPU's memory that is known
            self._memory |= _peaks(here)
        self._lost: Counter[str] = Counter()
        self._running: dict[ObjectRef, str] = {}
        self._task = ray.remote(_work)
        self._look()

    def __enter__(self) -> Self:
        import ray

        self._shared = ray.put(self._there)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for task in self._running:
            ray.cancel(task, force=True)

    @property
    def busy(self) -> set[str]:
        return set(self._running.values())

    @property
    def room(self) -> int:
        if time.monotonic() - self._looked > RENEW:
            self._look()
        places = self._places if self._workers is None else min(self._places, self._workers)
        return places - len(self._running)

    def start(self, key: str) -> None:
        task = self._task.options(
            name=f"{self._there.plan.stages[key].kind} {key}",
            num_cpus=self._threads,
            num_gpus=int(self._there.device.type == "cuda"),
            memory=int(min(self._memory[key] * 2**20, self._largest)),
            max_retries=0,  # they are counted here, where it can be said
        )
        self._running[task.remote([self._shared], key, self._threads)] = key

    def finished(self, patience: float | None = None) -> list[tuple[str, Failure | None]]:
        import ray

        limit = RENEW if patience is None else patience
        if not self._running:  # and nothing could be started: no node is left
            time.sleep(limit)
            return []
        ray.wait([*self._running], num_returns=1, timeout=limit)
        done, _ = ray.wait([*self._running], num_returns=len(self._running), timeout=0)
        results: list[tuple[str, Failure | None]] = []
        for task in done:
            key = self._running.pop(task)
            try:
                results.append((key, self._seen(key, ray.get(task))))
            except ray.exceptions.RayTaskError as error:  # the node cannot do what it should
                results.append((key, Failure.of(error.cause or error)))
            except ray.exceptions.RayError as error:
                failure = self._again(key, _first_sentence(error))
                results += [(key, failure)] if failure else []
        return results

    def _seen(self, key: str, report: _Report) -> Failure | None:
        """Pass on what a task reports, and make sure that what it made arrived here."""
        for note in report.notes:
            self._here.note(f"{report.node}: {note}")
        what = _named(self._there.plan.stages[key])
        end = "failed after" if report.failure else "took"
        self._here.note(f"{report.node}: {what} {end} {report.seconds:.1f} s")
        if report.failure is None and self._here.store.find(key) is None:
            return _not_shared(self._there, report.node)
        return report.failure

    def _again(self, key: str, reason: str) -> Failure | None:
        """Start a lost stage again; say why not if it was lost too often."""
        self._lost[key] += 1
        if self._lost[key] == ATTEMPTS:
            return Failure(f"lost {ATTEMPTS} times with the worker that carried it out: {reason}")
        self._memory[key] *= 2  # it may have been for want of memory
        self.start(key)
        what, count = _named(self._there.plan.stages[key]), self._lost[key] + 1
        self._here.note(f"{what} was lost and is started again ({count} of {ATTEMPTS}): {reason}")
        return None

    def _look(self) -> None:
        """Look at what nodes there are."""
        places = [(_places(n, self._there.device, self._threads), n) for n in _nodes()]
        self._places = sum(count for count, _ in places)
        self._largest = max((_has(node, "memory") for count, node in places if count), default=0.0)
        self._looked = time.monotonic()


def _nodes() -> list[Mapping[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _has(node: Mapping[str, Any], what: str) -> float:
    return float(node["Resources"].get(what, 0))


def _places(node: Mapping[str, Any], device: torch.device, threads: int) -> int:
    """Count the stages that a node has processors and GPUs for."""
    count = _has(node, "CPU") // threads
    return int(min(count, _has(node, "GPU")) if device.type == "cuda" else count)


def _peaks(laboratory: Laboratory) -> dict[str, float]:
    """Return the megabytes of each stage, going by stages alike that a CPU carried out."""
    found = dict[str, float]()
    for key, artefacts in alike(laboratory.plan, laboratory.store).items():
        costs = [artefact.payload["cost"] for artefact in artefacts]
        peaks = [cost["peak_memory_mb"] for cost in costs if cost["device"].startswith("CPU")]
        if peaks:
            found[key] = MARGIN * max(peaks)
    return found


def _anywhere(laboratory: Laboratory) -> Laboratory:
    """Make every path absolute: a task starts in a folder of its own."""
    manifests = {
        name: dataclasses.replace(found, root=found.root and found.root.resolve())
        for name, found in laboratory.plan.manifests.items()
    }
    return dataclasses.replace(
        laboratory,
        plan=dataclasses.replace(laboratory.plan, manifests=manifests, questions=()),
        store=Store(laboratory.store.root.resolve()),
        data_dir=(laboratory.data_dir or Path()).resolve(),
        note=print,
    )


def _work(shared: list[ObjectRef], key: str, threads: int) -> _Report:
    """Carry out a stage on the node this runs on."""
    began = time.monotonic()
    pin_threads(threads)
    laboratory, notes = _unpacked(shared[0])
    notes.clear()
    node, stage = _here(), laboratory.plan.stages[key]
    if all(laboratory.store.find(parent) for parent in stage.parents):
        failure = attempt(laboratory, key)
    else:
        failure = _not_shared(laboratory, node)
    return _Report(node, time.monotonic() - began, failure, list(notes))


@functools.lru_cache(maxsize=1)  # a worker keeps what it decoded for the next stage
def _unpacked(shared: ObjectRef) -> tuple[Laboratory, list[str]]:
    import ray

    notes: list[str] = []
    return dataclasses.replace(ray.get(shared), note=notes.append), notes


def _here() -> str:
    """Name this node, as `ray status` does, and its GPU."""
    import ray

    context = ray.get_runtime_context()
    gpus = "".join(f" GPU {number}" for number in context.get_accelerator_ids().get("GPU", []))
    return f"{socket.gethostname()} ({context.get_node_id()[:6]}){gpus}"


def _not_shared(laboratory: Laboratory, node: str) -> Failure:
    return Failure(
        f"{node} does not share the store at {laboratory.store.root}: expected --results on a file "
        "system that every node sees under the same path"
    )


def _named(stage: Stage) -> str:
    plugin = stage.recipe.get("method") or stage.recipe.get("step")
    return f"{stage.kind} {plugin['name']}" if plugin else str(stage.kind)


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0].removesuffix(".")
