"""A Ray cluster of two nodes on this machine: the evidence of a serial run, whoever is killed."""

import dataclasses
import itertools
import os
import re
import shutil
import signal
import socket
import sys
import time
import uuid
from pathlib import Path

import made
import pytest
import torch
import warm

from bench.records import leases, ledger
from bench.records.nouns import UserError
from bench.records.store import Store
from bench.runs import cluster
from bench.runs.cluster import _peaks, _places, _work, choose_device, connected
from bench.runs.laboratory import Laboratory
from bench.suite import plan
from bench.suite.reader import load

# A plug-in of a package in `site`: an attack that does nothing to the model, and to the process
# that carries it out what files in a folder ask for.
PLUGIN = '''
"""Attacks on the process, not on the model.

Source: https://example.org/trial
"""

import os
import pathlib
import signal
import time
from dataclasses import dataclass
from typing import ClassVar

from bench.models import VisionModel, clone
from bench.registry import attack
from bench.types import Access, Context


@attack("trial.step")
@dataclass(frozen=True)
class Step:
    """Note who carries this out; wait or die where a file says so."""

    label: str = ""

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False

    def run(self, victim: VisionModel, ctx: Context) -> VisionModel:
        if folder := os.environ.get("TRIAL"):
            asked = pathlib.Path(folder, self.label)
            with asked.with_suffix(".log").open("a") as log:
                log.write(f"{os.getpid()}\\n")
            while asked.with_suffix(".wait").exists():
                time.sleep(0.05)
            if asked.with_suffix(".die").exists():
                os.kill(os.getpid(), signal.SIGKILL)
        return clone(victim)
'''

SUITE = made.suite(
    attacks=["{name: trial.step, label: one}", "{name: trial.step, label: two}"],
    innocents="{strangers: 0, twin_seeds: 0}",
)

TINY = SUITE.replace("trial.step, label: one", "control.identity").replace(
    "trial.step, label: two", "prune.l1"
)
"""The same without the plug-in."""


def slow(test):
    return pytest.mark.slow(pytest.mark.timeout(600)(test))


@dataclasses.dataclass(frozen=True)
class Place:
    """A cluster of two nodes of one processor each, and the folder in which to ask for trouble."""

    cluster: object
    trouble: Path
    suite: Path
    calm: dict


def bench(suite: Path, results: Path, *more: str) -> warm.Running:
    return warm.start("bench", "run", suite, "--results", results, "--device", "cpu", *more)


def finish(process: warm.Running, status: int = 0) -> str:
    with process:
        output = process.finish()
    assert process.returncode == status, output
    return output


def answers(results: Path) -> dict:
    """The evidence and all else that runs must agree on, by attack and lineage."""
    latest = ledger.latest(ledger.read(results / "tiny")).values()
    return {
        (record.cell.attack[0].args["label"], record.cell.lineage): (
            *(record.key, record.status, record.evidence, record.utility, record.fidelity),
            *(record.suspect_digest, record.owner_digest),
        )
        for record in latest
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    reason = "Ray is not installed: pip install 'vfm-ownership-bench[ray]'"
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason=reason)
    home = tmp_path_factory.mktemp("place")
    site, trouble, suite = home / "site", home / "trouble", home / "tiny.yaml"
    (site / "trial-1.dist-info").mkdir(parents=True)
    trouble.mkdir()
    (site / "trial.py").write_text(PLUGIN.lstrip())
    (site / "trial-1.dist-info" / "METADATA").write_text("Name: trial\nVersion: 1\n")
    entry = "[bench.attacks]\ntrial.step = trial:Step\n"
    (site / "trial-1.dist-info" / "entry_points.txt").write_text(entry)
    suite.write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # keep to this machine
        finish(bench(suite, home / "calm", "--workers", "1"))
        patch.setenv("TRIAL", str(trouble))
        node = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "object_store_memory": 2**27}
        head = node | {"include_dashboard": False}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(**node)
            yield Place(cluster, trouble, suite, answers(home / "calm"))
        finally:
            cluster.shutdown()


@pytest.fixture
def ask(place):
    """Ask for trouble at a step; whatever was asked for is over when the test is."""
    yield lambda *names: [(place.trouble / name).touch() for name in names]
    for path in place.trouble.iterdir():
        path.unlink()


