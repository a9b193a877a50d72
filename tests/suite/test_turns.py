"""In which order the stages of a plan are made: some verdicts soon, and all of them no later."""

import dataclasses
import pickle

import pytest
from made import MARK, PRINT, UNTOUCHED, cell, stranger, suite

from bench.records.nouns import SCHEMA, Spec, digest
from bench.suite import graph, plan, reader
from bench.suite.todo import began, claim_of, firsts, in_turn, row_of, start

pytestmark = pytest.mark.usefixtures("stand_ins")

TUNE, PRUNE = "{name: finetune.classify, data: digits, epochs: 1}", "{name: prune.l1, amount: 0.2}"
MARKS = [f"{{name: activemark, steps: {steps}, batch: 4, images: 4}}" for steps in (2, 3)]
INNOCENTS = (
    "{strangers: 11, twin_seeds: 2, attacked_strangers: 2, other_keys: 1, pretraining_steps: 1, "
    f"descendants: [{{name: prune.l1, amount: 0.6}}, {TUNE}]}}"
)
WORK = {"cohort": 50.0, "protect": 20.0, "finetune.classify": 3.0}
"""What stages cost; that of a second mark is more."""


@pytest.fixture
def make(tmp_path):
    def made(methods=MARKS, seeds="[0]"):
        text = suite(
            owners=["{embedded: mini, classifier: {data: digits}}"],
            methods=methods,
            attacks=[TUNE, "{name: control.identity}", PRUNE],
            seeds=seeds,
            innocents=INNOCENTS,
        )
        (tmp_path / "suite.yaml").write_text(text)
        return plan.make(reader.load(tmp_path / "suite.yaml"), None)

    return made


def work_of(made):
    def work(key):
        stage = made.stages[key]
        if stage.kind == "protect":
            return WORK["protect"] * stage.recipe["method"]["args"].get("steps", 1)
        return WORK.get(stage.kind, WORK.get(stage.recipe.get("step", {}).get("name"), 0.0))

    return work


def turns(made, left=None):
    return in_turn(
        made, made.questions, made.stages.keys() if left is None else left, work_of(made)
    )


def ended(made, order):
    """When every question is answered where stages are made one by one: by its last stage."""
    place = {key: number for number, key in enumerate(order)}
    return {q.key: max(place[key] for key in q.stages) for q in made.questions}


def names(question):
    return [step.name for step in question.cell.attack]


def of(made, method, **wanted):
    return [
        q
        for q in made.questions
        if q.cell.method == made.suite.methods[method]
        and all(getattr(q.cell, name) == value for name, value in wanted.items())
    ]


def test_every_stage_is_made_once_and_after_its_parents(make):
    made = make()
    order = turns(made)
    assert sorted(order) == sorted(made.stages)
    place = {key: number for number, key in enumerate(order)}
    for key, stage in made.stages.items():
        assert all(place[parent] < place[key] for parent in stage.parents)


def test_what_is_there_is_not_made_and_what_stands_behind_it_may_be(make):
    made = make()
    (asked,) = (q for q in of(made, 0, base="released") if names(q) == ["prune.l1"])
    left = {asked.utility, asked.protect}  # damaged, though the copy made of it is there
    assert turns(made, left) == (asked.protect, asked.utility)
    assert turns(made, ()) == ()


def test_nothing_is_made_for_what_cannot_be_read(make):
    made = make()
    read, *others = made.questions
    left_out = dataclasses.replace(read, skip="no access", suspect="", extract="", utility="")
    order = in_turn(made, [left_out, *others], made.stages.keys(), work_of(made))
    assert set(order) == {key for question in others for key in question.stages} | {
        above for question in others for key in question.stages for above in upwards(made, key)
    }


def upwards(made, key):
    """List all that a stage follows from."""
    for parent in made.stages[key].parents:
        yield parent
        yield from upwards(made, parent)


def test_first_verdicts_of_every_method_come_before_all_else(make):
    made = make(seeds="[0, 7]")
    end = ended(made, turns(made))
    first = firsts(q.cell for q in made.questions)
    soon = [
        end[q.key]
        for q in made.questions
        if claim_of(q.cell) in first and row_of(q.cell) is not None
    ]
    later = [end[q.key] for q in made.questions if q.key not in {*soon} and end[q.key] not in soon]
    assert {claim[2] for claim in first} == {0}
    assert later
    assert max(soon) < min(later)


