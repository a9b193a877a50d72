"""Walks through a plan whose stages take no time: what is dropped when, and who has failed."""

import dataclasses
from collections import Counter
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest
import torch
from made import suite

from bench.records.leases import KEPT, Leases
from bench.records.nouns import Incompatible
from bench.records.store import Store
from bench.runs import engines
from bench.runs.engines import Failure
from bench.runs.foresight import budget
from bench.runs.laboratory import Laboratory
from bench.suite import plan
from bench.suite.reader import load

TWO_STEPS = suite().replace(
    "  - {name: prune.l1, amount: 0.4}\n",
    "  - [{name: prune.l1, amount: 0.4}, {name: quantize}]\n  - {name: prune.l1, amount: 0.2}\n",
)


@dataclasses.dataclass(frozen=True)
class Stub(Laboratory):
    """Makes a number of every stage; a copy that was dropped cannot be read."""

    error: Exception | None = None

    def carry_out(self, stage):
        for parent in stage.parents if stage.kind == "extract" else stage.parents[:1]:
            assert self.store.verify(parent), f"{stage.kind} needs what was dropped"
        if self.error is not None and stage.kind == "extract":
            raise self.error
        tensors = {"w": torch.ones(1)} if stage.kind in ("owner", "protect", "attack") else None
        return self.store.put(stage.key, stage.kind, dict(stage.recipe), stage.parents, {}, tensors)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(TWO_STEPS.replace("strangers: 1", "strangers: 0"))
    return plan.make(load(path), None)


@pytest.fixture
def laboratory(made, tmp_path):
    return Stub(made, Store(tmp_path), None, torch.device("cpu"), [].append, drop_copies=True)


def answered(laboratory):
    return list(engines.serial(laboratory, laboratory.plan.questions))


def copies(laboratory):
    found = map(laboratory.store.find, laboratory.plan.stages)
    return [a.dropped for a in found if a is not None and a.kind == "attack"]


def test_a_copy_goes_once_nobody_needs_it_and_is_looked_at_once(laboratory, monkeypatch):
    looked, drop = Counter(), Store.drop
    monkeypatch.setattr(Store, "drop", lambda s, key: (looked.update([key]), drop(s, key)))
    assert not [why for _, why in answered(laboratory) if why]
    assert all(copies(laboratory))
    assert looked == dict.fromkeys(looked, 1)
    assert len(looked) == len(copies(laboratory)) > 4


@pytest.mark.parametrize(
    ("error", "kept"), [(RuntimeError("a full disk"), True), (Incompatible("no head"), False)]
)
def test_what_a_retry_would_read_stays(laboratory, error, kept, monkeypatch):
    failing = dataclasses.replace(laboratory, error=error)
    assert all(why for _, why in answered(failing))
    assert (False in copies(failing)) == kept
    assert True in copies(failing)  # the first of two steps is nobody's suspect
    if kept:
        monkeypatch.setattr(Store, "drop", lambda store, key: None)
        before = {p: p.stat().st_mtime_ns for p in failing.store.root.glob("??/*.safetensors")}
        assert not any(why for _, why in answered(dataclasses.replace(failing, error=None)))
        assert {p: p.stat().st_mtime_ns for p in before} == before


def test_copies_that_had_to_stay_are_spoken_of_once(laboratory):
    with Leases(laboratory.store.leases):
        answered(laboratory)
    assert not any(copies(laboratory))
    assert laboratory.note.__self__ == [KEPT]


class Idle(engines._ThisProcess):
    """A pool that must not be waited for."""

    def finished(self, patience=None):
        raise AssertionError("nothing is left to wait for")


def test_where_all_is_there_copies_go_and_nobody_is_waited_for(laboratory):
    answered(dataclasses.replace(laboratory, drop_copies=False))
    assert not any(copies(laboratory))
    questions = laboratory.plan.questions
    found = list(engines.walk(laboratory, questions, Idle(laboratory)))
    assert [question for question, _ in found] == list(questions)
    assert all(copies(laboratory))


def test_a_worker_that_dies_takes_no_stage_with_it_that_had_ended(laboratory, monkeypatch):
    monkeypatch.setattr(engines._Processes, "__enter__", lambda self: self)
    monkeypatch.setattr(engines._Processes, "__exit__", lambda self, *_: None)
    pool = engines._Processes(laboratory, 3, 1)
    for key in ("made", "failed", "lost"):
        pool._running[Future()] = key
    made, failed, lost = pool._running
    lost.set_exception(BrokenProcessPool())
    made.set_result((None, ["a note"]))
    failed.set_result((Failure("its own reason"), []))
    found = dict(pool.finished())
    assert found["made"] is None
    assert found["failed"].reason == "its own reason"
    assert found["lost"].reason.startswith("the worker process died")
    assert not pool.busy
    assert laboratory.note.__self__ == ["a note"]


@dataclasses.dataclass(frozen=True)
class Made:
    """A stage, or a question, by what it needs."""

    parents: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


DIAMOND = {"a": Made(), "b": Made(), "c": Made(("a", "b", "made before")), "d": Made(("c",))}
"""Both a and b are needed for c, and c for d."""


@pytest.fixture
def left():
    asked = [Made(stages=s) for s in [("d", "a"), ("b", "a"), ("made before",), ("d", "c")]]
    return engines._Left(SimpleNamespace(stages=DIAMOND), tuple("abcd"), asked)


def test_stages_come_in_turn_and_questions_once_nothing_they_need_is_left(left):
    asked = left._questions
    assert list(left.answered()) == [(asked[2], None)]
    assert [left.next(), left.next(), left.next()] == ["a", "b", None]
    left.put_back(["b", "a"])
    assert [left.next(), left.next()] == ["a", "b"]
    left.end("b")
    assert left.next() is None
    left.end("a")
    assert list(left.answered()) == [(asked[1], None)]
    assert left.next() == "c"
    left.end("c")
    left.end(left.next())
    assert list(left.answered()) == [(asked[0], None), (asked[3], None)]
    assert not left.stages
    assert not left.asked


def test_what_follows_from_a_failure_fails_with_it_and_never_starts(left):
    assert [left.next(), left.next()] == ["a", "b"]
    first, second = Failure("first"), Failure("second")
    left.end("a", first)
    assert set(left.stages) == {"b"}
    left.end("b")  # the last that c waited for, had a not failed
    assert left.next() is None
    left.end("b", second)  # said twice changes nothing
    assert [why for _, why in left.answered()] == [first, first, None, first]
    assert left.failures.keys() == {"a", "c", "d"}


def test_a_plug_in_that_cannot_count_costs_the_order_alone(laboratory, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("a count of a plug-in's own")

    line = engines.in_line(laboratory.plan, laboratory.store, laboratory.plan.questions)
    monkeypatch.setattr(budget, "counted", fails)
    unordered = engines.in_line(laboratory.plan, laboratory.store, laboratory.plan.questions)
    assert set(unordered) == set(line)
    assert not [why for _, why in answered(laboratory) if why]