def pids(place: Place, step: str) -> list[int]:
    log = place.trouble / f"{step}.log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def on_ray(place: Place, results: Path, suite: Path | None = None) -> warm.Running:
    address = place.cluster.address
    return bench(suite or place.suite, results, "--engine", "ray", "--address", address)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until_they_work(place: Place, run: warm.Running, *steps: str) -> list[int]:
    while not all(pids(place, step) for step in steps):
        assert run.returncode is None, run.finish()
        time.sleep(0.1)
    return [pids(place, step)[-1] for step in steps]


def forget(results: Path, *steps: tuple[str, str]) -> None:
    """Take out of the store what an attack made of a released or the owner's model, by label."""
    store = Store(results / ".store")
    kinds = {"released": "protect", "owner": "owner"}
    for label, base in steps:
        for artefact in list(store):
            if (
                artefact.kind == "attack"
                and artefact.recipe["step"]["args"]["label"] == label
                and store.find(artefact.parents[0]).kind == kinds[base]
            ):
                store.remove(artefact.key)
    for path in (results / "tiny" / "records").iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def done(place, tmp_path_factory) -> Path:
    """Results of the suite, whoever made them, to be copied."""
    results = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRIAL")
        finish(bench(place.suite, results, "--workers", "1"))
    return results


@pytest.fixture
def results(done, tmp_path) -> Path:
    return shutil.copytree(done, tmp_path / "results")


@slow
def test_two_nodes_give_the_evidence_of_a_serial_run_though_a_worker_is_killed(
    place, ask, tmp_path
):
    ask("one.wait")
    run = on_ray(place, tmp_path)
    (pid,) = until_they_work(place, run, "one")
    os.kill(pid, signal.SIGKILL)
    (place.trouble / "one.wait").unlink()
    output = finish(run)
    assert answers(tmp_path) == place.calm
    assert "attack trial.step was lost and is started again (2 of 3)" in output
    assert output.count("was lost") == 1
    assert len(set(re.findall(r"\((\w{6})\): \w+ [\w.]* ?took", output))) == 2  # nodes
    assert list(Store(tmp_path / ".store").leases.iterdir()) == []


@slow
def test_a_stage_that_kills_its_worker_three_times_fails_and_the_run_goes_on(place, ask, results):
    forget(results, ("two", "released"), ("one", "owner"))
    ask("two.die")
    finish(on_ray(place, results), status=1)
    assert len(pids(place, "two")) == 3
    found = ledger.latest(ledger.read(results / "tiny")).values()
    (failed,) = [record for record in found if record.status == "failed"]
    assert failed.reason.startswith("lost 3 times with the worker that carried it out: The worker")
    there = answers(results)
    assert there.pop(("two", "released")) != place.calm[("two", "released")]
    assert there == {key: value for key, value in place.calm.items() if key in there}
    assert len(there) == len(place.calm) - 1


@slow
def test_what_a_killed_node_was_at_another_does_again(place, ask, results):
    forget(results, ("one", "released"), ("two", "released"))
    ask("one.wait", "two.wait")
    run = on_ray(place, results)
    workers = {parent(pid): pid for pid in until_they_work(place, run, "one", "two")}
    second = place.cluster.list_all_nodes()[1]
    worker = workers[second.all_processes["raylet"][0].process.pid]  # each node has one
    place.cluster.remove_node(second, allow_graceful=False)
    while leases._born(worker):  # it outlives its node by a moment
        time.sleep(0.1)
    for path in place.trouble.glob("*.wait"):
        path.unlink()
    output = finish(run)
    place.cluster.add_node(node_ip_address="127.0.0.1", num_cpus=1, object_store_memory=2**27)
    assert answers(results) == place.calm
    assert output.count("was lost") == 1


@slow
def test_a_run_on_ray_and_one_without_do_each_stage_once(place, ask, results):
    forget(results, *itertools.product(("one", "two"), ("released", "owner")))
    ask("one.wait")
    runs = [on_ray(place, results), bench(place.suite, results, "--workers", "1")]
    until_they_work(place, runs[0], "one", "two")
    (place.trouble / "one.wait").unlink()
    for run in runs:
        finish(run)
    assert answers(results) == place.calm
    assert [len(pids(place, step)) for step in ("one", "two")] == [2, 2]


