"""Tuning as a user runs it: what is tried, who is read, what is made twice, what is written."""

from dataclasses import dataclass
from typing import ClassVar

import made
import pytest
import torch

import bench
from bench.cli import main
from bench.models.vision import clone
from bench.models.weights import weights_digest
from bench.records.nouns import Access, Evidence, Incompatible, Passes, Rule, UserError
from bench.records.store import Store
from bench.registry import METHODS
from bench.suite import reader
from bench.types import PositiveFloat, Protected

SUITE = made.suite(
    owners=["{embedded: mini, classifier: {data: digits, epochs: 2}}"],
    methods=[
        "{name: loud, strength: 0.05}   # by hand",
        "{name: quiet}",
        "{name: akh, queries: 8}",
    ],
    attacks=["{name: control.identity}", "{name: prune.l1, amount: 0.4}"],
    innocents="{strangers: 2, twin_seeds: 2, other_keys: 1, descendants: [{name: quantize}]}",
)


@dataclass(frozen=True)
class Loud:
    """A mark that is read the better, and costs the more, the stronger it is."""

    needs: ClassVar[Access] = Access.WEIGHTS
    marks: ClassVar[bool] = True
    tunable: ClassVar = {"strength": (0.01, 0.05, 0.5, 5.0, 500.0)}
    seen: ClassVar[list[str]] = []
    protected: ClassVar[list[float]] = []

    strength: PositiveFloat = 0.01

    def protect(self, owner, ctx):
        self.protected.append(self.strength)
        if self.strength == 5.0:
            raise Incompatible("too loud")
        key = torch.randint(2, (48,), generator=ctx.rng) * 2.0 - 1
        model = clone(owner)
        with torch.no_grad():
            model.blocks[5].mlp.fc2.bias.copy_(self.strength * key)
        return Protected(model, {"key": key})

    def extract(self, secret, suspect, ctx):
        self.seen.append(weights_digest(suspect.network))
        read = (suspect.network.blocks[5].mlp.fc2.bias * secret["key"] / 0.05).clamp(0, 1)
        values = tuple(read.tolist())
        return Evidence(values, values, Rule("loudness", ">=", 0.15), "channel", None)

    def protect_passes(self, sizes):
        return Passes(forward=self.strength * 1000)


@dataclass(frozen=True)
class Quiet(Loud):
    """The same mark with nothing to tune."""

    tunable: ClassVar = {}


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    monkeypatch.setitem(METHODS._plugins, "loud", (Loud, 1))
    monkeypatch.setitem(METHODS._plugins, "quiet", (Quiet, 1))
    Loud.seen.clear()
    Loud.protected.clear()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One folder for all: what one test made is there for the next, as for a user."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(f"# what it is for\n{SUITE}")
    return path


def tune(suite, results, **terms):
    return bench.tune(suite, results, note=lambda line: None, **terms)


def strengths(choice):
    return [t.candidate.spec.args["strength"] for t in choice.trials]


def test_every_method_gets_one_budget_and_the_choice_keeps_to_the_price(suite, results):
    loud, quiet, akh = tune(suite, results, budget=5, price=0.05).choices
    assert [len(c.trials) for c in (loud, quiet, akh)] == [5, 1, 1]  # which is all they have
    assert strengths(loud)[:2] == [0.05, 0.01]
    assert set(strengths(loud)) == {0.01, 0.05, 0.5, 5.0, 500.0}
    refused = next(t for t in loud.trials if t.candidate.spec.args["strength"] == 5.0)
    assert refused.reason == "incompatible: too loud"
    ruin = next(t for t in loud.trials if t.candidate.spec.args["strength"] == 500.0)
    assert ruin.margin > 0.8
    assert ruin.price.lost > 0.05
    assert ruin.price.task == "own task"
    assert loud.trial.margin > 0.8
    assert loud.chosen.args["strength"] in (0.05, 0.5)
    assert akh.why == "the largest margin of 1 that hold within the price"


def test_nobody_is_read_but_the_released_model_and_the_clean_owner(suite, results, tmp_path):
    tuned = tune(suite, tmp_path, budget=2)  # a folder of its own: all is read here
    cells = [cell for _, cell in tuned.results.outline.cells]
    assert {(c.base, c.lineage) for c in cells} == {("released", "released"), ("owner", "owner")}
    assert {step.name for c in cells for step in c.attack} == {"control.identity"}
    records = tuned.results.records.values()
    marks = [r for r in records if r.marks]
    known = {r.suspect_digest for r in marks}
    assert set(Loud.seen) == known
    owned = {r.suspect_digest for r in marks if r.cell.base == "owner"}
    assert owned == {r.owner_digest for r in marks}
    assert len(Loud.seen) == 2 * 3  # each of three candidates: released and clean


