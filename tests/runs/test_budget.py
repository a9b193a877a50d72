import math
from dataclasses import dataclass
from typing import ClassVar, get_args

import pytest
import torch
from made import suite

from bench.models.vision import Architecture
from bench.records.nouns import Access, Passes, Sizes, UserError, unpacked
from bench.records.store import Store
from bench.registry import ATTACKS, METHODS
from bench.runs import engines
from bench.runs.foresight import budget, reach
from bench.runs.foresight.budget import shape
from bench.runs.laboratory import Laboratory, load_owners
from bench.suite import plan, reader
from bench.suite.graph import Kind
from bench.suite.todo import at_once, guesses, missing
from bench.types import Change, CountsPasses

PARTS = {
    "owners": ["{embedded: mini, classifier: {data: digits, epochs: 1}}"],
    "methods": [
        "{name: activemark, variant: expressprint, block: 2, steps: 3, batch: 4, images: 6}",
        "{name: activemark, variant: paper, block: 1, steps: 3, batch: 4, images: 6, "
        "fidelity_under: plain}",
        "{name: ipguard, points: 4, iterations: 3}",
        "{name: akh, queries: 5, readout: relinear}",
        "{name: adv_tra, mode: fast, trajectories: 2, classes: 3}",
        "{name: oracle.weights, align: auto}",
    ],
    "attacks": [
        "{name: control.identity}",
        "{name: finetune.classify, data: digits, epochs: 2}",
        "{name: finetune.classify, data: digits, mode: last}",
        "{name: finetune.segment, data: scenes, epochs: 1, decoder: dpt}",
        "{name: distill.features, data: digits, epochs: 1}",
        "[{name: prune.l1, amount: 0.2}, {name: noise.weights}]",
    ],
    "data": "{digits: {max_images: 40}, photos: {max_images: 24}, "
    "scenes: {loader: digit-scenes, crops: 4, max_images: 8}}",
    "innocents": "{strangers: 0, twin_seeds: 1}",
    "hardness": "true",
    "accusers": ["{name: overmark}"],
}

SUITE = suite(**PARTS)

OF_TWO = suite(**PARTS | {"methods": PARTS["methods"][1:3]})
"""A mark and a fingerprint of them: its stages are of the whole suite, and have the same keys."""


def planned(folder, text=SUITE, data=None):
    (folder / "suite.yaml").write_text(text)
    return plan.make(reader.load(folder / "suite.yaml"), data, assume=True)


def priced(made, store, device=None):
    todo = missing(made, store, made.questions)
    return {row.kind: row for row in budget.budget(made, store, todo, device).rows}


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """A suite with its passes as they were foreseen, and the store after it was run."""
    folder = tmp_path_factory.mktemp("budget")
    made, store = planned(folder), Store(folder / "store")
    estimates = budget._Estimates(made, store, None)
    foreseen = {key: estimates.passes(stage) for key, stage in made.stages.items()}
    laboratory = Laboratory(made, store, None, torch.device("cpu"))
    load_owners(laboratory)
    failed = [reason for _, reason in engines.serial(laboratory, made.questions) if reason]
    assert not failed
    return made, store, foreseen


@pytest.mark.slow
def test_passes_are_foreseen_to_the_last_image(run_once):
    made, store, foreseen = run_once
    checked = set()
    for key, stage in made.stages.items():
        cost, passes = store.find(key).payload["cost"], foreseen[key]
        found = cost["forward_passes"], cost["backward_passes"]
        expected = passes.forward, passes.backward
        who = stage.recipe.get("method") or stage.recipe.get("step") or {"name": stage.kind}
        if passes.bound == "exact":
            assert found == pytest.approx(expected), who
        elif passes.bound == "at most":
            assert all(a <= b + 1e-9 for a, b in zip(found, expected, strict=True)), who
        elif passes.bound == "at least":
            assert all(a >= b - 1e-9 for a, b in zip(found, expected, strict=True)), who
        checked.add((stage.kind, who["name"], passes.bound))
    assert ("protect", "activemark", "exact") in checked
    assert ("protect", "ipguard", "at most") in checked
    assert ("protect", "adv_tra", "at least") in checked
    assert {kind for kind, _, _ in checked} == set(get_args(Kind)) - {"cohort"}