@slow
def test_without_an_address_ray_runs_on_this_machine_for_as_long_as_the_run(
    place, results, monkeypatch
):
    monkeypatch.setenv("TRIAL_MARK", mark := uuid.uuid4().hex)
    forget(results, ("one", "released"))
    output = finish(bench(place.suite, results, "--engine", "ray"))
    assert "on 1 Ray node" in output
    assert answers(results) == place.calm
    left = [p for p in Path("/proc").glob("[0-9]*/environ") if mark in environment(p)]
    assert left == []


def environment(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it ended meanwhile
        return ""


def test_a_node_without_the_store_is_named(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    made = plan.make(load(tmp_path / "tiny.yaml"), None)
    key = next(key for key, stage in made.stages.items() if stage.kind == "protect")
    elsewhere = Laboratory(made, Store(tmp_path / "there"), None, torch.device("cpu"))
    monkeypatch.setattr(cluster, "_unpacked", lambda shared: (elsewhere, []))
    monkeypatch.setattr(cluster, "_here", lambda: "node-7")
    report = _work(["shared"], key, 1)
    assert report.failure.reason.startswith(f"node-7 does not share the store at {tmp_path}/there")


def test_a_stage_asks_for_the_memory_that_stages_alike_took(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    made, store = plan.make(load(tmp_path / "tiny.yaml"), None), Store(tmp_path)
    for key, stage in made.stages.items():
        device, peak = ("NVIDIA", 9e9) if stage.kind == "extract" else ("CPU, 1 thread", 800.0)
        cost = {"seconds": 1.0, "peak_memory_mb": peak, "device": device}
        if stage.kind in ("protect", "extract", "owner"):
            store.put(key, stage.kind, dict(stage.recipe), stage.parents, {"cost": cost})
    peaks = _peaks(Laboratory(made, store, None, torch.device("cpu")))
    known = {made.stages[key].kind: megabytes for key, megabytes in peaks.items()}
    assert known == {"owner": 1000.0, "protect": 1000.0}  # a GPU's memory is not the machine's


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus, "memory": 2.0**30}}


@pytest.mark.parametrize(
    ("nodes", "name", "threads", "device", "places"),
    [
        ([node(2)], "auto", 1, "cpu", 2),
        ([node(2), node(3)], "auto", 2, "cpu", 2),
        ([node(8, 2), node(4)], "auto", 1, "cuda", 2),
        ([node(8, 2), node(4)], "cpu", 1, "cpu", 12),
        ([node(1, 4), node(8, 2)], "cuda", 1, "cuda", 3),
        ([node(8, 2)], "cuda", 8, "cuda", 1),
    ],
)
def test_a_stage_gets_a_gpu_where_there_is_one_and_its_processors(
    monkeypatch, nodes, name, threads, device, places
):
    monkeypatch.setattr(cluster, "_nodes", lambda: nodes)
    chosen = choose_device(name, threads)
    assert chosen.type == device
    assert sum(_places(node, chosen, threads) for node in nodes) == places


@pytest.mark.parametrize(
    ("nodes", "name", "threads", "reason"),
    [
        ([node(2)], "cuda", 1, "expected a node with 1 processors and a GPU"),
        ([node(2), node(1)], "cpu", 3, "the nodes are 2 and 0, 1 and 0"),
        ([node(8, 2)], "cuda:1", 1, "Ray picks the GPU"),
    ],
)
def test_what_no_node_can_do_is_refused_before_any_work(monkeypatch, nodes, name, threads, reason):
    monkeypatch.setattr(cluster, "_nodes", lambda: nodes)
    with pytest.raises(UserError, match=reason):
        choose_device(name, threads)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (f"127.0.0.1:{free_port()}", "nothing answers there"),
        ("127.0.0.1", "expected HOST:PORT or auto, got '127.0.0.1'"),
        ("ray://127.0.0.1:10001", "expected HOST:PORT or auto"),
    ],
    ids=["nobody there", "no port", "a client's"],  # the same in every process
)
def test_an_address_without_a_cluster_is_refused_at_once(address, reason):
    with pytest.raises(UserError, match=reason), connected(address):
        pass


def test_without_ray_the_way_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    way = r"pip install 'vfm-ownership-bench\[ray\]'"
    with pytest.raises(UserError, match=way), connected(None):
        pass
