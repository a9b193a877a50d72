"""What is promised of equal runs: bytes on one machine, verdicts and near scores on another.

Another processor is stood in for by this one without its vectors, or without oneDNN.
"""

import json
import os
import platform
import subprocess
import sys

import pytest
from documents import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MARK = """
import json, sys
import torch
from bench import testing
from bench.models import Architecture, View, randomised
from bench.models.weights import weights_digest
from bench.registry import METHODS
from bench.runs.machine import instructions

torch.set_num_threads(int(sys.argv[1]))
torch.backends.mkldnn.enabled = sys.argv[2] == "oneDNN"
mark = METHODS.build("activemark", {
    "variant": "paper", "images": 16, "steps": 30, "lr": 1e-3, "codec_lr": 3e-3, "weight": 100.0,
    "message_norm": "bce",
})
made = mark.protect(testing.owner(), testing.context(0, "owner"))
others = [randomised(Architecture("embedded", "mini"), i) for i in range(3)]
read = [
    mark.extract(made.secret, View(model, mark.needs), testing.context(1, "owner")).agreement
    for model in (made.model, testing.owner(), *others)
]
print(json.dumps({"weights": weights_digest(made.model), "read": read, "by": instructions()}))
"""

ELSEWHERE = {
    "two threads": ({}, "2", "oneDNN"),
    "without oneDNN": ({}, "1", "none"),
    "without vectors": ({"ATEN_CPU_CAPABILITY": "default"}, "1", "oneDNN"),
    "with those of AVX2": ({"ATEN_CPU_CAPABILITY": "avx2"}, "1", "oneDNN"),
}

NEAR = 0.01
"""How far a score may lie from that of another processor: the tolerance of `bench compare`."""


def marked(env, *arguments):
    """Mark, read the copy, the owner and three strangers, in a process of its own."""
    here = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-c", MARK, *arguments]
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here():
    return marked({}, "1", "oneDNN")


def test_one_machine_repeats_itself_to_the_byte(here):
    assert marked({}, "1", "oneDNN") == here


@pytest.mark.parametrize("where", ELSEWHERE)
def test_elsewhere_scores_lie_near_and_rank_alike(here, where):
    env, *arguments = ELSEWHERE[where]
    if env and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"expected a processor with AVX2, got {platform.machine()}")
    there = marked(env, *arguments)
    scores = [[sum(one) / len(one) for one in made["read"]] for made in (here, there)]
    for one, other in zip(*scores, strict=True):
        assert abs(one - other) <= NEAR
    for own, *innocents in scores:
        assert own > max(innocents)
    if "ATEN_CPU_CAPABILITY" in env:
        assert there["by"].startswith(env["ATEN_CPU_CAPABILITY"])  # which records say


def test_golden_numbers_hold_without_vectors():
    here = {**os.environ, "PYTHONPATH": str(ROOT), "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, str(ROOT / "tests/golden.py")]
    done = subprocess.run(command, env=here, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("no number moved\n", 0)
