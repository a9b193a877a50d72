import dataclasses
import random

import made
import pytest
from made import BITS, lost, outline

from bench.cli import main
from bench.records import ledger
from bench.records.ledger import Results, read_results
from bench.records.nouns import Evidence, Fidelity, Rule, Spec, UserError, Utility
from bench.reports import compare
from bench.reports.compare import Tolerance


def cell(attack="tune", base="released", version=1, **args):
    return made.cell(Spec("mark", {}, version), base, (Spec(attack, args, version),))


MARKED, TWIN = cell(), cell(base="owner")
STRANGER = cell("control.stranger", "owner", index=0)


def answer(asked, hits=50, score=0.5, utility=0.9, **changes):
    """Answer a cell with so many of 100 images read, and any score."""
    errors = (0.0,) * hits + (16.0,) * (100 - hits)
    defaults = {
        "evidence": Evidence((score,) * 100, errors, BITS, "image", 0.5),
        "utility": Utility("accuracy", utility, "digits", 360),
        "suspect_digest": "suspect",
        "marks": True,
    }
    return made.record(asked, **defaults | changes)


def results(*records, holes=()):
    return Results(outline([*records, *holes]), {r.key: r for r in records})


def outcome(base, head, tolerance=Tolerance()):  # noqa: B008 - it is frozen
    return compare.compare(base, head, tolerance).outcome


@pytest.mark.parametrize(
    ("asked", "before", "after", "expected"),
    [
        (MARKED, {"hits": 90}, {"hits": 90}, "same"),
        (MARKED, {"hits": 90}, {"hits": 88}, "same"),  # exactly the tolerance
        (MARKED, {"hits": 90}, {"hits": 87}, "regressed"),
        (MARKED, {"hits": 90}, {"hits": 100}, "same"),
        (MARKED, {"score": 0.9}, {"score": 0.89}, "same"),
        (MARKED, {"score": 0.9}, {"score": 0.88}, "regressed"),
        (TWIN, {"hits": 3}, {"hits": 6}, "regressed"),
        (TWIN, {"hits": 6}, {"hits": 0}, "same"),
        (TWIN, {"score": 0.5}, {"score": 0.52}, "regressed"),
        (STRANGER, {"hits": 0}, {"hits": 3}, "regressed"),
        (STRANGER, {"hits": 3}, {"hits": 0}, "same"),
        (MARKED, {"utility": 0.9}, {"utility": 0.88}, "same"),
        (MARKED, {"utility": 0.9}, {"utility": 0.87}, "regressed"),
        (TWIN, {"utility": 0.9}, {"utility": 0.87}, "regressed"),
        (TWIN, {"utility": 0.9}, {"utility": 0.99}, "same"),
    ],
)
def test_a_copy_must_not_be_recognised_less_nor_an_innocent_more(asked, before, after, expected):
    base, head = results(answer(asked, **before)), results(answer(asked, **after))
    assert outcome(base, head) == expected


def test_a_fingerprints_descendants_are_guilty_and_a_copy_with_the_clean_weights_is_not():
    before, after = answer(MARKED, 90), answer(MARKED, 50)
    clean = [dataclasses.replace(r, suspect_digest="clean") for r in (before, after)]
    assert outcome(results(clean[0]), results(clean[1])) == "same"  # a twin recognised less
    prints = [dataclasses.replace(r, marks=False) for r in clean]
    assert outcome(results(prints[0]), results(prints[1])) == "regressed"


def test_cells_of_two_keys_that_are_one_and_the_same_are_each_compared():
    tuned, method = Spec("tune"), Spec("mark")

    def read(score):
        lone = [
            answer(
                made.cell(method, "owner", made.stranger(i, tuned)), 0, 0.1, suspect_digest=str(i)
            )
            for i in range(19)
        ]
        copies = [answer(made.cell(method, attack=(tuned,), seed=s), 50, score) for s in (0, 1)]
        prints = [dataclasses.replace(r, marks=False) for r in (*lone, *copies)]
        return results(*map(made.with_secret, prints))

    found = compare.compare(read(0.9), read(0.05), Tolerance())
    assert found.compared == 21
    assert [m.lost for m in found.movements if m.what == "score"] == [2]


