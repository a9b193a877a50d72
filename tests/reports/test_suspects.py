"""How hard suspects are to tell stands beside what became of them."""

from made import MARK, UNTOUCHED, cell, lost, outline, record, stranger

from bench.records.nouns import Spec, Utility
from bench.records.table import NOTHING
from bench.reports.price import suspects

PRUNE, STEAL = (Spec("prune", {"amount": 0.5}),), (Spec("steal"),)


def measured(asked, errors, cka, agreement=0.5, value=0.9, **parts):
    alike = {"cka": cka, "label_agreement": agreement, "images": 40}
    task = Utility("accuracy", value, "digits", 100)
    return record(asked, errors, **{"notes": {"hardness": alike}, "utility": task} | parts)


RECORDS = [
    measured(cell(), 0.0, 1.0, 1.0),
    measured(cell(attack=PRUNE), 2.0, 0.9, 0.8, 0.85),
    measured(cell(attack=STEAL), 8.0, 0.4, None),
    measured(cell(base="owner", attack=PRUNE), 6.0, 0.95),
    measured(cell(attack=stranger(0)), 16.0, 0.5),
    measured(cell(attack=stranger(1)), 10.0, 0.1),
]


def tables(*records):
    return suspects.tables(outline(records), {r.key: r for r in records})


def rows(table, *names):
    return {tuple(row[table.columns.index(n)] for n in names): row for row in table.rows}


def test_what_was_measured_stands_beside_the_verdict():
    table, _ = tables(*RECORDS)
    found = rows(table, "attack", "suspect")
    marked = dict(zip(table.columns, found["prune", "marked"], strict=True))
    assert (marked["label agreement"], marked["CKA"]) == ("0.800", "0.900")
    assert marked["utility gap"] == "+5.0"
    assert marked["verdict"].startswith("undecided 1/1")
    stolen = dict(zip(table.columns, found["steal", "marked"], strict=True))
    assert stolen["label agreement"] == NOTHING
    assert dict(zip(table.columns, found["prune", "twin"], strict=True))["verdict"] == NOTHING


def test_the_hard_cases_are_a_slice_of_their_own():
    """Far: below the highest of any stranger, 0.5. Near: above 0.75, the twin alone."""
    _, table = tables(*RECORDS)
    found = {row[2]: row[3:] for row in table.rows}
    assert found["all"] == ("2", "3", "0.833")  # the far copy is below the twin
    assert found["far but stolen"] == ("1", "3", "0.667")
    assert found["near but innocent"] == ("2", "1", "0.500")
    assert found["both"] == ("1", "1", "0.000")


def test_a_copy_that_cannot_be_read_outscores_nobody():
    gone = lost(RECORDS[2], "incompatible")
    _, table = tables(*(gone if r is RECORDS[2] else r for r in RECORDS))
    found = {row[2]: row[3:] for row in table.rows}
    assert found["far but stolen"] == ("1", "3", "0.000")


def test_without_measurements_there_is_no_table():
    assert tables(record(cell()), record(cell(attack=PRUNE))) == ()
    assert MARK.name in {row[1] for row in tables(*RECORDS)[0].rows}
    assert UNTOUCHED[0].name in {row[2] for row in tables(*RECORDS)[0].rows}
