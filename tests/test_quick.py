"""The quick tests stay what they are: tests that need no torch."""

import re
import subprocess
import sys
import tomllib

from documents import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

FOLDERS = [f"tests/{name}" for name in ("records", "verdicts", "suite", "reports")]

ON_TORCH = {
    *("torch", "torchvision", "torchmetrics", "torch-pruning"),
    *("timm", "open_clip_torch", "segmentation-models-pytorch"),
}

RUNNERS = {"pytest", "pytest-timeout", "pytest-xdist"}

COLLECTED = """
import sys
import pytest

class Without:
    def find_spec(name, path=None, target=None):
        if name in ("torch", "torchvision", "timm", "open_clip"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Without)
sys.exit(pytest.main(["--collect-only", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def named(requirement):
    return re.split(r"[<>=\[]", requirement)[0]


def test_the_quick_tests_are_there_where_torch_is_not():
    command = [sys.executable, "-c", COLLECTED, *FOLDERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_they_need_what_the_bench_needs_but_for_torch_and_what_is_built_on_it():
    wanted = {r for r in PROJECT["dependencies"] if named(r) not in ON_TORCH}
    wanted |= {r for r in PROJECT["optional-dependencies"]["test"] if named(r) in RUNNERS}
    lines = (ROOT / "tests/torch-free.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == wanted


def test_two_documents_and_the_gate_name_the_same_folders():
    for document in ("tests/README.md", "CONTRIBUTING.md"):
        assert f"pytest -n 2 {' '.join(FOLDERS)}\n" in (ROOT / document).read_text()
    assert "block quick tests/README.md" in (ROOT / ".ci/run").read_text()