def test_the_price_of_a_mark_is_part_of_its_utility():
    def priced(cosine, accuracy):
        return answer(MARKED, fidelity=Fidelity((cosine,) * 4, 0.9, accuracy, 100, "digits"))

    base = results(priced(0.99, 0.9))
    assert outcome(base, results(priced(0.985, 0.89))) == "same"
    assert outcome(base, results(priced(0.9, 0.9))) == "regressed"
    assert outcome(base, results(priced(0.99, 0.8))) == "regressed"


def test_tolerances_are_the_callers():
    base, head = results(answer(MARKED, 90)), results(answer(MARKED, 80))
    assert outcome(base, head, Tolerance(rate=0.1)) == "same"
    exact = Tolerance(0, 0, 0)
    assert outcome(base, base, exact) == "same"
    assert outcome(base, results(answer(MARKED, 89)), exact) == "regressed"


def test_equal_evidence_is_equal_and_another_query_is_told():
    base = answer(MARKED, 90)
    turned = dataclasses.replace(base.evidence, statistic=base.evidence.statistic[::-1])
    found = compare.compare(
        results(base), results(dataclasses.replace(base, evidence=turned)), Tolerance()
    )
    assert (found.compared, found.equal, found.outcome) == (1, 0, "same")
    assert [(d.what, d.outcome) for d in found.differences] == [("evidence", "within tolerance")]
    assert compare.compare(results(base), results(base), Tolerance()).equal == 1


@pytest.mark.parametrize("status", ["failed", "incompatible", "skipped"])
def test_what_was_measured_and_is_not_any_more_is_no_success(status):
    base = results(answer(MARKED), answer(TWIN))
    head = results(answer(MARKED), lost(answer(TWIN), status))
    found = compare.compare(base, head, Tolerance())
    assert (found.outcome, found.compared) == ("not measured", 1)
    assert [(d.head, d.outcome) for d in found.differences] == [(status, "not measured")]


def test_a_cell_that_head_asks_and_has_no_record_of_is_not_measured():
    base = results(answer(MARKED), answer(TWIN))
    assert outcome(base, results(answer(MARKED), holes=[TWIN])) == "not measured"


def test_a_regression_outweighs_what_was_not_measured():
    base = results(answer(MARKED, 90), answer(TWIN))
    head = results(answer(MARKED, 10), lost(answer(TWIN)))
    assert outcome(base, head) == "regressed"


@pytest.mark.parametrize(
    ("base", "head"),
    [
        (results(), results()),
        (results(answer(MARKED)), results()),
        (results(answer(MARKED)), results(answer(TWIN))),
        (results(holes=[MARKED]), results(holes=[MARKED])),
        (results(lost(answer(MARKED))), results(answer(MARKED))),
        (results(lost(answer(MARKED))), results(lost(answer(MARKED)))),
    ],
)
def test_it_is_never_the_same_where_nothing_was_compared(base, head):
    found = compare.compare(base, head, Tolerance())
    assert (found.outcome, found.compared) == ("not measured", 0)
    notes = compare.table(found, head, Tolerance()).notes
    assert notes[0].startswith("nothing was compared")


def test_cells_whose_keys_differ_are_matched_by_content_whatever_their_versions():
    base = results(answer(MARKED, 90, key="before"))
    newer = answer(cell(version=2), 50, key="after")
    found = compare.compare(base, results(newer), Tolerance())
    assert (found.outcome, found.by_content, found.compared) == ("regressed", 1, 1)
    other = answer(cell(epochs=3), 50, key="after")  # another setting is another cell
    found = compare.compare(base, results(other), Tolerance())
    assert (found.compared, found.only_base, found.only_head) == (0, 1, 1)


