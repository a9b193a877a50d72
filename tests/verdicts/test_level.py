import dataclasses
import random

import pytest
from made import matches, outline, suspect

from bench.records.nouns import Spec, digest
from bench.verdicts import level
from bench.verdicts.intervals import upper_bound

OUTLINE = outline(name="calibration")
PRINT = Spec("ipguard")


def record(score, number, lineage="stranger", seed=0):
    """Return a fingerprint's reading of one model, as a score over 100 queries."""
    hits = round(100 * score)
    return suspect(number, matches(*[1.0] * hits, *[0.0] * (100 - hits)), lineage, seed, PRINT)


def table_of(records):
    return level.level_table(OUTLINE, [("mini", "ipguard", records)])


def line(records):
    table = table_of(records)
    return dict(zip(table.columns, table.rows[0], strict=True))


def marked(records):
    return [dataclasses.replace(r, marks=True) for r in records]


def descendant(score, number, base="owner", seed=0):
    attack = (Spec("control.identity", {"number": number}),)
    cell = dataclasses.replace(record(score, number, "owner", seed).cell, base=base, attack=attack)
    made = dataclasses.replace(record(score, number, "owner", seed), cell=cell, marks=True)
    return dataclasses.replace(made, suspect_digest=digest(base, number, seed))


def strangers(count):
    return [record(0.10 + i / 1000, i) for i in range(count)]


def test_a_method_that_parts_all_models_has_full_power_at_its_level():
    found = line([*strangers(99), *(record(0.9, i, "released") for i in range(10))])
    assert found["strangers"] == "99"
    assert found["descendants"] == "—"  # a fingerprint's are guilty
    assert found["strangers called owned"] == "by construction"
    assert found["descendants called owned"] == found["other keys called owned"] == "—"
    assert found["copies owned"] == "10 of 10 [0.69, 1.00]"  # 0.05 / 2 = 0.69 ** 10
    assert found["AUC"].startswith("1.000 [")
    tpr, _, rest = found["TPR at FPR 0.05"].partition(" (FPR ")
    hits, _, bound = rest.rstrip(")").partition("/49 <= ")
    bounded = f"{upper_bound(int(hits), 49):.3f}"
    assert (tpr, bound) == ("1.000 = 10/10 [0.69, 1.00]", bounded)
    assert found["Holm"] == "0 of 10, 199 needed"  # 0.05 / 10 = 1 / 200


def innocents_of_a_mark(seed, high):
    """Return 20 strangers, the highest with the score told, and 30 descendants."""
    lone = [record(0.1, i, seed=seed) for i in range(19)] + [record(high, 19, seed=seed)]
    return [*marked(lone), *(descendant(0.1, i, seed=seed) for i in range(30))]


def test_innocents_of_a_mark_are_counted_kind_by_kind_with_the_bound_of_the_worst_secret():
    read = [*innocents_of_a_mark(0, 0.8), *innocents_of_a_mark(1, 0.1)]
    found = line(read)
    upper = upper_bound(1, 20)  # pooled with descendants and secrets: 1 of 100
    assert found["strangers called owned"] == f"1 of 40 (<= {upper:.3f})"
    assert found["descendants called owned"] == f"0 of 60 (<= {1 - 0.05 ** (1 / 30):.3f})"
    assert found["other keys called owned"] == "—"


def test_copies_marked_with_another_key_stand_apart_and_are_called_owned_where_they_are():
    keys = [descendant(0.9, 0, "other key", seed) for seed in (0, 1)]
    read = [*innocents_of_a_mark(0, 0.8), *innocents_of_a_mark(1, 0.1)]
    found = line([*read, *keys])
    assert found["other keys called owned"] == "2 of 2 (<= 1.000)"
    assert found["descendants"] == "30"
    assert found["strangers called owned"].startswith("0 of 40")  # below another key's copy
    copies = marked([record(0.85, 0, "released")])
    assert line([*read, *copies])["copies owned"].startswith("1 of 1")
    assert line([*read, *copies, *keys])["copies owned"].startswith("0 of 1")


@pytest.mark.parametrize(("keys", "said"), [(1, True), (3, True), (4, False)])
def test_an_interval_over_few_keys_is_said_to_be_too_narrow(keys, said):
    read = [
        record(score, i, lineage, seed)
        for seed in range(keys)
        for i, (score, lineage) in enumerate([(0.1, "stranger"), (0.9, "released")])
    ]
    text = "\n".join(table_of(read).notes)
    assert "exact (Clopper-Pearson) where scores do not overlap" in text
    assert ("too narrow over fewer than 4 keys" in text) == said


def test_enough_innocents_survive_holm():
    copies = [record(0.9, i, "released") for i in range(4)]
    assert line([*strangers(99), *copies])["Holm"] == "4 of 4"


def test_copies_that_score_like_strangers_are_not_owned():
    found = line([*strangers(40), *(record(0.1, i, "released") for i in range(5))])
    assert found["copies owned"] == "0 of 5 [0.00, 0.52]"
    assert float(found["AUC"].split()[0]) < 0.5


@pytest.mark.parametrize("count", [0, 5])
def test_with_too_few_innocents_nothing_is_claimed(count):
    found = line([*strangers(count), record(0.9, 0, "released")])
    assert found["strangers called owned"] == "—"
    assert found["copies owned"] == "undecided 1"
    assert found["Holm"].endswith("needed")


@pytest.mark.parametrize(("count", "expected"), [(18, False), (19, True)])
def test_a_verdict_can_be_had_with_as_many_innocents_as_it_needs(count, expected):
    assert level.decidable(OUTLINE, [("mini", "ipguard", strangers(count))]) == expected


def test_a_mark_needs_descendants_too():
    assert not level.decidable(OUTLINE, [("mini", "activemark", marked(strangers(40)))])


def test_neither_order_nor_repetition_changes_a_line():
    records = [*strangers(30), *(record(0.2 + i / 20, i, "released") for i in range(8))]
    expected = line(records)
    random.Random(0).shuffle(records)
    assert line(records) == expected
