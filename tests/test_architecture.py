"""What may know what, and how large a room may grow: what import-linter cannot see."""

import ast
import importlib
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

DOORS = ("types", "registry", "workload")

PUBLIC = {
    "bench": (
        *("copies", "descendants", "frame", "plan", "protect", "read", "report", "run", "trace"),
        *("tune", "verify"),
        *("Claim", "Finding", "Incompatible", "Key", "Plan", "Record", "Results", "Table"),
        *("Trace", "Tuned", "UserError", "Verification"),
    ),
    "bench.types": (
        "Access",
        "Attack",
        "Change",
        "Context",
        "Count",
        "CountsExtracting",
        "CountsImages",
        "CountsPasses",
        "CountsProtecting",
        "CountsQueries",
        "Evidence",
        "ExactNull",
        "Facts",
        "HasPrecision",
        "HasReadout",
        "Incompatible",
        "IsAdaptive",
        "IsExact",
        "Json",
        "Later",
        "Method",
        "NamesData",
        "NeedsLabels",
        "NotNegative",
        "OpenShare",
        "Paper",
        "PartialShare",
        "Passes",
        "Positive",
        "PositiveFloat",
        "PositiveShare",
        "Protected",
        "Reading",
        "Readout",
        "RedrawsBits",
        "Rule",
        "SaysChange",
        "SaysTunable",
        "SaysUnfit",
        "SaysUnreadable",
        "Shape",
        "Share",
        "Sizes",
        "Spec",
        "StatesFacts",
        "Suspect",
        "TracesUsers",
        "UserError",
        "UsesBase",
        "UsesCopies",
        "UsesHead",
        "Accuser",
        "Case",
        "CountsAccusing",
        "HasForgery",
        "SaysUnsuited",
        "StoppedBy",
        "TakesQueries",
        "UsesSurrogates",
    ),
    "bench.registry": ("Marking", "accuser", "attack", "marking", "method"),
    "bench.models.serving": (
        *("DETECTORS", "INPUTS", "KINDS", "Service", "answers", "bound_for", "changed"),
        *("impossible", "suspicion", "told"),
    ),
    "bench.models.symmetry": (
        *("Alignment", "Anatomy", "Attention", "DYNAMIC_IMAGES", "FAR", "Mlp", "align"),
        *("add_blocks", "add_heads", "add_neurons", "bake_means", "dimensions"),
        *("fold", "map_stream", "mix_queries", "mix_values", "move_biases", "permutation"),
        *("patches_resized", "permute_heads", "permute_neurons", "positions_resized", "read"),
        *("repeated", "rewritten", "rotation"),
        *("scale_gates", "shift_writers", "widen"),
    ),
    "bench.models": (
        *("Architecture", "Backbone", "ClassifierHead", "Dimensions", "Head", "Ideal"),
        *("Library", "OpenClipViT", "OtherTrunk", "Part", "Place", "SegmentationHead"),
        *("Served", "Service", "TimmViT", "View"),
        *("VisionModel", "aside", "build", "clone", "dimensions", "measuring", "narrow"),
        *("randomised", "reshape", "segmentation_head", "timed", "with_head"),
    ),
    "bench.data": (
        *("DataSet", "DataSettings", "IGNORE", "Images", "Item", "Listing", "Loader", "Manifest"),
        *("Picture", "Preprocess", "masks_digest", "open_image", "sent", "sources"),
    ),
    "bench.training": (
        *("Choice", "Estimator", "MicroBatches", "Parameters", "Precision", "Schedule"),
        *("Training", "TrainingSettings", "activation_profile", "answers", "by_depth"),
        *("choose_block", "cka", "classifier", "fit", "head_accuracy", "in_batches", "matches"),
        *("passes", "probe_accuracy", "schedule"),
    ),
    "bench.testing": ("check_attack", "check_method", "context", "owner", "stranger"),
    "bench.workload": ("Prepared", "Workload"),
}
"""What plug-ins are promised, name by name: nothing is taken from here without a new version."""


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")


def rooms() -> list[Path]:
    return sorted(path.parent for path in (ROOT / "bench").glob("*/__init__.py"))


