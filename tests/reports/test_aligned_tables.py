"""Raw and aligned readings of one method, beside each other."""

import dataclasses

import pytest
from made import MARK, PRINT, cell, outline, record, stranger

from bench.records.nouns import Cost, Spec
from bench.reports import printed, tables
from bench.reports.blocks import by_method, grouped
from bench.verdicts import pairs

ALIGNED = Spec(MARK.name, {**MARK.args, "align": "static"})
PERMUTED = (Spec("reparam.permute", {"share": 1.0}),)


def read(method, attack, errors, lineage=None, residual=0.0):
    base = "released" if lineage is None else "owner"
    chain = stranger(3, *attack) if lineage == "stranger" else attack
    found = record(cell(method, base, chain), errors)
    if method.align == "none":
        return found
    aligned = {"stage": "static", "before": 1.4, "residual": residual}
    costs = {"extract": Cost(2.0, 1.0, 10), "align": Cost(3.0), "protect": Cost(5.0)}
    return dataclasses.replace(found, notes={**found.notes, "align": aligned}, costs=costs)


@pytest.fixture
def answered():
    found = [
        read(MARK, PERMUTED, 16.0),
        read(ALIGNED, PERMUTED, 0.0),
        read(MARK, PERMUTED, 16.0, "owner"),
        read(ALIGNED, PERMUTED, 16.0, "owner", 0.02),
        record(cell(PRINT, attack=PERMUTED)),
    ]
    cells = sorted(found, key=lambda r: (r.cell.method.name, r.cell.method.align))
    return outline(cells), {r.key: r for r in cells}


def table(found, name):
    return next(t for t in found if t.name == name)


def test_the_two_readings_of_a_method_stand_next_to_each_other_by_name(answered):
    blocks, _ = grouped(*answered)
    assert [block.method for block in blocks] == ["activemark", "activemark aligned", "adv_tra"]
    two = table(tables.tables(*answered), "Table 2")
    rates = {row[1]: row[4] for row in two.rows if row[3].startswith("reparam")}
    assert rates["activemark"].startswith("0.000")
    assert rates["activemark aligned"].startswith("1.000")
    beside = table(tables.tables(*answered), "Table 2 side by side")
    assert beside.columns[3:] == ("activemark", "activemark aligned", "adv_tra")


def test_tables_say_what_aligned_means_and_how_much_of_a_distance_it_left(answered):
    notes = "\n".join(table(tables.tables(*answered), "Table 2").notes)
    assert "every suspect, guilty or not, is written in the basis of the released model" in notes
    assert "marked 0.000 to 0.000, twin 0.020 to 0.020" in notes


def test_without_aligned_readings_no_table_speaks_of_them(answered):
    _, records = answered
    raw = [r for r in records.values() if r.cell.method.align == "none"]
    found = tables.tables(outline(raw), {r.key: r for r in raw})
    assert not any("aligned" in note for made in found for note in made.notes)


def test_what_aligning_costs_is_part_of_reading(answered):
    three = table(tables.tables(*answered), "Table 3")
    row = next(row for row in three.rows if "activemark aligned" in row)
    assert row[three.columns.index("extract s")] == "5.00"


def test_raw_readings_are_compared_with_raw_ones(answered):
    outlined, _ = answered
    compared = pairs.pairs_table(outlined, by_method(*answered))
    assert [row[1:3] for row in compared.rows] == [
        ("activemark", "activemark aligned"),
        ("activemark", "adv_tra"),
    ]


def test_the_papers_figures_stand_beside_raw_readings_alone(answered):
    shown = [row for made in printed.tables(*answered) for row in made.rows]
    assert not any("aligned" in text for row in shown for text in row)
