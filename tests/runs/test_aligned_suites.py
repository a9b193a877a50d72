"""Aligned readings in a suite: which methods have them, and the stages they add."""

import pytest
from made import QUICK, ArrayStore, carried_out, suite

from bench.records.nouns import UserError
from bench.suite import plan, reader
from bench.suite.todo import missing, spare_copies

BOTH = QUICK.replace("{", "{align: [none, static], ")


def loaded(folder, **parts):
    (folder / "suite.yaml").write_text(suite(**parts))
    return reader.load(folder / "suite.yaml")


def planned(folder, **parts):
    return plan.make(loaded(folder, **parts), None)


def kinds(made, kind):
    return {key: stage for key, stage in made.stages.items() if stage.kind == kind}


def with_owner_that_classifies(*methods):
    return {
        "owners": ["{embedded: mini, classifier: {data: digits}}"],
        "methods": list(methods),
        "innocents": "{strangers: 0}",
    }


def test_an_entry_may_be_read_raw_and_aligned(tmp_path):
    raw, aligned = loaded(tmp_path, methods=[BOTH]).methods
    assert (raw.align, aligned.align) == ("none", "static")
    assert "align" not in raw.args
    assert aligned.unaligned == raw


def test_readings_share_what_protects_and_no_key_of_a_raw_one_moves(tmp_path):
    raw, both = planned(tmp_path), planned(tmp_path, methods=[BOTH])
    assert set(raw.stages) < set(both.stages)
    assert {q.key for q in raw.questions} < {q.key for q in both.questions}
    added = {both.stages[key].kind for key in set(both.stages) - set(raw.stages)}
    assert added == {"align", "extract"}


def test_every_suspect_is_aligned_to_the_released_model_of_a_mark(tmp_path):
    made = planned(tmp_path, methods=[QUICK.replace("{", "{align: static, ")])
    for question in made.questions:
        assert made.stages[question.align].parents == (question.suspect, question.protect)
        extract = made.stages[question.extract]
        assert extract.parents == (question.protect, question.align, question.owner)
        assert question.align in question.stages
    assert {q.cell.lineage for q in made.questions} == {"released", "owner", "stranger"}
    assert {q.access for q in made.questions} == {"weights (aligned)"}


def test_suspects_of_a_grafted_fingerprint_are_aligned_to_the_owner(tmp_path):
    parts = with_owner_that_classifies("{name: ipguard, points: 4, align: static}")
    made = planned(tmp_path, **parts)
    for question in made.questions:
        assert made.stages[question.align].parents == (question.suspect, question.owner)
    assert {q.access for q in made.questions} == {"labels (owner's head grafted, aligned)"}


@pytest.mark.parametrize(
    ("method", "owner_data", "looked_at"),
    [(QUICK, "photos", "digits"), ("{name: ipguard, points: 4}", "photos", "photos")],
)
def test_auto_looks_at_images_that_the_secret_was_not_drawn_from(
    tmp_path, method, owner_data, looked_at
):
    parts = with_owner_that_classifies(method.replace("{", "{align: auto, "))
    made = planned(tmp_path, **parts, owner_images=owner_data)
    data = {stage.recipe["data"] for stage in kinds(made, "align").values()}
    assert data == {made.manifests[looked_at].digest}


def test_a_suites_align_is_for_methods_it_helps_that_say_nothing_themselves(tmp_path):
    parts = with_owner_that_classifies(
        QUICK,
        "{name: oracle.weights, align: none}",
        "{name: ipguard, points: 4}",
        "{name: akh, queries: 4, readout: relinear}",
    )
    found = loaded(tmp_path, **parts, align="[none, static]").methods
    assert [(method.name, method.align) for method in found] == [
        *(("activemark", "none"), ("activemark", "static")),
        ("oracle.weights", "none"),
        *(("ipguard", "none"), ("ipguard", "static")),
        ("akh", "none"),
    ]


@pytest.mark.parametrize(
    ("method", "complaint"),
    [
        (
            "{name: committed_bits.hidden, align: static}",
            "align: expected none, got static; its null is exact for suspects that are read "
            "without a look at the released model",
        ),
        (
            "{name: akh, readout: native, align: static}",
            "align: expected none, got static; the suspect's own head answers in any basis; "
            "readout: graft can be",
        ),
        (
            "{name: akh, readout: relinear, align: auto}",
            "align: expected none, got auto; a head fitted anew answers in any basis",
        ),
        ("{name: ipguard, align: statik}", "align: expected 'none', 'static' or 'auto', got"),
        ("{name: ipguard, align: []}", "align: expected at least 1, got none"),
    ],
)
def test_what_cannot_be_aligned_is_refused_in_a_line(tmp_path, method, complaint):
    with pytest.raises(UserError, match=r"suite.yaml:\d") as error:
        loaded(tmp_path, methods=[method])
    assert complaint in str(error.value)


def test_an_attack_is_not_aligned(tmp_path):
    with pytest.raises(UserError, match="no setting 'align'"):
        loaded(tmp_path, attacks=["{name: prune.l1, align: static}"])


def test_a_suites_align_is_checked(tmp_path):
    with pytest.raises(UserError, match="align: expected 'none', 'static' or 'auto', got 'raw'"):
        loaded(tmp_path, align="raw")


def test_an_alignment_is_loaded_with_its_suspect(tmp_path):
    made, store = planned(tmp_path, methods=[BOTH]), ArrayStore(tmp_path / "store")
    carried_out(made, store)
    question = next(q for q in made.questions if q.align and q.cell.attack[0].name == "prune.l1")
    store.drop(question.suspect)
    assert question.suspect not in missing(made, store, [question])  # nobody loads it
    store.remove(question.extract)
    left = missing(made, store, [question])
    assert {question.suspect, question.extract} <= set(left)
    assert question.align not in left
    assert question.suspect not in set(spare_copies(made, left))
    assert question.align not in set(spare_copies(made, left))
    assert {question.suspect, question.align} <= set(spare_copies(made, ()))


def test_a_suite_of_exact_nulls_needs_no_innocents(tmp_path):
    exact = "{name: committed_bits}"
    few = {"innocents": "{strangers: 0}"}
    assert not loaded(tmp_path, methods=[exact], **few).warnings
    said = loaded(tmp_path, methods=[exact, QUICK], **few).warnings
    assert any("needs 19 strangers" in line for line in said)