def test_the_house_shows_eleven_rooms_and_three_doors():
    shown = {path.stem for path in (ROOT / "bench").glob("*.py")}
    assert shown == {"__init__", "__main__", *DOORS}
    assert len(rooms()) == 11
    assert len(shown) + len(rooms()) <= 16


@pytest.mark.parametrize(
    "room",
    [path.parent for path in (ROOT / "bench").glob("*/**/__init__.py")],
    ids=lambda room: str(room.relative_to(ROOT)),
)
def test_a_room_says_in_one_sentence_what_it_is_for_and_has_nine_modules_at_most(room):
    purpose = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    first = purpose.partition("\n")[0]
    assert first.endswith((".", "?"))
    assert len(modules(room)) <= 9


@pytest.mark.parametrize("folder", ["bench", "methods", "attacks"])
def test_no_module_is_over_500_lines_and_no_function_over_60(folder):
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


@pytest.mark.parametrize("door", PUBLIC)
def test_every_promised_name_is_there(door):
    module = importlib.import_module(door)
    assert [name for name in PUBLIC[door] if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    "door",
    [
        *("bench.types", "bench.models", "bench.models.serving", "bench.models.symmetry"),
        *("bench.data", "bench.training"),
    ],
)
def test_a_face_hands_on_what_is_promised_and_nothing_else(door):
    tree = ast.parse(Path(importlib.import_module(door).__file__).read_text())
    handed = {
        *(
            a.asname
            for n in ast.walk(tree)
            if isinstance(n, ast.ImportFrom)
            for a in n.names
            if a.asname
        ),
        *(n.name for n in tree.body if isinstance(n, ast.ClassDef)),
    }
    assert handed == set(PUBLIC[door])


@pytest.mark.parametrize("folder", ["methods", "attacks"])
def test_plug_ins_come_in_by_the_doors_and_take_promised_names_alone(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bench."):
                taken = {alias.name for alias in node.names}
                doors = {name for name in taken if f"{node.module}.{name}" in PUBLIC}
                promised = {*PUBLIC.get(node.module, ()), *doors}
                assert taken <= promised, f"{path}: {ast.unparse(node)}"
            elif isinstance(node, ast.ImportFrom) and node.module == "bench":
                doors = {f"bench.{alias.name}" for alias in node.names}
                assert doors <= PUBLIC.keys(), f"{path}: {ast.unparse(node)}"


IMPORT_ONE_BY_ONE = """
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    print(name, *(heavy for heavy in {heavy} if heavy in sys.modules))
"""


def test_no_two_files_of_tests_have_one_name():
    """One process takes the second for the first: whether it fails hangs on who runs which."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert names == sorted(set(names))


def test_the_record_side_imports_neither_torch_nor_anything_else_slow():
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    contract = next(c for c in contracts if c["name"] == "the record side is torch-free")
    names = ["bench"]
    for source in [*contract["source_modules"], "bench.cli"]:
        names.append(source)
        inside = modules(ROOT.joinpath(*source.split(".")))
        names += [f"{source}.{p.stem}" for p in inside]
    code = IMPORT_ONE_BY_ONE.format(names=names, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == names, done.stdout


def registered(folder: str, decorator: str) -> dict[str, str]:
    """Plug-ins that are named with `@decorator("name")`, as entry points: a package by its face."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        place = ".".join([folder, path.relative_to(ROOT / folder).with_suffix("").parts[0]])
        classes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
        for cls in classes:
            for call in cls.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator:
                    found[ast.literal_eval(call.args[0])] = f"{place}:{cls.name}"
    return found


@pytest.mark.parametrize(("folder", "decorator"), [("methods", "method"), ("attacks", "attack")])
def test_every_built_in_plug_in_comes_in_by_an_entry_point(folder, decorator):
    announced = PYPROJECT["project"]["entry-points"][f"bench.{folder}"]
    assert announced == registered(folder, decorator)


def test_every_suite_and_its_parts_are_installed():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["suites"]
    installed = {file for pattern in patterns for file in (ROOT / "suites").glob(pattern)}
    assert installed == set((ROOT / "suites").rglob("*.yaml"))
