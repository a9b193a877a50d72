"""The counts of the watched work; `bench perf --check` has them, too, and judges the times."""

from pathlib import Path

import pytest
from made_models import CPU

from bench.speed import ideal, watch
from bench.workload import load, meant_for

ROOT = Path(__file__).parents[2]
WORKLOADS = meant_for(CPU, load([ROOT / "tests/perf/workloads.py"]))
BASELINE = watch.read(ROOT / "results/perf/baseline.json").workloads


def test_the_baseline_knows_every_workload_and_no_other():
    assert set(BASELINE) == set(WORKLOADS)


@pytest.mark.parametrize("name", WORKLOADS)
def test_work_takes_as_many_passes_queries_and_bytes_as_before(name, benchmark):
    prepared = WORKLOADS[name].prepare(CPU)
    assert ideal.counted(prepared, CPU) == BASELINE[name].counts
    benchmark.pedantic(prepared.run, rounds=1)  # shown at the end, judged elsewhere
