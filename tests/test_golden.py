"""Numbers of plug-ins and stages stay as `golden.json` keeps them, unless a version says otherwise.

That a change would be seen is tried out: it is planted in a copy of the source.
"""

import copy
import importlib
import json
import os
import shutil
import subprocess
import sys

import golden
import pytest
from documents import ROOT
from made import ArrayStore, carried_out, suite

import bench
from bench.records import ledger
from bench.registry import ATTACKS, METHODS
from bench.suite import sources

KEPT = json.loads(golden.KEPT.read_text())

PLUGINS = [
    *((METHODS, "methods", name) for name in golden.built_in(METHODS)),
    *((ATTACKS, "attacks", name) for name in golden.built_in(ATTACKS)),
]


@pytest.mark.parametrize(("registry", "part", "name"), PLUGINS)
def test_numbers_move_with_a_new_version_alone(registry, part, name):
    assert golden.complaint(name, KEPT[part].get(name), golden.entry(registry, name)) == ""


def test_numbers_of_stages_stay():
    now = {"methods": {}, "attacks": {}, "stages": dict(golden.of_stages())}
    assert [said for *_, said in golden.complaints(KEPT, now)] == []
    assert now["stages"].keys() == KEPT["stages"].keys()


def test_every_plug_in_has_numbers_and_none_that_is_gone():
    assert {name for *_, name in PLUGINS} == golden.CASES.keys()
    for part in ("methods", "attacks"):
        assert KEPT[part].keys() == {name for _, where, name in PLUGINS if where == part}


TRAINS, HALF = "self, ctx.rng)", '__import__("dataclasses").replace(self, lr=self.lr / 2), ctx.rng)'