def test_methods_are_answered_one_after_the_other_and_cheap_attacks_first(make):
    made = make()
    end = ended(made, turns(made))
    one, other = ([end[q.key] for q in of(made, n, base="released")] for n in (0, 1))
    assert max(one) < min(other)
    marked = sorted(of(made, 0, base="released"), key=lambda q: end[q.key])
    assert [names(q)[0] for q in marked] == ["control.identity", "prune.l1", "finetune.classify"]
    shared = [q for q in of(made, 0, base="owner") if row_of(q.cell) == ()]
    assert max(end[q.key] for q in shared) < end[marked[-1].key]


def test_what_takes_long_is_begun_first_in_its_turn(make):
    made = make()
    stages = [made.stages[key] for key in turns(made)]
    long = [n for n, stage in enumerate(stages) if stage.kind in ("protect", "cohort")]
    steps = [stage.recipe["step"]["name"] if stage.kind == "attack" else "" for stage in stages]
    assert len(long) == 6
    assert max(long[:3]) < min(steps.index("finetune.classify"), steps.index("prune.l1"))
    others = [s.recipe for s in stages if s.kind == "protect" and s.recipe["seed"] == 1]
    assert [recipe["method"]["args"]["steps"] for recipe in others] == [3, 2]  # the dearer first


def test_a_fingerprint_waits_for_the_strangers_of_the_attack_that_is_next(make):
    made = make(["{name: akh}"])
    end = ended(made, turns(made))
    strangers = [q for q in made.questions if q.cell.lineage == "stranger"]
    tuned = [end[q.key] for q in strangers if names(q)[1:] == ["finetune.classify"]]
    pruned = [end[q.key] for q in strangers if names(q)[1:] == ["prune.l1"]]
    as_they_are = [end[q.key] for q in strangers if len(names(q)) == 1]
    assert len(tuned) == len(pruned) == 2
    assert max(*as_they_are, *pruned) < min(tuned)


PRUNED = (Spec("prune.l1", {"amount": 0.4}),)
OTHER = Spec("vit", {"library": "timm"})


@pytest.mark.parametrize(
    ("asked", "row"),
    [
        (cell(attack=PRUNED), PRUNED),
        (cell(base="owner", attack=PRUNED), ()),
        (cell(base="owner", attack=PRUNED, seed=3, attack_seed=3), ()),
        (cell(base="owner", attack=PRUNED, attack_seed=1), None),  # a further twin
        (cell(base="owner", attack=stranger()), ()),
        (cell(PRINT, "owner", stranger(2, *PRUNED), attack_seed=2), PRUNED),
        (cell(base="other model", attack=UNTOUCHED, other_model=OTHER), ()),
        (cell(PRINT, "other model", (*UNTOUCHED, *PRUNED), other_model=OTHER), PRUNED),
        (cell(base="other key", attack=PRUNED, other_seed=1), None),
        (cell(accuser=MARK), None),
    ],
)
def test_a_cell_is_needed_first_for_one_attack_for_all_or_for_none(asked, row):
    assert row_of(asked) == row


@pytest.mark.parametrize(
    "asked",
    [
        cell(attack=(*PRUNED, *UNTOUCHED)),
        cell(base="other key", attack=PRUNED, other_seed=1),
        cell(PRINT, "other model", UNTOUCHED, other_model=OTHER),
        cell(accuser=MARK, accused=0),
    ],
)
def test_a_key_made_of_texts_at_hand_is_that_of_the_whole_written_anew(asked):
    question = graph.Question(asked, "weights", True, "o", "p", "s", "e", "u", None, 'why "not"')
    said = {k: v for k, v in dataclasses.asdict(asked).items() if v is not None}
    stages = [question.extract, question.utility, None]
    assert question.key == digest(SCHEMA, "cell", said, stages, question.skip)
    stage = graph.Stage("attack", {"seed": None, "data": "d"}, ("a", "b"))
    assert stage.key == digest(SCHEMA, "attack", {"seed": None, "data": "d"}, ["a", "b"])
    assert graph.Stage("owner", {}).key == digest(SCHEMA, "owner", {}, [])


def test_a_plan_is_sent_to_workers_as_it_is(make):
    made = make()
    there = pickle.loads(pickle.dumps(made))
    assert (there.stages, there.questions) == (made.stages, made.questions)


def test_where_a_line_of_descent_began_is_found_by_its_key_alone(make):
    made = make()
    for key, stage in made.stages.items():
        assert began(stage, made.stages) == start(stage, made.stages).key, key
