import dataclasses

import pytest
from made import MARK, PRINT, cell, outline, record

from bench.records.nouns import Fidelity, Spec, packed
from bench.runs.tuning.equal import equal_price
from bench.verdicts.pairs import apart, class_text, price_of

PRUNED = (Spec("prune.l1", {"amount": 0.4}),)


def paid(lost):
    """A mark after which the owner's classifier gets so many of 100 images less."""
    right = [[1] * 90 + [0] * 10, [1] * (90 - lost) + [0] * (10 + lost)]
    own = dict(zip(("owner_right", "released_right"), map(packed, right), strict=True))
    return Fidelity((0.9, 1.0), 0.7, 0.7, 8, "digits", own_images=100, **own)


def marked(weight, lost, attacked, **words):
    """A mark at some weight: untouched it is read in full, attacked with so many errors."""
    method = Spec(MARK.name, {"bits": 32, "weight": weight, **words})
    return [
        record(cell(method), 0.0, fidelity=paid(lost)),
        record(cell(method, base="owner"), 16.0),
        record(cell(method, attack=PRUNED), attacked),
    ]


def table(*records):
    made = equal_price(outline(records), {r.key: r for r in records})
    rows = [dict(zip(made.columns, row, strict=True)) for row in made.rows]
    return made, [(row["price class"], row["method"], row["worst attacked rate"]) for row in rows]


def test_of_each_mark_the_setting_nearest_to_a_class_stands_there_whatever_it_reads():
    prints = [record(cell(PRINT), 0.0), record(cell(PRINT, attack=PRUNED), 0.2)]
    _, rows = table(
        *marked(1.0, 0, 16.0),
        *marked(2.0, 2, 9.0),
        *marked(3.0, 3, 0.0),
        *marked(4.0, 40, 0.0),
        *marked(5.0, 20, 16.0),
        *prints,
    )
    assert rows == [
        ("about 0 points", "activemark weight=1.0", "0.000"),
        ("about 0 points", "adv_tra", "1.000"),
        ("about 2 points", "activemark weight=2.0", "0.000"),
        ("more than 6 points", "activemark weight=5.0", "0.000"),
    ]


def test_words_choose_a_variant_and_variants_stand_side_by_side():
    _, rows = table(*marked(1.0, 1, 0.0, variant="paper"), *marked(1.0, 1, 16.0, variant="code"))
    assert [row[0] for row in rows] == ["about 1 point"] * 2
    assert [row[2] for row in rows] == ["1.000", "0.000"]


def test_a_copy_that_cannot_be_read_counts_as_none_and_a_mark_of_unknown_price_is_left_out():
    records = marked(1.0, 0, 0.0)
    lost = dataclasses.replace(records[2], status="incompatible", evidence=None)
    _, ((_, _, worst),) = table(*records[:2], lost)
    assert worst == "0.000"
    unpriced = [dataclasses.replace(r, fidelity=None) for r in records]
    assert table(*unpriced)[1] == []


def test_the_notes_say_what_compares():
    made, _ = table(*marked(1.0, 0, 0.0))
    assert "compares within a class, and says nothing across classes" in "\n".join(made.notes)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (0, "about 0 points"),
        (1, "about 1 point"),
        (3, "about 2 points"),
        (4, "about 5 points"),
        (6, "about 5 points"),
        (7, "more than 6 points"),
    ],
)
def test_a_price_belongs_to_the_nearest_class(lost, said):
    records = [record(cell(), fidelity=paid(lost))]
    assert class_text(price_of(records)) == said


def test_a_gain_is_no_price():
    gained = dataclasses.replace(paid(0), owner_right=paid(5).released_right)
    price = price_of([record(cell(), fidelity=gained)])
    assert (round(price.lost, 9), class_text(price)) == (-0.05, "about 0 points")


def test_without_a_task_of_its_own_the_owner_pays_by_probe():
    right = {"owner_probe_right": packed([1] * 8), "released_probe_right": packed([1, 0] * 4)}
    paid = Fidelity((0.9,), 1.0, 0.5, 8, "digits", **right)
    price = price_of([record(cell(), fidelity=paid)])
    assert (price.lost, price.task) == (0.5, "probe")
    older = price_of([record(cell(), fidelity=Fidelity((0.9,), 1.0, 0.5, 8, "digits"))])
    assert (older.lost, older.task) == (0.5, "probe")
    assert older.ends[0] < 0.5 < older.ends[1]


def test_prices_that_lie_apart_or_that_nobody_knows_order_nothing():
    one, near, far = (price_of([record(cell(), fidelity=paid(n))]) for n in (0, 1, 2))
    assert apart(one, near) == ""
    assert apart(one, far) == "prices 0.020 apart"
    assert apart(one, None) == "a price is not known"
    assert apart(price_of([record(cell(PRINT))]), one) == ""