def test_a_second_tuning_makes_nothing_and_a_larger_budget_makes_what_is_new(suite, results):
    tune(suite, results, budget=5)
    Loud.seen.clear()
    Loud.protected.clear()
    again = tune(suite, results, budget=5)
    assert (Loud.seen, Loud.protected) == ([], [])
    assert again == tune(suite, results, budget=5)


def test_what_is_chosen_is_there_when_the_suite_runs(suite, tmp_path):
    tuned, file = tmp_path / "results", tmp_path / "tuned.yaml"
    tune(suite, tuned, budget=2, write=file)
    Loud.protected.clear()
    made_of = [q for q in bench.plan(file).questions if q.cell.base == "released"]
    store = Store(tuned / ".store")
    assert all(store.find(q.protect) for q in made_of)


def test_a_written_suite_loads_keeps_its_comments_and_says_how_it_was_tuned(
    suite, results, tmp_path
):
    file = tmp_path / "tuned.yaml"
    tuned = tune(suite, results, budget=5, price=0.05, seed=0, write=file)
    written, before = reader.load(file), reader.load(suite)
    assert written.methods == tuple(c.chosen for c in tuned.choices)
    assert (written.name, written.attacks) == ("tiny-tuned", before.attacks)
    text = file.read_text()
    assert text.startswith("# what it is for\nname: tiny-tuned\n")
    flat = " ".join(text.replace("#", "").split())
    assert "Tuned by `bench tune tiny.yaml --budget 5 --price 0.05 --seed 0`" in flat
    assert "No suspect was read." in flat
    assert "by hand" not in text


def test_a_suite_that_includes_another_is_written_whole(suite, results, tmp_path):
    (tmp_path / "base.yaml").write_text(SUITE.replace("name: tiny\n", ""))
    above = tmp_path / "above.yaml"
    above.write_text("name: above\ninclude: [base.yaml]\nseeds: [3]\n")
    file = tmp_path / "elsewhere" / "tuned.yaml"
    tuned = tune(above, results, budget=2, write=file)
    written = reader.load(file)
    assert (written.name, written.seeds) == ("above-tuned", (3,))
    assert written.methods == tuple(c.chosen for c in tuned.choices)


def test_a_cap_on_passes_is_one_for_all_and_what_is_over_it_is_told(suite, results):
    loud, *_ = tune(suite, results, budget=5, passes=100.0).choices
    told = [(t.candidate.spec.args["strength"], t.reason) for t in loud.trials if t.reason]
    assert strengths(loud) == [0.05, 0.01]
    assert told == []
    tight, *_ = tune(suite, results, budget=5, passes=20.0).choices
    told = {t.candidate.spec.args["strength"]: t.reason for t in tight.trials}
    assert told == {0.05: "50 passes, over 20", 0.01: ""}
    assert tight.chosen.args["strength"] == 0.01


@pytest.mark.parametrize(
    ("text", "write", "said"),
    [
        ("name: both\nparts: [tiny.yaml]\n", None, "expected a suite of one grid, got parts"),
        (None, "tiny.yaml", "expected another file than the suite itself"),
    ],
)
def test_what_cannot_be_tuned_or_written_is_refused(suite, results, tmp_path, text, write, said):
    asked = suite
    if text is not None:
        asked = tmp_path / "both.yaml"
        asked.write_text(text)
    with pytest.raises(UserError, match=said):
        tune(asked, results, budget=2, write=write and tmp_path / write)


def test_the_command_prints_candidates_and_the_methods_to_copy(suite, results, capsys):
    named = ["tune", str(suite), "--results", str(results), "--budget", "5", "--workers", "1"]
    assert main(named) == 0
    printed = capsys.readouterr().out
    assert "5 candidates a method, on the owner's data alone" in printed
    assert "methods:\n  # Tuned by `bench tune tiny.yaml --budget 5" in printed
    assert (results / "tiny-tuning" / "tuning.md").is_file()
    assert main(["tune", str(suite), "--budget", "1", "--price", "-1"]) == 2
    assert "price: expected a number" in capsys.readouterr().err
