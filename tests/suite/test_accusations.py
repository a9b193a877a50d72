"""A plan has accusers make up claims, on whom they accuse, and judges these among strangers."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
from made import suite
from stand_ins import Method

from bench.records.nouns import Access, Readout, UserError
from bench.registry import ACCUSERS, METHODS
from bench.suite import plan, reader
from bench.suite.sources import code_of
from bench.types import Reading

pytestmark = pytest.mark.usefixtures("stand_ins", "accusers")

PARTS = {
    "methods": ["{name: activemark, steps: 2, batch: 4, images: 4}"],
    "attacks": ["{name: control.identity}"],
    "seeds": "[0, 1]",
    "innocents": "{strangers: 5, twin_seeds: 1, pretraining_steps: 1}",
}

SUITE = suite(**PARTS)


@dataclass(frozen=True)
class Forger:
    accuses: ClassVar = "stranger"
    post_hoc: ClassVar = True
    stopped_by: ClassVar = "replay"

    def accuse(self, case, ctx): ...


@dataclass(frozen=True)
class Blind(Forger):
    post_hoc: ClassVar = False

    surrogates: int = 2


@dataclass(frozen=True)
class Thief(Forger):
    accuses: ClassVar = "owner"
    post_hoc: ClassVar = False


@dataclass(frozen=True)
class Helpless(Forger):
    def unsuited(self, method):
        return f"{type(method).__name__} is beyond him"


@pytest.fixture
def accusers(monkeypatch):
    for name, cls in {"forger": Forger, "blind": Blind, "thief": Thief, "no": Helpless}.items():
        monkeypatch.setitem(ACCUSERS._plugins, name, (cls, 1))


@dataclass(frozen=True)
class Thresholded(Method):
    needs: ClassVar = Access.LABELS
    marks: ClassVar = False

    threshold: Reading[float] = 0.5
    readout: Readout = "native"


@pytest.fixture
def thresholded(stand_ins, monkeypatch):
    monkeypatch.setitem(METHODS._plugins, "thresholded", (Thresholded, 1))


@pytest.fixture
def make(tmp_path):
    def made(*accusers, text=SUITE, **more):
        lines = [f"{key}: {value}\n" for key, value in more.items()]
        if accusers:
            lines.append(f"accusers: [{', '.join(f'{{name: {name}}}' for name in accusers)}]\n")
        (tmp_path / "suite.yaml").write_text(text + "".join(lines))
        return plan.make(reader.load(tmp_path / "suite.yaml"), None)

    return made


def forged(made):
    return [q for q in made.questions if q.cell.accuser is not None]


def test_accusers_add_stages_and_questions_and_move_none(make):
    plain, asked = make(), make("forger", "blind", "thief")
    assert set(plain.stages) < set(asked.stages)
    added = {asked.stages[key].kind for key in asked.stages.keys() - plain.stages.keys()}
    # The thief's copy is handed on untouched, and measured as any suspect is.
    assert added == {"accuse", "extract", "attack", "utility"}
    honest = [q for q in asked.questions if q.cell.accuser is None]
    assert [q.key for q in honest] == [q.key for q in plain.questions]


def test_a_claim_after_the_fact_is_made_for_each_accused_and_read_on_all(make):
    made = forged(make("forger", accused=2))
    assert Counter((q.cell.method_seed, q.cell.accused) for q in made) == {
        (seed, accused): 5 for seed in (0, 1) for accused in (0, 1)
    }
    assert len({q.protect for q in made}) == 4
    for question in made:
        read = question.cell.attack[0].args["index"]
        assert question.cell.lineage == "stranger"
        assert read in range(5)


def test_it_looks_at_the_model_it_accuses_and_no_other(make):
    plan_made = make("forger", accused=2)
    for question in forged(plan_made):
        stage = plan_made.stages[question.protect]
        owner, innocent = stage.parents
        assert stage.recipe["given"] == ["innocent"]
        assert owner == question.owner
        accused = next(
            q.suspect
            for q in forged(plan_made)
            if q.cell.attack[0].args["index"] == question.cell.accused
        )
        assert innocent == accused


def test_a_blind_claim_is_made_once_and_surrogates_judge_nobody(make):
    made = make("blind")
    asked = forged(made)
    assert {q.cell.accused for q in asked} == {None}
    assert len({q.protect for q in asked}) == 2  # one a seed
    assert {q.cell.attack[0].args["index"] for q in asked} == {0, 1, 2}
    stage = made.stages[asked[0].protect]
    assert stage.recipe["given"] == ["surrogate", "surrogate"]
    assert not {q.suspect for q in asked} & set(stage.parents)


def test_a_thief_gets_the_victims_copy_and_key_and_both_models_are_read_with_both_keys(make):
    made = make("thief")
    asked = [q for q in forged(made) if q.cell.method_seed == 0]
    honest = {q.protect for q in made.questions if q.cell.accuser is None}
    on_owner, on_his, owners = asked[:3]
    assert made.stages[on_owner.protect].recipe["given"] == ["victim"]
    assert made.stages[on_owner.protect].parents[1] in honest
    assert (on_owner.cell.base, on_his.cell.base, owners.cell.base) == (
        *("released", "accuser", "accuser"),
    )
    assert on_owner.protect == on_his.protect != owners.protect
    assert owners.protect in honest
    assert on_his.suspect == owners.suspect
    assert made.stages[on_his.suspect].parents == (on_his.protect,)
    assert {q.cell.lineage for q in asked[3:]} == {"stranger"}


def test_who_can_do_nothing_with_a_method_says_so_once(make):
    asked = forged(make("no", text=SUITE.replace("[0, 1]", "[0]")))
    assert [q.skip for q in asked] == ["ActiveMark is beyond him"]


@pytest.mark.usefixtures("thresholded")
def test_only_a_claim_after_the_fact_is_another_where_suspects_are_read_otherwise(make):
    def stages(accuser, threshold):
        methods = [f"{{name: thresholded, threshold: {threshold}}}"]
        owners = ["{embedded: mini, classifier: {data: digits}}"]
        made = make(accuser, text=suite(**PARTS | {"methods": methods, "owners": owners}))
        found = {q.protect for q in made.questions if not q.skip and q.cell.accuser is None}
        return found, {key: made.stages[key] for q in forged(made) if (key := q.protect)}

    for accuser, moves in (("forger", True), ("blind", False)):
        (honest, one), (again, other) = (stages(accuser, value) for value in (0.5, 0.6))
        assert one
        assert honest == again
        assert (one.keys().isdisjoint(other), one.keys() == other.keys()) == (moves, not moves)
    read = [stage.recipe.get("reading") for stage in stages("forger", 0.6)[1].values()]
    assert read == [{"threshold": 0.6}] * len(read)  # `readout` stands beside it


def test_a_claim_after_the_fact_with_a_method_of_one_reading_keeps_its_key(make):
    made = make("forger")
    assert all("reading" not in made.stages[q.protect].recipe for q in forged(made))


def test_suspects_of_a_forged_claim_are_read_as_they_are(make):
    aligned = SUITE.replace("images: 4}", "images: 4, align: [none, static]}")
    made = forged(make("forger", text=aligned))
    assert {q.cell.method.align for q in made} == {"none"}
    assert {q.align for q in made} == {None}
    assert len(made) == len(forged(make("forger")))


def test_too_few_strangers_to_judge_by_are_told_of(make):
    assert [w for w in make("blind").warnings if "blind" in w] == [
        "mini: blind: 2 strangers are left beside the accused and surrogates, 19 are needed at "
        "alpha = 0.05: nothing is decided"
    ]


def test_the_code_of_a_forged_claim_is_the_accusers_and_the_methods(make):
    made = make("forger")
    question = forged(made)[0]
    for key in (question.protect, question.extract):
        assert {"forger", "activemark"} <= code_of(made.stages[key], made.stages).keys()


def test_an_unknown_accuser_is_refused_with_its_line(make):
    with pytest.raises(UserError, match=r"suite\.yaml:\d+: no accuser named 'forgr'; did you mean"):
        make("forgr")


def test_an_accuser_names_its_own_settings(make, tmp_path):
    text = SUITE + "accusers: [{name: blind, surrogates: 1}]\n"
    [first, *_] = forged(make(text=text))
    assert first.cell.accuser.args == {"surrogates": 1}
    assert dataclasses.replace(first.cell, accuser=None) != first.cell
