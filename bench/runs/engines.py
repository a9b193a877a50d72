"""Carry out a plan's stages, each once: in this process, or side by side in several.

An engine takes a laboratory and questions and yields each question, with the reason if it could not
be answered, as soon as its stages are done. Artefacts pass through the store, never through memory.
Every stage runs on the same number of threads whichever engine carries it out, so evidence does not
depend on the engine. Runs at the same time on one store share the work: what another run is at is
left to it, and others are done meanwhile.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Protocol, Self

from bench.records.leases import KEPT, POLL, Leases, drop_spare
from bench.records.nouns import Incompatible, UserError
from bench.runs.laboratory import Laboratory
from bench.runs.machine import pin_threads
from bench.suite.todo import in_turn, missing, spare_copies

if TYPE_CHECKING:
    from bench.records.store import Store
    from bench.suite.graph import Kind, Plan, Question


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stage, and with it every cell that needs it, has no result."""

    reason: str
    incompatible: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)  # where; nothing if it died there

    @staticmethod
    def of(error: BaseException) -> Failure:
        """Put an error into one line."""
        text = " ".join(str(error).split()) or type(error).__name__
        expected = isinstance(error, UserError | Incompatible | FloatingPointError)
        line = text if expected else f"{type(error).__name__}: {text}"
        return Failure(line[:400], isinstance(error, Incompatible))


Look = Callable[[Collection[str], Collection[str]], None]
"""Looks on: told the keys of the stages that are being carried out, and of all that are left."""


def unseen(busy: Collection[str], left: Collection[str]) -> None:
    """Look at nothing."""


