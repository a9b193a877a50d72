"""What may know what: the part that import-linter, which reads imports only, cannot see."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

HEAVY = [
    *("torch", "torchvision", "timm", "open_clip"),
    *("sklearn", "skimage", "pandas", "statsmodels", "matplotlib"),
]

IMPORT_ONE_BY_ONE = """
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    print(name, *(heavy for heavy in {heavy} if heavy in sys.modules))
"""


def test_the_record_side_imports_neither_torch_nor_anything_else_slow():
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    contract = next(c for c in contracts if c["name"] == "the record side is torch-free")
    names = [*contract["source_modules"], "bench.cli", "bench.cli_check", "bench.cli_owner"]
    code = IMPORT_ONE_BY_ONE.format(names=names, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == names, done.stdout


def registered(folder: str, decorator: str) -> dict[str, str]:
    """Plug-ins that the modules of a folder name with `@decorator("name")`, as entry points."""
    found = {}
    for path in sorted((ROOT / folder).glob("*.py")):
        classes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
        for cls in classes:
            for call in cls.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator:
                    name = ast.literal_eval(call.args[0])
                    found[name] = f"{folder}.{path.stem}:{cls.name}"
    return found


@pytest.mark.parametrize(("folder", "decorator"), [("methods", "method"), ("attacks", "attack")])
def test_every_built_in_plug_in_comes_in_by_an_entry_point(folder, decorator):
    announced = PYPROJECT["project"]["entry-points"][f"bench.{folder}"]
    assert announced == registered(folder, decorator)
