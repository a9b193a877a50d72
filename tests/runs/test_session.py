"""Runs of a whole suite, as a user starts them: killed, repeated, at once, on a damaged store."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import made
import pytest
import torch
import warm
import yaml

from bench.records import ledger
from bench.records.store import Store
from bench.runs import engines
from bench.runs.laboratory import Laboratory
from bench.suite import plan
from bench.suite.reader import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SUITE = made.suite(
    attacks=[
        "{name: control.identity}",
        "{name: finetune.classify, data: digits, epochs: 1}",
        "{name: prune.l1, amount: 0.4}",
    ],
    innocents="{strangers: 1, twin_seeds: 1, attacked_strangers: 1, pretraining_steps: 1}",
)

SEED, KILLS = 20, 10


WATCHED = """
# The command, and a line in a log for every stage begun; HOLD names a kind of stages never ended.
import os, sys, time
from bench import cli
from bench.runs.laboratory import Laboratory

carry_out = Laboratory.carry_out


def watched(laboratory, stage):
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{stage.kind} {stage.key}\\n")
    while stage.kind == os.environ.get("HOLD"):
        time.sleep(1)
    return carry_out(laboratory, stage)


Laboratory.carry_out = watched  # in the workers too: they run this file first
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""

FORKED = """
# The command, and workers forked from it: others would load libraries when the kill hits them.
import multiprocessing, sys
from bench import cli

fork = multiprocessing.get_context("fork")
multiprocessing.get_context = lambda method=None: fork
sys.exit(cli.main(sys.argv[1:]))
"""


def start(
    suite: Path,
    results: Path,
    workers: int = 1,
    watched: dict[str, str] | None = None,
    program: Path | str = "bench",
) -> warm.Running:
    if watched is not None:
        program = results / "watched.py"
        program.write_text(WATCHED)
    arguments = ["--results", results, "--device", "cpu", "--workers", workers]
    return warm.start(program, "run", suite, *arguments, env=os.environ | (watched or {}))


def finish(process: warm.Running) -> str:
    output = process.finish()
    assert process.returncode == 0, output
    return output


def run(suite: Path, results: Path, workers: int = 1) -> str:
    with start(suite, results, workers) as process:
        return finish(process)


def killed(program: Path, suite: Path, results: Path, workers: int, delay: float) -> bool:
    """Start a run and kill it after `delay` seconds, unless it has finished by then."""
    with start(suite, results, workers, program=program) as process:
        if process.over_within(delay):
            finish(process)
            return False
        process.kill()
        process.finish()
    return process.returncode == -signal.SIGKILL


def answers(results: Path) -> dict[str, tuple]:
    """All that two runs must agree on, by cell; every cell asked is answered, and no other."""
    home = results / "tiny"
    latest = ledger.latest(ledger.read(home))
    asked = {key for key, _ in ledger.read_outline(home / "suite.json").cells}
    assert latest.keys() == asked
    assert {record.status for record in latest.values()} == {"ok"}
    return {
        key: (r.cell, r.evidence, r.utility, r.fidelity, r.suspect_digest, r.owner_digest)
        for key, r in latest.items()
    }


def records_per_cell(results: Path) -> set[int]:
    return set(Counter(record.key for record in ledger.read(results / "tiny")).values())


