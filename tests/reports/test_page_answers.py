"""The first screen of a page: the map, the prices beneath it, a sentence per method, drawings."""

import dataclasses
import re

import pytest
from made import MARK, PRINT, UNTOUCHED, cell, lost, outline, record, stranger

from bench.records.nouns import Cost, Spec, StepFacts
from bench.reports import page
from bench.reports.blocks import grouped
from bench.reports.page import answers, budgets, charts
from bench.reports.price import grid

PRUNE, DISTILL = (Spec("prune.l1", {"amount": 0.4}),), (Spec("distill.features"),)
FORGE = (Spec("forge.triggers"),)
FACTS = (
    (PRUNE[0], StepFacts("compression")),
    (DISTILL[0], StepFacts("extraction", images=100)),
    (FORGE[0], StepFacts("forgery")),
)
PASSES = {"attack": Cost(1.0, forward_passes=100.0), "extract": Cost(0.5)}


def read(asked, errors=1.0, **changes):
    return record(asked, errors, costs=PASSES, **changes)


def strangers(method, attack=(), count=19):
    lone = (stranger(i, *attack) for i in range(count))
    return [read(cell(method, "owner", chain), 16.0) for chain in lone]


def study():
    """A mark that distillation erases, pruning does not, and a fingerprint nobody can distil."""
    others = [cell(base="other key", attack=UNTOUCHED, other_seed=s) for s in range(1, 20)]
    tried = [(attack, seed) for attack in (PRUNE, DISTILL) for seed in range(19)]
    twins = [cell(base="owner", attack=attack, attack_seed=seed) for attack, seed in tried]
    return [
        *(read(cell(attack=attack)) for attack in (UNTOUCHED, PRUNE)),
        read(cell(attack=DISTILL), 16.0),
        *(read(asked, 10.0) for asked in (*twins, *others)),
        *strangers(MARK),
        *(read(cell(PRINT, attack=attack)) for attack in (UNTOUCHED, PRUNE)),
        lost(read(cell(PRINT, attack=DISTILL)), "incompatible"),
        *strangers(PRINT),
    ]


def told(records, **changes):
    asked = outline(records, **{"steps": FACTS} | changes)
    found = {one.key: one for one in records}
    return asked, found, grouped(asked, found)[0]


def the_map(records, **changes):
    (made,) = answers.maps(*told(records, **changes))
    return made


def cells_of(made):
    return {
        (column.method, label): answer
        for kind in made.kinds
        for label, found in kind.rows
        for column, answer in zip(made.columns, found, strict=True)
    }


def test_rows_come_by_what_attacks_change_and_columns_by_what_methods_see():
    made = the_map(study())
    assert [kind.name for kind in made.kinds] == ["untouched", "compression", "extraction"]
    assert [column.method for column in made.columns] == ["activemark", "adv_tra"]
    assert made.groups == [("weights", 1), ("labels", 1)]


def test_a_cell_says_verdict_rate_and_twin_and_which_records_it_is_made_of():
    records = study()
    found = cells_of(the_map(records))
    pruned = found["activemark", "prune.l1"]
    assert (pruned.state, pruned.rate, pruned.twin) == ("owned", "1.00", "0.00")
    assert pruned.said.startswith("activemark after prune.l1: owned 1/1")
    assert found["activemark", "distill.features"].state == "not owned"
    marks = [one for one in records if one.cell.method == MARK]
    behind = [marks[n].cell for n in pruned.numbers]
    assert all(asked.attack == PRUNE for asked in behind)
    assert len(behind) == 20  # the copy and its twins


def test_what_cannot_be_read_is_undecided_or_missing_has_a_look_of_its_own():
    found = cells_of(the_map(study()))
    assert found["adv_tra", "distill.features"].state == "incompatible"
    assert found["adv_tra", "distill.features"].rate == ""
    assert found["adv_tra", "prune.l1"].state == "undecided"  # no stranger was attacked alike
    gone = [lost(read(cell(attack=PRUNE)), "failed"), read(cell())]
    assert cells_of(the_map(gone))["activemark", "prune.l1"].state == "failed"
    assert found["adv_tra", "control.identity"].twin == ""


def test_copies_of_different_ends_share_a_cell_by_their_numbers():
    records = [*study(), *(read(cell(attack=PRUNE, seed=s), 16.0) for s in (1, 2, 3))]
    pooled = [
        dataclasses.replace(one, notes={"protect": {"secret_digest": "k"}}) for one in records
    ]
    mixed = cells_of(the_map(pooled))["activemark", "prune.l1"]
    assert mixed.shares == [("owned", 25), ("not owned", 100)]
    assert mixed.fill == ("linear-gradient(90deg,var(--owned) 0% 25%,var(--not-owned) 25% 100%)")


