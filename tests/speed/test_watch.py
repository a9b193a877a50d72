"""The gate on speed, with the faults it is there for planted one by one."""

import contextlib
import io
import json
import os
import random
import runpy
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from made_models import CPU
from scipy.stats import binom

from bench import workload
from bench.cli import main
from bench.models.vision import VisionModel
from bench.records.nouns import UserError
from bench.speed import ideal, revisions, watch
from bench.speed.ideal import Counts
from bench.speed.watch import Baseline, Expected
from bench.workload import Prepared, Workload, load
from methods.activemark import embedding

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests/perf/workloads.py"
OURS = runpy.run_path(str(FILE))

THEIRS = """
from pathlib import Path

import torch

from bench import testing
from bench.models import View
from bench.types import Access
from bench.workload import Prepared, Workload


def asking(device):
    model, images = testing.owner(), torch.zeros(8, 3, 32, 32)
    view = View(model, Access.FEATURES)

    def passes():
        with torch.no_grad():
            model.forward_features(images)

    return Prepared(lambda: view.features(images), passes)


WORKLOADS = [Workload("theirs.ask", asking)]
"""
"""A third party's file: one workload, eight queries."""


def marking(device):
    """Prepare what the workload `activemark.paper` does, on few images: the loop is most of it."""
    settings = {"variant": "paper", "images": 8, "steps": 24, "batch": 8}
    return OURS["marking"](*OURS["mini"](device), OURS["BLOCK"], **settings)


MARKING = Workload("activemark.paper", marking)


def spin(seconds):
    """Spend seconds of this thread on the processor.

    Those of the clock may be another's, and those of the process count threads that only wait.
    """
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def bench(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["perf", *map(str, arguments)])
    return status, out.getvalue(), err.getvalue()


def outcomes(found):
    return {(row[0], row[1]): row[-1] for row in found.table.rows}


# Rounds.


@pytest.mark.parametrize("count", [9, 15, 30, 45])
def test_the_interval_is_as_wide_as_coins_demand(count):
    shuffled = random.Random(0).sample(range(count), count)
    found = ideal.interval([float(n) for n in shuffled])
    below = int(found.low)  # so many ratios lie below the interval, and as many above
    assert found.high == count - 1 - below
    assert 2 * binom.cdf(below, count, 0.5) <= ideal.ERROR < 2 * binom.cdf(below + 1, count, 0.5)


@pytest.mark.parametrize(
    ("draws", "limit", "taken"),
    [
        pytest.param(lambda rng: 1.0, 1.15, ideal.LEAST, id="clearly below"),
        pytest.param(lambda rng: 1.3, 1.15, ideal.LEAST, id="clearly above"),
        pytest.param(lambda rng: 1.3, None, ideal.LEAST, id="no limit, no noise"),
        pytest.param(lambda rng: rng.uniform(0.5, 1.8), 1.15, ideal.MOST, id="too noisy to say"),
        pytest.param(lambda rng: rng.uniform(0.5, 1.8), None, ideal.MOST, id="never narrow"),
    ],
)
def test_rounds_go_on_until_the_limit_is_settled(draws, limit, taken):
    rng, firsts = random.Random(0), []

    def pair(run_first):
        firsts.append(run_first)
        return draws(rng)

    assert ideal.settled(pair, limit).rounds == taken
    assert abs(2 * sum(firsts) - len(firsts)) <= 1  # each side goes first as often


@pytest.mark.parametrize(("said", "seconds"), [("5 2500000000 7\n", 2.5), ("", 0.0), (None, 0.0)])
def test_what_others_had_of_the_processor_is_read_where_the_system_says(
    said, seconds, tmp_path, monkeypatch
):
    monkeypatch.setattr(workload, "_SCHEDULED", tmp_path / "schedstat")
    if said is not None:
        written(tmp_path / "schedstat", said)
    assert workload.waited() == seconds


# Counts.