def test_what_was_measured_prices_stages_alike_and_the_rest_by_their_passes(run_once, tmp_path):
    _, store, _ = run_once
    alike = planned(tmp_path, SUITE.replace("twin_seeds: 1", "twin_seeds: 2"))
    row = priced(alike, store)["attack"]
    assert row.stages
    assert row.seconds > 0
    other = SUITE.replace("epochs: 2}", "epochs: 50}")
    few, many = priced(alike, store)["attack"], priced(planned(tmp_path, other), store)["attack"]
    assert many.seconds > few.seconds
    assert many.forward > few.forward


@pytest.fixture(scope="module")
def dropped(tmp_path_factory):
    """Two methods run with copies dropped: plan, store, and the bytes in it after every stage."""
    folder = tmp_path_factory.mktemp("dropped")
    made, store, sizes = planned(folder, OF_TWO), Store(folder / "store"), []

    class Watched(Laboratory):
        def carry_out(self, stage):
            artefact = super().carry_out(stage)
            sizes.append(sum(path.stat().st_size for path in store.root.glob("??/*.safetensors")))
            return artefact

    laboratory = Watched(made, store, None, torch.device("cpu"), drop_copies=True)
    load_owners(laboratory)
    answered = list(engines.serial(laboratory, made.questions))
    assert not [reason for _, reason in answered if reason]
    assert len(answered) == len(made.questions)
    return made, store, sizes


@pytest.mark.slow
def test_the_disk_that_copies_take_at_once_is_foreseen(run_once, dropped):
    (_, known, _), (made, _, sizes) = run_once, dropped
    there = guesses(made, known)
    order = engines.in_line(made, Store(known.root / "none"), made.questions)
    foreseen = at_once(made, {key: there[key][1] for key in order})
    assert foreseen == max(sizes)
    assert foreseen < sum(size for _, size in there.values())


def test_copies_that_are_dropped_cost_no_evidence(run_once, dropped):
    (_, known, _), (made, store, _) = run_once, dropped
    for key, stage in made.stages.items():
        mine, other = store.find(key), known.find(key)
        assert mine.dropped == (stage.kind == "attack" and bool(other.tensors))
        for name in ("evidence", "utility", "fidelity", "digest"):
            assert mine.payload.get(name) == other.payload.get(name)


def test_the_price_of_a_mark_and_the_worth_of_the_untouched_models_agree_image_by_image(run_once):
    made, store, _ = run_once
    priced = [question for question in made.questions if question.fidelity]
    assert len(priced) == 2
    for question in priced:
        price = store.find(question.fidelity).payload["fidelity"]
        released = store.find(question.utility).payload["utility"]
        clean = next(q for q in made.questions if (q.cell.base, q.cell.attack, q.cell.method) == (
            "owner", question.cell.attack, question.cell.method))  # fmt: skip
        owner = store.find(clean.utility).payload["utility"]
        assert (price["own_task"], price["own_images"]) == (owner["task"], owner["n"])
        assert price["owner_right"] == owner["right"]
        assert price["released_right"] == released["right"]
        for suspect in (owner, released):
            right = unpacked(suspect["right"], suspect["n"])
            assert sum(right) / len(right) == pytest.approx(suspect["value"])


def test_nothing_measured_leaves_time_open_and_passes_known(tmp_path):
    rows = priced(planned(tmp_path), Store(tmp_path / "empty"))
    assert rows["attack"].seconds is None
    assert rows["attack"].forward > 0
    assert rows["protect"].bound == "~"


def test_a_declared_device_takes_operations_over_speed(tmp_path):
    made, empty = planned(tmp_path), Store(tmp_path / "empty")
    row = priced(made, empty, "a100-80gb")["attack"]
    mini = shape(Architecture("embedded", "mini"))
    speed = budget.BFLOAT16_PEAKS["a100-80gb"] * budget.UTILISATION
    work = row.forward + 2 * row.backward
    assert row.seconds == pytest.approx(work * mini.operations / speed)
    with pytest.raises(UserError, match=r"no device 'a100'.*known: a100-80gb, h100, h200"):
        priced(made, empty, "a100")