def damage(results: Path) -> list[str]:
    store = Store(results / ".store")
    sidecars = store.root.glob("??/*.json")
    return [path.stem for path in sidecars if not store.verify(path.stem)]


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def undisturbed(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The results of a run nobody disturbed, and the seconds it took; not to be written to."""
    results = tmp_path_factory.mktemp("undisturbed")
    with warm.start("bench", "--help") as first:  # loads what later programs find there
        finish(first)
    began = time.monotonic()
    run(suite, results)
    return results, time.monotonic() - began


@pytest.fixture(scope="module")
def reversed_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two workers and a suite whose attacks are in reverse."""
    content = yaml.safe_load(SUITE)
    content["attacks"].reverse()
    results = tmp_path_factory.mktemp("reversed")
    suite = results / "reversed.yaml"
    suite.write_text(yaml.safe_dump(content))
    run(suite, results, 2)
    return results


@pytest.fixture
def results(undisturbed: tuple[Path, float], tmp_path: Path) -> Path:
    """A copy of the undisturbed results, to do with as one likes."""
    return shutil.copytree(undisturbed[0], tmp_path / "results")


def test_a_run_killed_ten_times_ends_with_the_evidence_of_one_left_alone(
    suite, undisturbed, tmp_path
):
    calm, seconds = undisturbed
    print(f"seed {SEED}, seconds that a run takes undisturbed: {seconds}")  # shown if it fails
    program = tmp_path / "forked.py"
    program.write_text(FORKED)
    rng, folders, left = random.Random(SEED), [tmp_path / "0"], KILLS
    while left:
        workers = rng.choice([1, 2])
        if killed(program, suite, folders[-1], workers, rng.uniform(0, seconds)):
            left -= 1
        else:  # it was quicker than the kill: the others have to hit a new one
            folders.append(tmp_path / str(len(folders)))
    run(suite, folders[-1])
    for folder in folders:
        assert answers(folder) == answers(calm)
        assert records_per_cell(folder) == {1}
        assert damage(folder) == []


def test_a_second_run_does_no_work(suite, results):
    before = state(results / ".store") | state(results / "tiny" / "records")
    assert "to answer" not in run(suite, results)
    assert state(results / ".store") | state(results / "tiny" / "records") == before


def begun(log: Path) -> Counter[str]:
    return Counter(log.read_text().splitlines() if log.exists() else [])


def everything(suite: Path) -> set[str]:
    """All the stages of a suite, as the log names them."""
    return {f"{stage.kind} {key}" for key, stage in plan.make(load(suite), None).stages.items()}


def test_two_runs_at_once_on_one_folder_agree_and_do_each_stage_once(suite, undisturbed, tmp_path):
    log = tmp_path / "log"
    one, two = (start(suite, tmp_path, workers, {"LOG": str(log)}) for workers in (1, 2))
    with one, two:
        finish(one)
        finish(two)
    assert begun(log) == dict.fromkeys(everything(suite), 1)
    assert answers(tmp_path) == answers(undisturbed[0])
    assert damage(tmp_path) == []
    assert list(Store(tmp_path / ".store").leases.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_killed_run_was_at_the_other_run_takes_over(suite, undisturbed, tmp_path, workers):
    log, kind = tmp_path / "log", "protect"
    with start(suite, tmp_path, workers, {"LOG": str(log), "HOLD": kind}) as stuck:
        while not any(line.startswith(kind) for line in begun(log)):
            time.sleep(0.1)
        with start(suite, tmp_path, 1, {"LOG": str(log)}) as other:
            # It does what it can meanwhile, and waits for the one stage that the others need.
            for line in other.stdout:
                if "waiting for" in line:
                    break
            stuck.kill()
            stuck.finish()
            finish(other)
    twice = {line: times for line, times in begun(log).items() if times > 1}
    assert kind in {line.split()[0] for line in twice}
    assert len(twice) <= workers  # the killed run was at no more than that
    assert set(twice.values()) == {2}
    assert begun(log).keys() == everything(suite)
    assert answers(tmp_path) == answers(undisturbed[0])


def test_neither_order_nor_engine_changes_the_evidence(undisturbed, reversed_by_two):
    (calm, _), other = undisturbed, reversed_by_two
    there, here = (
        [key for key, _ in ledger.read_outline(folder / "tiny" / "suite.json").cells]
        for folder in (calm, other)
    )
    assert here != there
    assert answers(other) == answers(calm)


def artefact(results: Path, kind: str, step: str = "") -> str:
    found = (a for a in Store(results / ".store") if a.kind == kind)
    return next(a.key for a in found if not step or a.recipe["step"]["name"] == step)


def test_a_deleted_artefact_is_made_again_bit_by_bit(suite, results):
    store, before = Store(results / ".store"), answers(results)
    keys = [artefact(results, "protect"), artefact(results, "attack", "finetune.classify")]
    digests = [store.find(key).tensors for key in keys]
    for key in keys:
        store.remove(key)
    shutil.rmtree(results / "tiny" / "records")
    output = run(suite, results)
    assert "damaged" not in output
    assert [store.find(key).tensors for key in keys] == digests
    assert answers(results) == before


@pytest.mark.parametrize(("suffix", "workers"), [(".safetensors", 1), (".json", 2)])
def test_a_damaged_artefact_is_reported_and_made_again(suite, results, suffix, workers):
    store, before = Store(results / ".store"), answers(results)
    needed, dependent = artefact(results, "cohort"), artefact(results, "attack", "control.stranger")
    digest = store.find(needed).tensors
    path = store.root / needed[:2] / f"{needed}{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    store.remove(dependent)  # or nobody would have to load what is damaged
    shutil.rmtree(results / "tiny" / "records")
    output = run(suite, results, workers)
    assert output.count(f"store: cohort {needed} was damaged and is made again") == 1
    assert store.find(needed).tensors == digest
    assert answers(results) == before


def test_a_worker_that_dies_fails_one_stage_and_the_next_is_carried_out(suite, results):
    made = plan.make(load(suite), None)
    store = Store(results / ".store")
    key = artefact(results, "attack", "prune.l1")
    store.remove(key)
    with engines._Processes(Laboratory(made, store, None, torch.device("cpu")), 1, 1) as pool:
        pool.start(key)
        assert pool.finished() == [(key, None)]
        (worker,) = pool._executor._processes.values()
        worker.kill()
        worker.join()
        time.sleep(0.5)  # the pool notices, and takes no more work
        pool.start(key)
        [(_, failure)] = pool.finished()
        assert "worker process died" in failure.reason
        pool.start(key)
        assert pool.finished() == [(key, None)]
