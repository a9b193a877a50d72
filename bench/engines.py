"""Carry out a plan's stages, each once: in this process, or side by side in several.

An engine takes a laboratory and questions and yields each question, with the reason if it could not
be answered, as soon as its stages are done. Artefacts pass through the store, never through memory.
Every stage runs on the same number of threads whichever engine carries it out, so evidence does not
depend on the engine.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Self

from bench import runner
from bench.plan import missing
from bench.runner import Failure, Laboratory

if TYPE_CHECKING:
    from bench.plan import Question, Stage


def serial(
    laboratory: Laboratory, questions: Sequence[Question]
) -> Iterator[tuple[Question, Failure | None]]:
    """Carry out the stages of one question after the other.

    A stage that fails is not tried again in this run; the questions that need it fail with its
    reason and the others go on.
    """
    plan, failures = laboratory.plan, dict[str, Failure]()
    for question in questions:
        for key in missing(plan, laboratory.store, [question]):
            stage = plan.stages[key]
            failure = failures.get(key) or _inherited(stage, failures)
            failure = failure or _attempt(laboratory, stage)
            if failure is not None:
                failures[key] = failure
        yield question, _verdict(question, failures)


def processes(
    laboratory: Laboratory, questions: Sequence[Question], workers: int, threads: int
) -> Iterator[tuple[Question, Failure | None]]:
    """Carry out stages side by side in `workers` processes of `threads` threads each.

    Stages start in the order of the questions as soon as their parents are made. A worker that dies
    takes the stages then running with it; the others go on in new workers.
    """
    stages, failures = laboratory.plan.stages, dict[str, Failure]()
    left = dict.fromkeys(missing(laboratory.plan, laboratory.store, questions))
    unanswered = list(questions)
    with _Crew(laboratory, workers, threads) as crew:
        while unanswered:
            for question in [q for q in unanswered if left.keys().isdisjoint(q.stages)]:
                unanswered.remove(question)
                yield question, _verdict(question, failures)
            ready = (
                key
                for key in left
                if key not in crew.busy and left.keys().isdisjoint(stages[key].parents)
            )
            for key in list(itertools.islice(ready, workers - len(crew.busy))):
                crew.start(key)
            for key, failure in crew.finished():
                del left[key]
                if failure is not None:
                    failures[key] = failure
            _drop_heirs(stages, left, failures)


class _Crew:
    """Worker processes, and what each of them is doing."""

    def __init__(self, laboratory: Laboratory, workers: int, threads: int) -> None:
        # Pickled for the workers: without what this process has cached.
        self._for_workers = dataclasses.replace(laboratory, note=print)
        self._note = laboratory.note
        self._workers, self._threads = workers, threads
        self._running: dict[Future[tuple[Failure | None, list[str]]], str] = {}

    def __enter__(self) -> Self:
        self._pool = ProcessPoolExecutor(
            self._workers,
            # A forked child would inherit locks of threads it does not have.
            multiprocessing.get_context("spawn"),
            _enter,
            (self._for_workers, self._threads, os.getpid()),
        )
        return self

    def __exit__(self, *_: object) -> None:
        workers = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()  # a stage cut short leaves nothing behind in the store

    @property
    def busy(self) -> set[str]:
        return set(self._running.values())

    def start(self, key: str) -> None:
        try:
            future = self._pool.submit(_work, key)
        except BrokenProcessPool as error:  # a worker died meanwhile: `finished` replaces them all
            future = Future()
            future.set_exception(error)
        self._running[future] = key

    def finished(self) -> list[tuple[str, Failure | None]]:
        """Wait for the next stages to end and return them, with the reason if they failed."""
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        try:
            results = [(future, *future.result()) for future in done]
        except BrokenProcessPool:
            return self._replaced()
        for _, _, notes in results:
            for note in notes:
                self._note(note)
        return [(self._running.pop(future), failure) for future, failure, _ in results]

    def _replaced(self) -> list[tuple[str, Failure | None]]:
        died = Failure("the worker process died; out of memory? try fewer --workers")
        lost = [(key, died) for key in self._running.values()]
        self._running.clear()
        self.__exit__()
        self.__enter__()
        return [*lost]


def _attempt(laboratory: Laboratory, stage: Stage) -> Failure | None:
    try:
        laboratory.carry_out(stage)
    except Exception as error:  # whatever a plug-in raises is that cell's result
        return Failure.of(error)
    return None


def _inherited(stage: Stage, failures: dict[str, Failure]) -> Failure | None:
    return next((failures[p] for p in stage.parents if p in failures), None)


def _verdict(question: Question, failures: dict[str, Failure]) -> Failure | None:
    return next((failures[key] for key in question.stages if key in failures), None)


def _drop_heirs(
    stages: Mapping[str, Stage], left: dict[str, None], failures: dict[str, Failure]
) -> None:
    """Drop what can no longer be made because a parent failed; parents come first in `left`."""
    for key in list(left):
        inherited = _inherited(stages[key], failures)
        if inherited is not None:
            failures[key] = inherited
            del left[key]


_here: list[tuple[Laboratory, list[str]]] = []
"""The laboratory of this worker process, and the notes of its present stage."""


def _enter(laboratory: Laboratory, threads: int, parent: int) -> None:
    runner.pin_threads(threads)
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
    return _attempt(laboratory, laboratory.plan.stages[key]), list(notes)