def test_numbers_of_another_kind_are_not_compared():
    before = answer(MARKED, 90)
    strict = dataclasses.replace(before.evidence, rule=Rule("bit errors", "<=", 3))
    assert outcome(results(before), results(answer(MARKED, evidence=strict))) == "not measured"
    pixels = Utility("mIoU", 0.9, "scenes", 10)
    for utility in (pixels, None):
        head = results(dataclasses.replace(before, utility=utility))
        assert outcome(results(before), head) == "not measured"


def test_the_table_names_every_cell_that_moved_the_worst_first():
    base = results(answer(MARKED, 50), answer(TWIN, 2), answer(STRANGER, 1))
    head = results(answer(MARKED, 90), answer(TWIN, 40), answer(STRANGER, 2))
    found = compare.compare(base, head, Tolerance())
    made = compare.table(found, head, Tolerance())
    shown = [dict(zip(made.columns, row, strict=True)) for row in made.rows]
    assert [(r["suspect"], r["what"], r["outcome"]) for r in shown] == [
        ("owner 0/0", "rate", "regressed"),
        ("released 0/0", "rate", "improved"),
    ]  # the stranger moved within tolerance
    assert (shown[0]["BASE"], shown[0]["HEAD"], shown[0]["change"]) == ("0.020", "0.400", "+0.380")
    assert shown[0]["cell"] == answer(TWIN).key
    assert any("1 within tolerance, 1 improved, 1 regressed" in note for note in made.notes)
    assert any("rate 0.02, score 0.01, utility 0.02" in note for note in made.notes)


HERE, THERE = {"cpu": "Xeon", "torch": "2.14"}, {"cpu": "EPYC", "torch": "2.14"}


def tuned(number, score, environment, **parts):
    """One of many marked copies, with its score where it was read."""
    asked = cell(epochs=number)
    return answer(asked, score=score, environment=environment, **parts)


def moved_by(*steps, here=HERE, there=THERE):
    """Two results whose copies' scores lie these steps apart."""
    base = results(*(tuned(i, 0.6, here) for i in range(len(steps))))
    head = results(*(tuned(i, 0.6 + step, there) for i, step in enumerate(steps)))
    return base, head


