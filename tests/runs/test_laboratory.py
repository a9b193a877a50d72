import pytest
import torch
from made import suite

from attacks.prune import L1Prune
from bench.models import clone
from bench.records.nouns import UserError
from bench.records.store import Store
from bench.runs import engines
from bench.runs.laboratory import Laboratory, load_owners
from bench.suite import plan, reader


@pytest.fixture
def laboratory(tmp_path):
    (tmp_path / "suite.yaml").write_text(suite().replace("strangers: 1", "strangers: 0"))
    made, notes = plan.make(reader.load(tmp_path / "suite.yaml"), None), []
    cpu, store = torch.device("cpu"), Store(tmp_path / "store")
    found = Laboratory(made, store, None, cpu, notes.append)
    load_owners(found)
    assert not [why for _, why in engines.serial(found, made.questions) if why]
    return found, notes


def pruned(found):
    return next(a for a in found.store if a.recipe.get("step", {}).get("name") == "prune.l1")


def test_a_copy_that_is_made_again_and_comes_out_alike_is_not_worth_a_word(laboratory):
    found, notes = laboratory
    found.store.drop(pruned(found).key)
    found.carry_out(found.plan.stages[pruned(found).key])
    assert notes == []


def test_a_copy_that_is_made_again_and_comes_out_otherwise_is_told(laboratory):
    found, notes = laboratory
    copy = pruned(found)
    other = {**copy.payload, "digest": "0" * 16}
    found.store.put(copy.key, copy.kind, copy.recipe, copy.parents, other, {})
    found.store.drop(copy.key)
    found.carry_out(found.plan.stages[copy.key])
    (told,) = notes
    assert f"attack {copy.key} came out with other weights than before" in told


def test_a_copy_of_weights_that_are_no_numbers_is_refused(laboratory, monkeypatch):
    def diverged(_attack, victim, _ctx):
        made = clone(victim)
        next(made.parameters()).data.fill_(torch.nan)
        return made

    found, _ = laboratory
    monkeypatch.setattr(L1Prune, "run", diverged)
    with pytest.raises(UserError, match=r"attack prune\.l1: expected finite weights"):
        found.carry_out(found.plan.stages[pruned(found).key])