PLANTED = [
    # A rate, a threshold, a norm, a scale: what was changed before and went unseen.
    ("finetune.classify", "attacks/finetune.py", TRAINS, HALF),
    (
        "finetune.segment",
        "attacks/segment.py",
        "self, ctx.rng, counted)",
        HALF.replace("ctx.rng)", "ctx.rng, counted)"),
    ),
    (
        "distill.logits",
        "attacks/distill.py",
        "how, ctx.rng)",
        HALF.replace("self", "how"),
    ),
    ("finetune.classify", "attacks/finetune.py", "LORA_SCALE = 2.0", "LORA_SCALE = 1.0"),
    ("quantize", "attacks/quantize.py", '"int8": 127.0', '"int8": 120.0'),
    ("noise.weights", "attacks/noise.py", "weight.std(correction=0)", "weight.abs().mean()"),
    ("prune.structured", "attacks/prune.py", "Importance(p=2)", "Importance(p=1)"),
    ("akh", "methods/akh.py", "logits.softmax(1).amax(1)", "logits.amax(1)"),
    ("ipguard", "methods/ipguard.py", "x - self.lr * mean", "x - self.lr / 2 * mean"),
    (
        "pautov2024",
        "methods/pautov2024.py",
        "*= self._settings.sigma",
        "*= 0.9 * self._settings.sigma",
    ),
    ("activemark", "methods/activemark/channel.py", "logits >= 0 if", "logits >= 0.2 if"),
    ("activemark", "methods/activemark/embedding.py", '"lr": how.lr}', '"lr": how.lr / 2}'),
    ("activemark", "methods/activemark/embedding.py", "flatten(1), dim=1", "flatten(1), 1, dim=1"),
]


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Have plug-ins imported from a copy of their source in which a text stands for another."""

    def plant(file, old, new):
        package = file.partition("/")[0]
        shutil.copytree(ROOT / package, tmp_path / package)
        text = (tmp_path / file).read_text()
        assert text.count(old) >= 1, f"{file}: nothing like '{old}' to plant a change in"
        (tmp_path / file).write_text(text.replace(old, new))
        for registry in (METHODS, ATTACKS):
            monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))
            monkeypatch.setattr(registry, "_seen", {})  # or it would not be looked for again
        for name in [n for n in sys.modules if n.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(importlib.import_module(package), "__path__", [str(tmp_path / package)])

    yield plant
    planted = [
        n for n, m in sys.modules.items() if str(tmp_path) in str(getattr(m, "__file__", ""))
    ]
    for name in planted:
        monkeypatch.delitem(sys.modules, name)
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(child, None)


@pytest.mark.parametrize(("name", "file", "old", "new"), PLANTED)
def test_a_change_in_a_plug_ins_source_is_seen(plant, name, file, old, new):
    registry, part, _ = next(one for one in PLUGINS if one[2] == name)
    plant(file, old, new)
    said = golden.complaint(name, KEPT[part][name], golden.entry(registry, name))
    assert said.startswith(f"{name}: numbers moved under version {KEPT[part][name]['version']}: ")
    assert "raise its version=" in said


def test_a_changed_ridge_is_seen(monkeypatch):
    monkeypatch.setattr(golden.probe, "RIDGE", 5.0)
    name, numbers = next(golden.of_stages())
    assert name == "extract, relinear"
    assert list(golden.moved(KEPT["stages"][name], numbers)) != []


def test_a_changed_default_needs_a_new_version_and_a_new_version_new_numbers():
    was = KEPT["attacks"]["noise.weights"]
    now = copy.deepcopy(was)
    now["defaults"]["sigma"] = 0.1
    said = golden.complaint("noise.weights", was, now)
    assert ": default of sigma 0.05 -> 0.1; raise its version=" in said
    newer = now | {"version": was["version"] + 1}
    assert golden.complaint("noise.weights", was, newer).endswith("python tests/golden.py --update")
    assert golden.complaint("noise.weights", newer, newer) == ""
    assert "no golden numbers" in golden.complaint("noise.weights", None, now)


def test_a_setting_or_a_number_that_is_new_or_gone_is_seen():
    was = KEPT["attacks"]["noise.weights"]
    for change in ("defaults", "numbers"):
        now = copy.deepcopy(was)
        now[change]["more"] = {"x": 1.0} if change == "numbers" else 1.0
        assert golden.changes(was, now)
        assert golden.changes(now, was)
    assert golden.changes(was, copy.deepcopy(was)) == []


def test_a_plan_tells_of_every_change_planted_in_a_copy_of_the_source(tmp_path):
    asked = suite(
        owners=["{embedded: mini, classifier: {data: digits}}"],
        methods=["{name: activemark}", "{name: akh}"],
        attacks=["{name: control.identity}", "{name: finetune.classify}", "{name: prune.l1}"],
        owner_images="digits",
    )
    (tmp_path / "tiny.yaml").write_text(asked)
    laid_out, store = bench.plan(tmp_path / "tiny.yaml"), ArrayStore(tmp_path / "results/.store")
    carried_out(laid_out, store)
    for key, stage in laid_out.stages.items():
        payload = store.find(key).payload | {"code": sources.code_of(stage, laid_out.stages)}
        payload["cost"] = {"seconds": 1.0, "forward_passes": 0.0, "backward_passes": 0.0}
        store.put(key, stage.kind, dict(stage.recipe), stage.parents, payload)
    for package in ("bench", "methods", "attacks"):
        shutil.copytree(ROOT / package, tmp_path / package)
    for file, old, new in (
        ("attacks/finetune.py", TRAINS, HALF),
        ("methods/akh.py", "logits.softmax(1).amax(1)", "logits.amax(1)"),
        ("bench/training/probe.py", "RIDGE = 10.0", "RIDGE = 5.0"),
        ("methods/activemark/channel.py", '"""Images that are read together."""', "# a remark"),
    ):
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new))
    command = [sys.executable, "-m", "bench", "plan", "tiny.yaml"]
    there = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = [line for line in done.stdout.splitlines() if "made by other code of" in line]
    assert [line.partition("other code of ")[2].partition(":")[0] for line in named] == [
        "akh",
        "finetune.classify",
        "the stage extract",
        "the stage fidelity",
        "the stage utility",
    ]
    assert ledger.answers(tmp_path / "results") == {}


def test_a_cosine_near_zero_is_held_to_what_rounding_leaves_of_it():
    said = [
        list(golden.moved({"cosine": was}, {"cosine": now}))
        for was, now in ((-0.0141682, -0.0143756), (-0.0141682, -0.0161), (0.5, 0.504), (0.5, 0.51))
    ]
    assert [len(one) for one in said] == [0, 1, 0, 1]
