"""What thieves do with several copies, keys of their own and servers, run for real and stored."""

import pytest
import torch
from made import QUICK, suite

from bench.models import Served
from bench.records.store import Store
from bench.runs import engines
from bench.runs.laboratory import Laboratory, load_owners
from bench.suite import plan, reader

SUITE = suite(
    owners=["{embedded: mini, classifier: {data: digits, epochs: 1}}"],
    methods=[QUICK, "{name: akh, queries: 8}"],
    attacks=[
        "{name: control.identity}",
        "{name: collusion}",
        "{name: overwrite, data: photos, method: " + QUICK + "}",
        "[{name: serve.flip}, {name: serve.detect, by: features, neighbours: 1}]",
    ],
    innocents="{strangers: 0, twin_seeds: 1, pretraining_steps: 1}",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thieves")
    (folder / "suite.yaml").write_text(SUITE)
    made = plan.make(reader.load(folder / "suite.yaml"), None)
    lab = Laboratory(made, Store(folder / "store"), None, torch.device("cpu"), lambda line: None)
    load_owners(lab)
    assert not [why for _, why in engines.serial(lab, made.questions) if why]
    return lab


def question(lab, attack, base="released", marks=True):
    (one,) = [
        q
        for q in lab.plan.questions
        if (q.cell.attack[0].name, q.cell.base, q.marks) == (attack, base, marks)
    ]
    return one


def test_a_colluder_is_the_mean_of_two_keys_and_its_twin_has_one_of_them(found):
    for base in ("released", "owner"):
        asked = question(found, "collusion", base)
        mean, *parts = (
            found._model(key).trunk.state_dict()
            for key in (asked.suspect, *found.plan.stages[asked.suspect].parents)
        )
        assert len(parts) == 2
        for name, value in mean.items():
            expected = (parts[0][name].double() + parts[1][name].double()) / 2
            assert torch.allclose(value.double(), expected, atol=1e-6), name
    kinds = [
        found.plan.stages[key].recipe.get("seed")
        for key in found.plan.stages[asked.suspect].parents
    ]
    assert kinds == [None, 1]


def test_a_thiefs_key_lies_beside_the_weights_and_is_no_part_of_the_model(found):
    key = question(found, "overwrite").suspect
    tensors = found.store.tensors(key)
    secret = {n for n in tensors if n.startswith("secret.1.")}
    mark = found.store.tensors(question(found, "overwrite").protect)
    assert {n.replace("secret.1.", "secret.") for n in secret} == {
        n for n in mark if n.startswith("secret.")
    }
    assert found._model(key).architecture.served is None


def test_a_served_copy_is_stored_and_read_as_it_is_served(found):
    mark, told = (question(found, "serve.flip", marks=marks) for marks in (True, False))
    kinds = [each.kind for each in found._model(told.suspect).architecture.served]
    assert kinds == ["flip", "detect.features"]
    assert Served("flip") in found._model(mark.suspect).architecture.served
    whole = [question(found, "control.identity", marks=marks) for marks in (True, False)]
    read = [
        [found.store.find(q.extract).payload["evidence"]["agreement"] for q in pair]
        for pair in ((mark, whole[0]), (told, whole[1]))
    ]
    assert read[0][0] == read[0][1]  # who reads weights sees through
    assert read[1][0] != read[1][1]
    notes = found.store.find(told.extract).payload["notes"]
    assert 0 <= notes["answered"] <= 1
    assert "answered" not in found.store.find(whole[1].extract).payload.get("notes", {})


def test_what_a_served_copy_is_worth_is_measured_as_it_is_served(found):
    served, whole = (
        found.store.find(question(found, name, marks=False).utility).payload["utility"]
        for name in ("serve.flip", "control.identity")
    )
    assert served["right"] != whole["right"]


def test_a_copy_served_otherwise_is_another_model(found):
    names = ("serve.flip", "control.identity")
    digests = {
        found.store.find(question(found, n, marks=False).suspect).payload["digest"] for n in names
    }
    assert len(digests) == 2