def test_counts_are_of_passes_queries_trainings_and_what_is_written(tmp_path):
    ask = load([written(tmp_path / "theirs.py", THEIRS)])["theirs.ask"].prepare(CPU)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/old.safetensors").write_bytes(b"untouched")
    weight = torch.nn.Parameter(torch.ones(2))

    def run():
        ask.run()
        for steps in (2, 1):
            optimiser = torch.optim.SGD([weight], lr=0.1)
            for _ in range(steps):
                weight.grad = torch.ones(2)
                optimiser.step()
        (tmp_path / "store/new.safetensors").write_bytes(b"12345")
        (tmp_path / "store/new.json").write_text("{}")

    found = ideal.counted(Prepared(run, store=tmp_path / "store"), CPU)
    assert found == Counts(8, 0, 8, 8, trainings=2, steps=3, files=2, bytes=5)


# The gate, in one process.


@pytest.fixture(scope="module")
def known():
    """What the embedding loop takes on this tree, unchanged, here and now."""
    found = ideal.effort(MARKING, CPU)  # as exactly as the machine allows: two tests stand on it
    return Baseline({MARKING.name: Expected(found.counts, found.ratio.median)}, {})


def held(known):
    return watch.held({MARKING.name: MARKING}, CPU, known)


def measured(until, measure):
    """Measure again, twice at most, while it says something else: other work may have been on."""
    for _ in range(3):
        found, outcome = measure()
        if outcome == until:
            break
    return found, outcome


@pytest.mark.perf
@pytest.mark.slow
def test_an_unchanged_tree_holds(known):
    found, outcome = measured("holds", lambda: ((f := held(known)), f.outcome))
    assert outcome == "holds", found.table.rows


def test_an_extra_forward_pass_is_found(known, monkeypatch):
    run_blocks = VisionModel.run_blocks

    def twice(self, tokens, start=0, stop=None):
        run_blocks(self, tokens, start, stop)
        return run_blocks(self, tokens, start, stop)

    monkeypatch.setattr(VisionModel, "run_blocks", twice)
    untimed = Workload("w", lambda device: Prepared(MARKING.prepare(device).run))
    expected = Expected(known.workloads[MARKING.name].counts)
    found = watch.held({"w": untimed}, CPU, Baseline({"w": expected}, {}))
    assert found.outcome == "worse"
    assert outcomes(found)["w", "forward"] == "worse"


@pytest.mark.perf
@pytest.mark.slow
def test_an_embedding_loop_slower_by_half_is_found(known, monkeypatch):
    repeat = embedding._repeat

    def slow(step, *others):
        def slowed(number):
            began = time.thread_time()
            step(number)
            spin(0.5 * (time.thread_time() - began))  # the loop is two thirds of the work

        return repeat(slowed, *others)

    monkeypatch.setattr(embedding, "_repeat", slow)
    found, outcome = measured("worse", lambda: ((f := held(known)), f.outcome))
    assert outcome == "worse", found.table.rows
    assert outcomes(found)[MARKING.name, "ratio to ideal"] == "worse"
    assert outcomes(found)[MARKING.name, "counts"] == "holds"


def test_fewer_passes_hold_and_are_said_to(known):
    more = Baseline({"w": Expected(Counts(forward=3.0))}, {})
    found = watch.held({"w": Workload("w", lambda device: Prepared(lambda: None))}, CPU, more)
    assert found.outcome == "holds"
    assert outcomes(found)["w", "forward"] == "better"
    assert any("--update" in note for note in found.table.notes)


def broken(device):
    raise RuntimeError("no such device")


@pytest.mark.parametrize(
    ("workloads", "baseline"),
    [
        pytest.param({}, {}, id="nothing ran"),
        pytest.param({"w": lambda device: Prepared(int)}, {}, id="no baseline"),
        pytest.param({}, {"w": Expected(Counts())}, id="no workload"),
        pytest.param({"w": broken}, {"w": Expected(Counts())}, id="broken workload"),
        pytest.param(
            {"w": lambda device: Prepared(int)}, {"w": Expected(Counts(), 1.0)}, id="no ideal"
        ),
    ],
)
def test_what_could_not_be_measured_never_holds(workloads, baseline):
    found = watch.held(
        {n: Workload(n, p) for n, p in workloads.items()}, CPU, Baseline(baseline, {})
    )
    assert found.outcome == "not measured"