def test_a_transformers_operations_are_those_of_its_matrices():
    made = shape(Architecture("timm", "vit_tiny_patch16_224"))
    d, n, depth = 192, 197, 12
    matrices = 2 * n * (4 * d * d + 8 * d * d) + 2 * 2 * n * n * d
    stem = 2 * (n - 1) * 3 * 16 * 16 * d
    assert made.operations == depth * matrices + stem
    assert (made.blocks, made.tokens, made.width, made.pixels) == (depth, n, d, 3 * 224**2)


def test_a_shape_draws_no_weights_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    shape.__wrapped__(Architecture("timm", "vit_small_patch16_224"))
    assert torch.equal(before, torch.get_rng_state())


@dataclass(frozen=True)
class Silent:
    """A method that has what it must, and does not say what it costs."""

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = False

    def protect(self, owner, ctx): ...

    def extract(self, secret, suspect, ctx): ...


@dataclass(frozen=True)
class Quiet:
    """An attack that has what it must, and does not say what it costs."""

    offers: ClassVar[Access] = Access.ALL
    derived: ClassVar[bool] = True
    random: ClassVar[bool] = False
    change: ClassVar[Change] = "compression"

    def run(self, victim, ctx): ...


def test_a_plug_in_that_counts_nothing_is_unknown_not_free(tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS._plugins, "quiet", (Quiet, 1))
    monkeypatch.setitem(METHODS._plugins, "silent", (Silent, 1))
    text = SUITE.replace("prune.l1, amount: 0.2", "quiet").replace("oracle.weights", "silent")
    assert "quiet" in text
    rows = priced(planned(tmp_path, text), Store(tmp_path / "empty"), "h100")
    for kind in ("attack", "protect", "extract"):
        assert (rows[kind].forward, rows[kind].seconds) == (None, None)
    assert rows["utility"].seconds > 0


def test_whom_a_plug_in_that_does_not_say_can_read_is_taken_for_all_and_said(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS._plugins, "silent", (Silent, 1))
    text = suite(methods=["{name: silent}"], innocents="{strangers: 1, other_shapes: 2}")
    (said,) = reach.said_of(planned(tmp_path, text))
    assert said.startswith(
        "mini: silent: 5 of 5 strangers can be read, 4 of them as far as is known before a run;"
    )


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_of_ours_says_what_it_costs(name):
    sizes = Sizes(images=100, held_out=50, blocks=12, tokens=197, width=192)
    method = METHODS.build(name, {})
    for ask in (method.protect_passes, method.extract_passes):
        found = ask(sizes)
        assert isinstance(found, Passes)
        assert math.isfinite(found.work)


def test_a_suite_on_a_machine_that_has_nothing_can_be_planned(tmp_path):
    text = SUITE.replace(
        "{digits: {max_images: 40}",
        "{digits: {max_images: 40}, food: {loader: foodseg103, path: FoodSeg103}",
    ).replace("{embedded: mini, classifier: {data: digits, epochs: 1}}", "{timm: test_vit, "
              "weights: gone.pth, classifier: {data: digits}}").replace(
        "finetune.segment, data: scenes", "finetune.segment, data: food")  # fmt: skip
    made = planned(tmp_path, text, tmp_path)
    assert (
        "data food is not there: counted with its published size, 7118 images" in made.warnings[0]
    )
    rows = priced(made, Store(tmp_path / "empty"), "h200")
    assert rows["attack"].forward > 2000
    assert all(row.seconds is not None for row in rows.values())
    with pytest.raises(UserError, match="expected a folder"):
        plan.make(made.suite, tmp_path)


@pytest.mark.parametrize("name", ATTACKS.names())
def test_every_attack_of_ours_says_what_it_costs(name):
    assert issubclass(ATTACKS.get(name), CountsPasses)