class Pool(Protocol):
    """What carries out stages; a context, at the end of which none is carried out any more."""

    @property
    def busy(self) -> set[str]:
        """Return the keys of the stages that are being carried out."""

    @property
    def room(self) -> int:
        """Return how many more stages could start now."""

    def start(self, key: str) -> None:
        """Start a stage."""

    def finished(self, patience: float | None = None) -> list[tuple[str, Failure | None]]:
        """Wait, at most `patience` seconds, for stages to end; return each, and why it failed."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def serial(
    laboratory: Laboratory, questions: Sequence[Question], look: Look = unseen
) -> Iterator[tuple[Question, Failure | None]]:
    """Carry out one stage after the other, here."""
    return walk(laboratory, questions, _ThisProcess(laboratory), look)


def processes(
    laboratory: Laboratory,
    questions: Sequence[Question],
    workers: int,
    threads: int,
    look: Look = unseen,
) -> Iterator[tuple[Question, Failure | None]]:
    """Carry out stages side by side in `workers` processes of `threads` threads each.

    A worker that dies takes the stages then running with it; the others go on in new workers.
    """
    return walk(laboratory, questions, _Processes(laboratory, workers, threads), look)


def walk(
    laboratory: Laboratory, questions: Sequence[Question], pool: Pool, look: Look = unseen
) -> Iterator[tuple[Question, Failure | None]]:
    """Have a pool carry out what is missing and yield the questions as they are answered.

    Stages start in turn (`in_turn`) as soon as their parents are made. A stage that fails is not
    tried again in this run; the questions that need it fail with its reason and the others go on.
    """
    told = False
    with Leases(laboratory.store.leases) as leases, pool:
        # Now that others see this run, none drops what it counts on.
        order = in_line(laboratory.plan, laboratory.store, questions)
        left, spare = _Left(laboratory.plan, order, questions), _SpareCopies(laboratory, leases)
        while True:
            spare.drop(left.stages, left.failures)
            yield from left.answered()
            if not left.asked:
                return
            elsewhere = _start_ready(laboratory, left, leases, pool)
            look(pool.busy, left.stages)
            if elsewhere and not pool.busy:
                if not told:
                    laboratory.note("waiting for stages that another run on this store is at")
                told = True
                time.sleep(POLL)
            for key, failure in pool.finished(POLL if elsewhere else None):
                leases.release(key)
                left.end(key, failure)


class _Left:
    """The stages left to be made, which of them could start, and the questions that wait for them.

    What ends costs what waits for it, however much else is left.
    """

    def __init__(self, plan: Plan, order: Sequence[str], questions: Sequence[Question]) -> None:
        self.stages = dict.fromkeys(order)
        self.failures: dict[str, Failure] = {}
        self._order, self._turn = order, {key: turn for turn, key in enumerate(order)}
        self._waits, self._children = self._counted(plan.stages[key].parents for key in order)
        self._ready = [turn for turn, parents in enumerate(self._waits) if not parents]  # a heap
        self._questions = questions
        self._open, self._waiting = self._counted(question.stages for question in questions)
        self._answered = [n for n, stages in enumerate(self._open) if not stages]
        self.asked = len(questions)

    def _counted(self, needs: Iterable[Iterable[str]]) -> tuple[list[int], dict[str, list[int]]]:
        """Count how many stages left each needs, by number, and list who needs a stage."""
        counts, needed_by = list[int](), defaultdict[str, list[int]](list)
        for number, need in enumerate(needs):
            keys = {key for key in need if key in self.stages}
            counts.append(len(keys))
            for key in keys:
                needed_by[key].append(number)
        return counts, needed_by

    def answered(self) -> Iterator[tuple[Question, Failure | None]]:
        """Yield the questions that wait no more, each once, and why one has no answer."""
        found, self._answered = sorted(self._answered), []
        for number in found:
            self.asked -= 1
            question = self._questions[number]
            failed = (self.failures[key] for key in question.stages if key in self.failures)
            yield question, next(failed, None)

    def next(self) -> str | None:
        """Take the first stage in turn whose parents are made; None where there is none."""
        return self._order[heappop(self._ready)] if self._ready else None

    def put_back(self, keys: Iterable[str]) -> None:
        """Let stages that were taken be taken once more."""
        for key in keys:
            heappush(self._ready, self._turn[key])

    def end(self, key: str, failure: Failure | None = None) -> None:
        """Say that a stage is made, or why it failed; what follows from it fails likewise."""
        ended = [key]
        while ended:
            key = ended.pop()
            if key not in self.stages:  # another of its parents failed before
                continue
            del self.stages[key]
            if failure is not None:
                self.failures[key] = failure
            for turn in self._children.pop(key, ()):
                self._waits[turn] -= 1
                if failure is not None:
                    ended.append(self._order[turn])
                elif not self._waits[turn] and self._order[turn] in self.stages:
                    heappush(self._ready, turn)
            for number in self._waiting.pop(key, ()):
                self._open[number] -= 1
                if not self._open[number]:
                    self._answered.append(number)


def in_line(plan: Plan, store: Store, questions: Sequence[Question]) -> tuple[str, ...]:
    """List the stages that must run to answer `questions`, as a run takes them on."""
    works = dict[str, float]()
    left = missing(plan, store, questions)
    if left:
        from bench.runs.foresight.budget import counted, training_work  # no worker asks for it

        try:
            passes = counted(plan, store, *LONG)
        except Exception:  # a plug-in that cannot count costs the order alone
            passes = {}
        works = {key: found.work for key, found in passes.items() if found is not None}
        works |= {k: training_work(plan, k) for k, s in plan.stages.items() if s.kind == "cohort"}
    return in_turn(plan, questions, frozenset(left), lambda key: works.get(key, 0.0))


LONG: tuple[Kind, ...] = ("classifier", "protect", "attack", "accuse")
"""Kinds of stages in which something is trained or searched for; the others read, in no time."""


def _start_ready(laboratory: Laboratory, left: _Left, leases: Leases, pool: Pool) -> bool:
    """Start what there is room for; say whether some of it had to be left to another run."""
    room, elsewhere = pool.room, list[str]()
    while room > 0 and (key := left.next()):
        if not leases.take(key):
            elsewhere.append(key)
        elif laboratory.store.verify(key):  # another run made it meanwhile
            leases.release(key)
            left.end(key)
        else:
            pool.start(key)
            room -= 1
    left.put_back(elsewhere)
    return bool(elsewhere)


class _SpareCopies:
    """The copies that this run needs no more, and which of them it has seen to."""

    def __init__(self, laboratory: Laboratory, leases: Leases) -> None:
        self._laboratory, self._leases = laboratory, leases
        self._gone, self._told = set[str](), False
        self._looked_at: int | None = None

    def drop(self, left: Mapping[str, None], failures: Mapping[str, Failure]) -> None:
        """Drop those that have become spare, where that is wished; a retry finds what it needs."""
        if not self._laboratory.drop_copies or len(left) == self._looked_at:  # no stage has ended
            return
        self._looked_at = len(left)
        again = {key for key, failure in failures.items() if not failure.incompatible}
        spare = set(spare_copies(self._laboratory.plan, left.keys() | again)) - self._gone
        if not spare:
            return
        if drop_spare(self._laboratory.store, self._leases, spare):
            self._gone |= spare
        elif not self._told:
            self._told = True
            self._laboratory.note(KEPT)


class _ThisProcess:
    """The process itself, and the stage it will do next."""

    def __init__(self, laboratory: Laboratory) -> None:
        self._laboratory = laboratory
        self._next: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def busy(self) -> set[str]:
        return {self._next} if self._next else set()

    @property
    def room(self) -> int:
        return 1 - len(self.busy)

    def start(self, key: str) -> None:
        self._next = key

    def finished(self, patience: float | None = None) -> list[tuple[str, Failure | None]]:
        key, self._next = self._next, None
        return [(key, attempt(self._laboratory, key))] if key else []


class _Processes:
    """Worker processes, and what each of them is doing."""

    def __init__(self, laboratory: Laboratory, workers: int, threads: int) -> None:
        # Pickled for the workers: without what this process has cached.
        self._for_workers = dataclasses.replace(laboratory, note=print)
        self._note = laboratory.note
        self._workers, self._threads = workers, threads
        self._running: dict[Future[tuple[Failure | None, list[str]]], str] = {}

    def __enter__(self) -> Self:
        self._executor = ProcessPoolExecutor(
            self._workers,
            # A forked child would inherit locks of threads it does not have.
            multiprocessing.get_context("spawn"),
            _enter,
            (self._for_workers, self._threads, os.getpid()),
        )
        return self

    def __exit__(self, *_: object) -> None:
        workers = list((getattr(self._executor, "_processes", None) or {}).values())
        self._executor.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()  # a stage cut short leaves nothing behind in the store

    @property
    def busy(self) -> set[str]:
        return set(self._running.values())

    @property
    def room(self) -> int:
        return self._workers - len(self._running)

    def start(self, key: str) -> None:
        try:
            future = self._executor.submit(_work, key)
        except BrokenProcessPool as error:  # a worker died meanwhile: `finished` replaces them all
            future = Future()
            future.set_exception(error)
        self._running[future] = key

    def finished(self, patience: float | None = None) -> list[tuple[str, Failure | None]]:
        done, _ = wait(self._running, patience, FIRST_COMPLETED)
        died = any(map(_is_lost, done))
        if died:  # with it all others end that have not ended yet
            done, _ = wait(self._running)
        results = [(self._running.pop(future), self._result(future)) for future in done]
        if died:
            self.__exit__()
            self.__enter__()
        return results

    def _result(self, future: Future[tuple[Failure | None, list[str]]]) -> Failure | None:
        if _is_lost(future):
            return Failure(
                "the worker process died; out of memory? try fewer --workers",
                environment=self._for_workers.environment,
            )
        failure, notes = future.result()
        for note in notes:
            self._note(note)
        return failure


def _is_lost(future: Future[tuple[Failure | None, list[str]]]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def attempt(laboratory: Laboratory, key: str) -> Failure | None:
    """Carry out a stage here; return why it failed, if it did."""
    try:
        laboratory.carry_out(laboratory.plan.stages[key])
    except Exception as error:  # whatever a plug-in raises is that cell's result
        return dataclasses.replace(Failure.of(error), environment=laboratory.environment)
    return None


_here: list[tuple[Laboratory, list[str]]] = []
"""The laboratory of this worker process, and the notes of its present stage."""


def _enter(laboratory: Laboratory, threads: int, parent: int) -> None:
    pin_threads(threads)
    notes: list[str] = []
    _here.append((dataclasses.replace(laboratory, note=notes.append), notes))
    threading.Thread(target=_outlive_nobody, args=(parent,), daemon=True).start()


def _outlive_nobody(parent: int) -> None:
    """End this worker when its parent was killed: nobody would collect its work."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(key: str) -> tuple[Failure | None, list[str]]:
    laboratory, notes = _here[0]
    notes.clear()
    return attempt(laboratory, key), list(notes)