def test_a_ratio_too_noisy_to_tell_is_not_measured():
    noisy = ideal.Ratio(median=1.2, low=1.1, high=1.4, rounds=ideal.MOST)
    assert watch._ratio_row("w", "ratio", 1.0, noisy, limit=1.15).outcome == "not measured"


def test_a_promise_holds_whatever_the_baseline_allows():
    promised = Workload("w", lambda device: Prepared(int), limit=1.15)
    assert watch._limit(promised, Expected(Counts(), ratio=2.0)) == 1.15
    assert watch._limit(promised, Expected(Counts(), ratio=0.9)) == pytest.approx(0.9 * 1.15)


def test_a_baseline_of_another_device_is_refused():
    made = Baseline({}, {"device": "another"})
    with pytest.raises(UserError, match="--baseline: expected one made on CPU"):
        watch.held({}, CPU, made)


# The command.


def written(path, text):
    path.write_text(text)
    return path


def test_a_third_party_makes_and_holds_a_baseline_of_its_own(tmp_path):
    given = ("--workloads", written(tmp_path / "theirs.py", THEIRS))
    given += ("--baseline", tmp_path / "perf.json")
    assert bench("--check", *given)[0] == 4
    status, said, _ = bench("--update", *given)
    assert status == 0
    assert "theirs.ask" in said
    assert "environment" in json.loads((tmp_path / "perf.json").read_text())
    again = watch.read(tmp_path / "perf.json")
    assert again.workloads["theirs.ask"].counts == Counts(forward=8, images=8, queries=8)
    loose = Expected(again.workloads["theirs.ask"].counts, 1.0, tolerance=9.0)
    watch.write(tmp_path / "perf.json", Baseline({"theirs.ask": loose}, again.environment))
    assert bench("--check", *given)[0] == 0
    assert bench("--update", *given)[0] == 0
    assert watch.read(tmp_path / "perf.json").workloads["theirs.ask"].tolerance == 9.0
    status, said, _ = bench(*given)
    assert status == 0
    assert "TFLOP/s" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workloads", "nowhere.py"], "expected a file of workloads"),
        (["--base", "HEAD"], "--base: expected --check"),
        (["--check", "--baseline", FILE], "expected a baseline"),
    ],
)
def test_a_mistake_is_one_line(arguments, complaint, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, said, complained = bench(*arguments)
    assert (status, said) == (2, "")
    assert complaint in complained
    assert complained.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import nowhere_at_all", "got ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("WORKLOADS = [", "got SyntaxError"),
        ("raise ValueError('two\\nlines')", "got ValueError: two lines"),
        ("", "WORKLOADS, got none"),
        ("WORKLOADS = 3", "WORKLOADS, got 3"),
        ("WORKLOADS = ['one']", "WORKLOADS, got ['one']"),
    ],
)
def test_a_file_that_lists_no_workloads_is_one_line(text, complaint, tmp_path):
    status, said, complained = bench("--workloads", written(tmp_path / "theirs.py", text))
    assert (status, said) == (2, "")
    assert complaint in complained
    assert complained.count("\n") == 1


def test_a_baseline_of_another_device_is_refused_before_anything_is_timed(tmp_path, monkeypatch):
    watch.write(tmp_path / "perf.json", Baseline({}, {"device": "another"}))
    monkeypatch.setattr(watch.revisions, "revisions", lambda *_: pytest.fail("it is timed already"))
    given = ("--workloads", written(tmp_path / "theirs.py", THEIRS))
    given += ("--baseline", tmp_path / "perf.json")
    status, said, complained = bench("--check", "--base", "HEAD", *given)
    assert (status, said) == (2, "")
    assert "expected one made on CPU" in complained