def test_an_innocent_that_is_owned_by_forgery_has_the_colour_of_a_loss():
    forged = answers.Answer("mixed", [("owned", 50), ("not owned", 100)], "", "", "", "", (), True)
    assert forged.fill.startswith("linear-gradient(90deg,var(--not-owned) 0% 50%,var(--owned)")
    found = cells_of(the_map([*study(), read(cell(attack=FORGE))]))
    assert found["activemark", "forge.triggers"].forged
    assert not found["activemark", "prune.l1"].forged


def test_an_older_outline_says_that_kinds_are_not_told():
    made = the_map(study(), steps=())
    assert [kind.name for kind in made.kinds] == ["untouched", answers.UNTOLD]


def test_squares_of_prices_say_what_the_price_grid_says():
    asked, found, blocks = told(study())
    made = budgets.grids(asked, found, blocks)
    table = next(t for t in grid.tables(asked, found) if t.name == "Price grid")
    for one in made:
        shown = [row[3:] for row in table.rows if row[1] == one.method]
        ours = [[cell.rate for cell in cells] for _, _, cells in one.rows]
        assert ours == [[f"{float(text.split()[0]):.2f}" for text in row] for row in shown]
        states = [[cell.said.split(": ")[1].split(",")[0] for cell in c] for _, _, c in one.rows]
        assert all(
            state in text
            for row, texts in zip(states, shown, strict=True)
            for state, text in zip(row, texts, strict=True)
        )


def test_every_method_has_a_sentence_of_its_records():
    mark, fingerprint = (one.sentence for one in budgets.grids(*told(study())))
    assert "recognised in 1 of 2 attacked copies (1 key), lost to distill.features" in mark
    assert "an innocent reaches 0.000" in mark
    assert "lost to distill.features" in fingerprint
    assert mark.endswith(".")


def test_nobody_asked_says_so():
    (only,) = budgets.grids(*told([read(cell())]))
    assert only.sentence.startswith("no attacked copy was read; ")


def test_drawings_show_what_there_are_numbers_for():
    drawn = charts.charts(*told(study()))
    shown = ["Scores", "Power against false alarms", "R against tau", "Time against rate"]
    assert [*drawn] == shown
    (counted,) = drawn["R against tau"]  # the fingerprint counts no bits
    assert counted.svg.count("thin") == 2  # pruned and distilled
    (mark, _) = drawn["Scores"]
    # Two copies, whose scores differ; twins and other keys read alike; the untouched model.
    assert [mark.svg.count(f'class="{n}"') for n in ("copies", "descendants", "whole")] == [2, 1, 1]
    assert mark.svg.count('class="rule"') == 3  # 19 innocents of each kind set a threshold
    (times,) = drawn["Time against rate"]
    assert list(times.names) == ["activemark", "adv_tra"]


def test_a_swept_strength_is_drawn_with_the_band_of_its_twins():
    steps = [(Spec("prune.l1", {"amount": a}),) for a in (0.2, 0.4, 0.6)]
    copies = [read(cell(attack=a)) for a in (UNTOUCHED, *steps)]
    twins = [read(cell(base="owner", attack=a, seed=s), 4.0 + 4 * s) for a in steps for s in (0, 1)]
    (chart,) = charts.charts(*told([*copies, *twins]))["Strength"]
    assert chart.svg.count("band") == 1
    assert re.findall(r">(0\.\d)</text>", chart.svg) == ["0.2", "0.4", "0.6", "0.5"]


@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_the_threshold_is_the_score_that_a_share_alpha_of_innocents_would_pass(alpha):
    scores = [n / 100 for n in range(19)]
    threshold = charts._threshold(scores, alpha)
    above = sum(score > threshold for score in scores)
    assert (above + 1) / 20 <= alpha < (above + 2) / 20
    assert charts._threshold(scores[:18], 0.05) is None


def test_the_answer_comes_before_all_else_and_the_rest_is_folded():
    asked, found, _ = told(study())
    text = page.html(asked, found, ())
    places = [text.index(f'id="{name}"') for name in ("answers", "prices", "findings", "plots")]
    assert places == sorted(places)
    assert places[0] < text.index('id="methods"') < text.index('id="cells"')
    assert re.findall(r"<details[^>]*\bopen\b[^>]*>", text) == ['<details class="fold" open>']


def test_every_square_names_records_of_the_page():
    asked, found, _ = told(study())
    text = page.html(asked, found, ())
    cells = set(re.findall(r'data-cell="(\d+)"', text))
    opened = [numbers.split() for numbers in re.findall(r'data-cells="([^"]*)"', text)]
    assert opened
    assert all(set(numbers) <= cells for numbers in opened)
    places = set(re.findall(r'data-place="([^"]*)"', text))
    assert set(re.findall(r'data-leads="([^"]*)"', text)) <= places