def test_noise_between_two_machines_is_said_to_be_noise(tmp_path, capsys):
    rng = random.Random(0)
    steps = [rng.uniform(-0.008, 0.008) if i % 2 else 0.0 for i in range(120)]
    base, head = moved_by(*steps)
    found = compare.compare(base, head, Tolerance())
    assert (found.outcome, found.compared, found.equal) == ("same within noise", 120, 60)
    assert main(["compare", write(tmp_path / "a", base), write(tmp_path / "b", head)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "HEAD against BASE: same within noise" in said
    assert "machine: cpu Xeon in BASE, EPYC in HEAD" in said
    assert "torch" not in said


@pytest.mark.parametrize(
    ("steps", "elsewhere", "here"),
    [
        ([-0.05] + [0.0] * 9, "same within noise", "regressed"),  # one cell alone
        ([-0.002] * 12, "same within noise", "same"),  # all one way, by next to nothing
        ([-0.05, 0.05] * 6, "same within noise", "regressed"),  # far, and either way
        ([-0.05] * 12, "regressed", "regressed"),
        ([-0.05] * 6, "same within noise", "regressed"),  # 2 / 2^6, twice by Holm, is above 0.05
        ([0.05] * 12, "same", "same"),  # better: as ever, that is no regression
        ([0.0] * 12, "same", "same"),
    ],
)
def test_another_machine_is_judged_over_all_cells_and_the_same_one_by_each(steps, elsewhere, here):
    assert outcome(*moved_by(*steps)) == elsewhere
    assert outcome(*moved_by(*steps, there=HERE)) == here
    assert outcome(*moved_by(*steps, here={}, there={})) == here  # as records said nothing of it


def test_a_verdict_lost_on_another_machine_is_a_regression():
    def claimed(score, environment):
        print_ = Spec("print")
        parts = {"environment": environment, "marks": False}
        copy = answer(made.cell(print_), score=score, suspect_digest="copy", **parts)
        strangers = [
            answer(made.cell(print_, "owner", made.stranger(i)), score=0.3 + i / 100, **parts)
            for i in range(19)
        ]
        named = [dataclasses.replace(r, suspect_digest=r.key) for r in strangers]
        return results(copy, *named)

    base = claimed(0.9, HERE)
    assert outcome(base, claimed(0.6, THERE)) == "same within noise"
    found = compare.compare(base, claimed(0.4, THERE), Tolerance())
    assert found.outcome == "regressed"
    assert [m.lost for m in found.movements if m.what == "score"] == [1]
    assert outcome(claimed(0.4, HERE), claimed(0.9, THERE)) == "same"


def test_other_data_and_other_code_are_named():
    base = results(answer(MARKED, data={"scenes": "one", "digits": "d"}, code={"mark": "x"}))
    head = answer(MARKED, score=0.48, data={"scenes": "two", "digits": "d"}, code={"mark": "y"})
    found = compare.compare(base, results(head), Tolerance())
    assert found.outcome == "same within noise"
    assert found.apart == ("data: scenes one in BASE, two in HEAD",)
    notes = compare.table(found, results(head), Tolerance()).notes
    assert any(note == "made by other code: mark." for note in notes)
    older = results(answer(MARKED, 90, key="before"))  # other data by its key alone
    found = compare.compare(older, results(answer(MARKED, 80, key="after")), Tolerance())
    assert found.outcome == "same within noise"
    assert found.apart == ("data or weights: 1 equal cells have other keys",)
    older = results(answer(MARKED))  # which says nothing of either
    assert compare.compare(older, results(head), Tolerance()).apart == ()


def test_where_a_copy_was_protected_and_attacked_counts_as_well():
    base = results(answer(MARKED, environment=HERE))
    head = answer(MARKED, environment=HERE, elsewhere={"attack": THERE})
    found = compare.compare(base, results(head), Tolerance())
    assert found.apart == ("machine: cpu Xeon in BASE, EPYC in HEAD",)


def test_signs_are_tested_exactly_and_many_tests_adjusted_as_others_do():
    from scipy.stats import binomtest
    from statsmodels.stats.multitest import multipletests

    for better, worse in ((0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (170, 158)):
        expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert compare.sign_test(better, worse) == pytest.approx(expected)
    p_values = [0.04, 0.001, 0.03, 0.9, 0.03]
    expected = multipletests(p_values, method="holm")[1]
    assert compare._holm(p_values) == pytest.approx(list(expected))


def write(folder, made):
    ledger.write_outline(folder / "suite.json", made.outline)
    for record in made.records.values():
        ledger.append(folder / "records" / "run.jsonl", record)
    return str(folder)


@pytest.mark.parametrize(
    ("after", "options", "status"),
    [
        (results(answer(MARKED, 90)), [], 0),
        (results(answer(MARKED, 85)), [], 3),
        (results(answer(MARKED, 85)), ["--rate", "0.05"], 0),
        (results(lost(answer(MARKED))), [], 4),
        (results(answer(TWIN)), [], 4),
        (results(), [], 4),
    ],
)
def test_the_exit_status_says_how_it_went(tmp_path, capsys, after, options, status):
    base = write(tmp_path / "base", results(answer(MARKED, 90)))
    head = write(tmp_path / "head", after)
    assert main(["compare", base, head, *options]) == status
    assert "HEAD against BASE" in capsys.readouterr().out


def test_a_folder_without_results_is_the_users_mistake(tmp_path, capsys):
    base = write(tmp_path / "base", results(answer(MARKED)))
    assert main(["compare", base, str(tmp_path / "nowhere")]) == 2
    assert "suite.json" in capsys.readouterr().err
    with pytest.raises(UserError):
        read_results(tmp_path / "nowhere")