@pytest.mark.parametrize(
    ("versioned", "complaint"),
    [(True, "--base: expected a revision"), (False, "--base: expected to be in a git repository")],
)
def test_a_revision_that_is_not_there_is_one_line(versioned, complaint, tmp_path, monkeypatch):
    if versioned:
        git(tmp_path, "init", "--quiet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    files = ["--workloads", str(ROOT / "tests/perf/workloads.py")]
    status, said, complained = bench("--check", "--base", "no-such-revision", *files)
    assert (status, said) == (2, "")
    assert complaint in complained
    assert complained.count("\n") == 1


# Two revisions.


SLOWER = """

def slow(self, tokens, start=0, stop=None, quick=VisionModel.run_blocks):
    from time import thread_time

    began = thread_time()
    tokens = quick(self, tokens, start, stop)
    until = thread_time() + 0.3 * (thread_time() - began)
    while start and thread_time() < until:
        pass
    return tokens


VisionModel.run_blocks = slow
"""
"""Added to the models: blocks that do not begin with the first take 30 % longer."""

NEWER = """
from bench.workload import Prepared, Workload


def prepare(device):
    import bench.newer

    return Prepared(int)


WORKLOADS = [Workload("newer", prepare)]
"""


def git(folder, *arguments):
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A repository with this tree's packages; its working tree may be changed."""
    home = tmp_path_factory.mktemp("tree")
    for name in ("bench", "methods", "attacks"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    git(home, "init", "--quiet")
    git(home, "add", ".")
    git(home, "commit", "--quiet", "--message", "base")
    return home


def against_head(tree, monkeypatch, files, names):
    monkeypatch.chdir(tree)
    rows = list(watch.against("HEAD", files, names, watch.NOBODY, CPU))
    listed = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True)
    assert listed.stdout.count("\n") == 1, "the worktree is left behind"
    return rows


WHERE = """
import os

from bench.workload import Workload


def prepare(device):
    raise RuntimeError(f"on {sorted(os.sched_getaffinity(0))}")


WORKLOADS = [Workload("where", prepare)]
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no processor is asked for here")
def test_two_revisions_take_turns_on_one_processor(tmp_path):
    file = written(tmp_path / "where.py", WHERE)
    told = []
    for name in ("old", "new"):
        with (
            revisions.rival(name, ROOT, [file], "cpu") as ask,
            pytest.raises(revisions.Unmeasured) as error,
        ):
            ask("where")
        told.append(str(error.value).removeprefix(f"{name}: RuntimeError: "))
    assert told == [f"on {[min(os.sched_getaffinity(0))]}"] * 2


@pytest.mark.parametrize(
    ("factors", "outcome"),
    [
        pytest.param([1.0], "holds", id="as fast"),
        pytest.param([1.3, 1.0], "holds", id="slower in one process alone"),
        pytest.param([1.3, 1.3], "worse", id="slower in two"),
    ],
)
def test_slower_is_what_is_slower_in_two_processes(factors, outcome, monkeypatch):
    left = list(factors)

    @contextlib.contextmanager
    def rivals(*_):
        took = left.pop(0)
        yield (lambda _: 1.0), (lambda _: took)

    monkeypatch.setattr(watch.revisions, "revisions", rivals)
    (row,) = watch.against("HEAD", [], ["work"], watch.NOBODY, CPU)
    assert (row.outcome, left) == (outcome, [])


@pytest.mark.perf
@pytest.mark.slow
def test_a_tree_holds_against_itself_where_both_know_the_work(tree, tmp_path, monkeypatch):
    newer = written(tmp_path / "newer.py", NEWER)
    written(tree / "bench/newer.py", "")
    rows = against_head(tree, monkeypatch, [FILE, newer], ["newer", "model.tail"])
    assert [row.outcome for row in rows] == ["not measured", "holds"], rows
    assert "HEAD: ModuleNotFoundError" in rows[0].now


@pytest.mark.perf
@pytest.mark.slow
def test_a_tail_of_the_model_slower_by_30_percent_is_found(tree, monkeypatch):
    with (tree / "bench/models/vision.py").open("a") as file:
        file.write(SLOWER)

    def race():
        (row,) = against_head(tree, monkeypatch, [FILE], ["model.tail"])
        return row, row.outcome

    row, outcome = measured("worse", race)
    assert outcome == "worse", row
