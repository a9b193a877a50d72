"""A Ray cluster of two nodes on this machine: the evidence of a serial run, whoever is killed."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import ledger

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

SUITE = """
name: tiny
owners: [{embedded: mini}]
methods:
  - {name: activemark, steps: 2, batch: 4, images: 4, encoder_hidden: 32, decoder_hidden: 16}
attacks:
  - {name: trial.step, label: one}
  - {name: trial.step, label: two}
data: {digits: {max_images: 40}, photos: {max_images: 24}}
owner_images: photos
probe: digits
innocents: {strangers: 0, twin_seeds: 0}
"""

slow = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclasses.dataclass(frozen=True)
class Place:
    """A cluster of two nodes of one processor each, and the folder in which to ask for trouble."""

    cluster: object
    trouble: Path
    suite: Path
    calm: dict


def bench(suite: Path, results: Path, *more: str) -> subprocess.Popen:
    arguments = ["--results", str(results), "--device", "cpu", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "run", str(suite), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate()
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


def on_ray(place: Place, results: Path, suite: Path | None = None) -> subprocess.Popen:
    address = place.cluster.address
    return bench(suite or place.suite, results, "--engine", "ray", "--address", address)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def until_they_work(place: Place, *steps: str) -> list[int]:
    while not all(pids(place, step) for step in steps):
        time.sleep(0.1)
    return [pids(place, step)[-1] for step in steps]
