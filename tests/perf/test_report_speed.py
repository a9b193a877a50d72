"""A report on 100 000 records: in seconds, and in less memory than a laptop has."""

import dataclasses
import itertools
import json
import random
import subprocess
import sys
import time

import pytest
from made import cell, outline

from bench.records import ledger
from bench.records.nouns import (
    Cost,
    Evidence,
    Record,
    Rule,
    Spec,
    Utility,
    canonical,
)

RECORDS, QUERIES = 100_000, 32

SECONDS, MEGABYTES = 10.0, 1024

PASSES = 9
"""Times as long as json.loads alone, which allows for a machine that is slow or shared."""

MEASURED = """
import json, resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
spent = {"seconds": used.ru_utime + used.ru_stime, "megabytes": used.ru_maxrss / 1024}
print(json.dumps(spent), file=sys.stderr)
sys.exit(status)
"""
"""Run a command and say what it took."""

SETTINGS = {f"setting_{i:02}": value for i, value in enumerate([0.001, 10, "cosine", None] * 8)}
"""As many as activemark has."""

COST = Cost(1.25, 1.0, 1000.0, 500.0, 800.0, "CPU, 1 thread a stage")


SAMPLE = Record(
    key="KEY",
    suite="big",
    cell="CELL",
    status="ok",
    access="weights",
    suspect_digest="KEY",
    owner_digest="0" * 16,
    evidence=Evidence((1.0,), (0.0,), Rule("bit errors", "<=", 5), "image", 0.5),
    utility=Utility("accuracy", 0.9, "digits, thief's test images", 270),
    notes={"attack": {"final_loss": 0.1}, "protect": {"block": 3, "steps": 1000}},
    costs=dict.fromkeys(("attack", "extract", "protect", "utility"), COST),
    environment={"bench": "0.1.0", "python": "3.11", "timm": "1.0", "torch": "2.14"},
)


def cells():
    """4 owners, 5 methods, 20 attacks of 250 suspects each."""
    for owner in (Spec(f"owner-{i}", {"library": "timm", "weights": "hub"}) for i in range(4)):
        for method in (Spec(f"method-{i}", SETTINGS) for i in range(5)):
            for strength in range(20):
                attack = Spec("prune", {**SETTINGS, "amount": strength / 20})
                for i in range(250):
                    chain, lineage = (attack,), "released" if i % 2 else "owner"
                    if i % 5 == 0:
                        control = Spec("control.stranger", {"index": i})
                        chain, lineage = (control, attack), "stranger"
                    base = "released" if lineage == "released" else "owner"
                    yield cell(method, base, chain, i % 2, i, owner=owner)


def spelt(cell):
    """Write a cell as `canonical` does its fields; the specs, few in number, are written once."""
    fields = {field.name: getattr(cell, field.name) for field in dataclasses.fields(cell)}
    steps = [step.text for step in cell.attack]
    specs = {"owner": cell.owner.text, "method": cell.method.text, "attack": f"[{','.join(steps)}]"}
    text = canonical(fields | {name: name.upper() for name in specs})
    for name, spec in specs.items():
        text = text.replace(f'"{name.upper()}"', spec)
    return text


def generate(home):
    """Write outline and records as a run would; by hand, for it is the reading that is timed."""
    rng = random.Random(0)
    asked = [(f"{number:016x}", one) for number, one in enumerate(cells())]
    assert len(asked) == RECORDS
    assert spelt(asked[0][1]) == canonical(dataclasses.asdict(asked[0][1]))
    ledger.write_outline(home / "suite.json", outline(name="big", cells=tuple(asked)))
    rest = canonical(dataclasses.asdict(SAMPLE))
    errors = [[rng.randrange(33) for _ in range(QUERIES)] for _ in range(500)]
    evidence = [
        canonical([[1 - e / 32 for e in read], [float(e) for e in read]])[1:-1].split("],[")
        for read in errors
    ]
    with (home / "run.jsonl").open("w") as file:
        for key, cell in asked:
            agreement, statistic = rng.choice(evidence)
            line = rest.replace('"agreement":[1.0]', f'"agreement":{agreement}]')
            line = line.replace('"statistic":[0.0]', f'"statistic":[{statistic}')
            line = line.replace("KEY", key)
            file.write(line.replace('"CELL"', spelt(cell)) + "\n")


@pytest.mark.perf
@pytest.mark.slow
def test_a_report_on_100_000_records_takes_seconds_and_less_than_a_gigabyte(tmp_path):
    generate(tmp_path)
    command = [sys.executable, "-m", "bench", "report", str(tmp_path), "--format", "csv"]
    # A child's peak memory begins with its parent's, so the parent is a small process of its own.
    apart = [sys.executable, "-c", MEASURED, *command]
    done = subprocess.run(apart, capture_output=True, text=True, check=True)
    said, used = done.stdout, json.loads(done.stderr.splitlines()[-1])
    # Of the processor, not of the clock: others may be at work on this machine.
    seconds, megabytes = used["seconds"], used["megabytes"]
    alone = loading(tmp_path / "run.jsonl")
    (tmp_path / "run.jsonl").unlink()  # pytest keeps folders, and this is a third of a gigabyte
    print(f"{RECORDS} records: {seconds:.1f} s, {megabytes:.0f} MB; json.loads alone {alone:.1f} s")
    assert said.count("\nowner-") >= 4 * 5 * (20 + 20 * 3) + 4 * 5  # Table 2, Fig. 3; Table 3
    assert seconds < max(SECONDS, PASSES * alone)
    assert megabytes < MEGABYTES


def loading(path):
    """Return what json.loads takes for all lines, judged by a tenth of them: they are alike."""
    started = time.process_time()
    with path.open("rb") as file:
        for line in itertools.islice(file, RECORDS // 10):
            json.loads(line)
    return 10 * (time.process_time() - started)
