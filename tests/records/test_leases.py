"""Leases: one holder at a time, whoever dies, and nobody in the way for long."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.records import leases as module
from bench.records.leases import PRESENCE, Leases, _holder, _place, _sign

KEY = "ab12cd34ef56ab78"


@pytest.fixture
def two(tmp_path):
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        yield first, second


def written(folder: Path, **changes: object) -> Path:
    """Leave a lease as a run would that is no more, or that ran elsewhere."""
    path = folder / KEY
    path.write_text(json.dumps(json.loads(_holder()) | changes))
    return path


def past_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_run_at_a_time_has_a_stage(two):
    first, second = two
    assert first.take(KEY)
    assert not second.take(KEY)
    assert second.take("0" * 16)
    first.release(KEY)
    assert second.take(KEY)


def test_a_run_that_ends_gives_everything_back(tmp_path):
    with Leases(tmp_path) as leases:
        assert leases.take(KEY)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_alone_once_the_others_have_ended(tmp_path):
    with Leases(tmp_path) as leases:
        assert leases.alone()
        with Leases(tmp_path) as other:
            assert not leases.alone()
            assert not other.alone()
        assert leases.alone()
        assert leases.take(KEY)
        assert leases.alone()


def test_a_run_elsewhere_counts_until_it_has_stood_still_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    with Leases(tmp_path) as leases:
        written(tmp_path, place="another machine").rename(tmp_path / f"{PRESENCE}0")
        assert not leases.alone()
        time.sleep(0.4)
        assert leases.alone()


def test_who_comes_while_another_deletes_waits_until_that_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.01)
    entered = threading.Event()

    def come():
        with Leases(tmp_path):
            entered.set()

    with Leases(tmp_path) as first:
        with first.behind_the_door() as alone:
            assert alone
            late = threading.Thread(target=come)
            late.start()
            assert not entered.wait(0.3)
            assert not first.alone()  # it is seen all the same
        assert entered.wait(5)
        late.join()


def test_who_is_not_alone_or_finds_the_door_shut_may_delete_nothing(two):
    first, second = two
    for one, other in ((first, second), (second, first)):
        with one.behind_the_door() as alone, other.behind_the_door() as beside:
            assert (alone, beside) == (False, False)


def test_a_run_taken_for_dead_shows_again_that_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    with Leases(tmp_path) as late, Leases(tmp_path) as other:
        other._break(late._name, _sign(tmp_path / late._name))
        time.sleep(0.3)
        assert not other.alone()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_is_waited_for(two, monkeypatch):
    first, second = two
    monkeypatch.setattr(module, "POLL", 0.01)
    assert first.take(KEY)
    threading.Timer(0.1, first.release, [KEY]).start()
    began = time.monotonic()
    second.wait_for(KEY)
    assert time.monotonic() - began > 0.05


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({}, False),  # this very process
        ({"pid": 1, "born": "0"}, True),  # a later process of the same number
        ({"pid": past_pid()}, True),
        ({"pid": past_pid(), "place": "another machine"}, False),
        ({"pid": past_pid(), "place": ""}, False),
    ],
)
def test_on_one_machine_the_dead_block_nobody(tmp_path, changes, free):
    if not _place():
        pytest.skip("this system does not tell one process of a machine from all others")
    with Leases(tmp_path) as earlier:
        written(tmp_path, **changes)
        assert earlier.take(KEY) == free
        written(tmp_path, **changes)
        with Leases(tmp_path) as later:
            assert (tmp_path / KEY).exists() != free
            assert later.take(KEY) == free


HOLD = """
import pathlib, sys, time
from bench.records.leases import Leases

Leases(pathlib.Path(sys.argv[1])).__enter__().take(sys.argv[2])
time.sleep(60)
"""


def test_a_killed_process_is_dead_before_anybody_collects_it(tmp_path):
    if not _place():
        pytest.skip("this system does not tell one process of a machine from all others")
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path, KEY]) as process:
        while not (tmp_path / KEY).exists() or not (tmp_path / KEY).read_text():
            time.sleep(0.05)
        with Leases(tmp_path) as leases:
            assert not leases.take(KEY)
            process.send_signal(signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet collected
            assert leases.take(KEY)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_lease_that_stands_still_is_broken_after_a_while_and_not_before(
    tmp_path, monkeypatch, content
):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    path = written(tmp_path, place="another machine")
    if content is not None:
        path.write_text(content)
    os.utime(path, (0, 0))  # how old it says it is means nothing: its clock is another's
    with Leases(tmp_path) as leases:
        assert not leases.take(KEY)
        time.sleep(0.1)
        assert not leases.take(KEY)
        time.sleep(0.4)
        assert leases.take(KEY)


def test_a_lease_that_is_touched_is_never_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    monkeypatch.setattr(module, "BEAT", 0.02)
    monkeypatch.setattr(module, "_place", lambda: "")  # as if on two machines
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.take(KEY)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert not second.take(KEY)
            time.sleep(0.05)


def test_a_holder_taken_for_dead_takes_nothing_from_its_successor(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_place", lambda: "")
    with Leases(tmp_path) as late, Leases(tmp_path) as successor, Leases(tmp_path) as third:
        assert late.take(KEY)
        successor._break(KEY, _sign(tmp_path / KEY))
        assert successor.take(KEY)
        late.release(KEY)
        assert not third.take(KEY)


def test_a_breaker_that_comes_late_leaves_the_new_lease_alone(tmp_path):
    with Leases(tmp_path) as quicker:
        path = written(tmp_path, pid=past_pid())
        old = _sign(path)
        quicker._break(KEY, old)
        assert quicker.take(KEY)
        new = _sign(path)
        quicker._break(KEY, old)
        assert _sign(path) == new
        assert {p.name for p in tmp_path.iterdir()} == {path.name, quicker._name}


def test_of_many_who_find_a_dead_lease_one_gets_it(tmp_path):
    dead, crowd = past_pid(), 8
    for _ in range(50):
        ready, got = threading.Barrier(crowd), []

        def grab(leases, ready=ready, got=got):
            ready.wait()
            got.append(leases.take(KEY))

        with ExitStack() as stack:
            everybody = [stack.enter_context(Leases(tmp_path)) for _ in range(crowd)]
            written(tmp_path, pid=dead)
            threads = [threading.Thread(target=grab, args=(one,)) for one in everybody]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert got.count(True) == 1


COUNT_UP = """
import pathlib, sys, time
from bench.records import leases as lease

folder, times = pathlib.Path(sys.argv[1]), int(sys.argv[2])
lease.POLL = 0.001
with lease.Leases(folder / "leases") as leases:
    for _ in range(times):
        leases.wait_for("count")
        number = int((folder / "count").read_text())
        time.sleep(0.001)
        (folder / "count").write_text(str(number + 1))
        leases.release("count")
"""


def test_what_a_lease_guards_is_never_done_by_two_processes_at_once(tmp_path):
    (tmp_path / "count").write_text("0")
    processes, times = 3, 100
    command = [sys.executable, "-c", COUNT_UP, str(tmp_path), str(times)]
    crowd = [subprocess.Popen(command) for _ in range(processes)]
    assert [process.wait() for process in crowd] == [0] * processes
    assert (tmp_path / "count").read_text() == str(processes * times)
