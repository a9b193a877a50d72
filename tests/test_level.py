import dataclasses
import random

import pytest

from bench import inference, level
from bench.ledger import Outline
from bench.types import Cell, Evidence, Record, Rule, Spec, digest

OWNER, PRINT = Spec("mini", {}), Spec("ipguard", {})
OUTLINE = Outline("calibration", "", 0.05, ())
MATCH = Rule("match", ">=", 1)


def record(score, number, lineage="stranger", seed=0):
    """Return a fingerprint's reading of one model, as a score over 100 queries."""
    step = Spec("control.stranger", {"index": number})
    attack = (step,) if lineage == "stranger" else (Spec("prune.l1", {"amount": number / 1000}),)
    base = "owner" if lineage == "stranger" else "released"
    cell = Cell(OWNER, PRINT, seed, base, attack, 0, lineage)
    hits = round(100 * score)
    agreement = (1.0,) * hits + (0.0,) * (100 - hits)
    name = digest(dataclasses.asdict(cell))
    evidence = Evidence(agreement, agreement, MATCH, "point", None)
    found = digest(lineage, number)
    return Record(name, "calibration", cell, "ok", marks=False, suspect_digest=found,
                  owner_digest="clean", evidence=evidence)  # fmt: skip


def line(records):
    table = level.level_table(OUTLINE, [("mini", "ipguard", records)])
    return dict(zip(table.columns, table.rows[0], strict=True))


def strangers(count):
    return [record(0.10 + i / 1000, i) for i in range(count)]


def test_a_method_that_parts_all_models_has_full_power_at_its_level():
    found = line([*strangers(99), *(record(0.9, i, "released") for i in range(10))])
    assert found["strangers"] == "99"
    assert found["descendants"] == "—"  # a fingerprint's are guilty
    # Of 99 distinct scores, ranks 1 to 4 of 99 are at most 0.05: ties at 100 queries make it fewer.
    called, _, rest = found["innocents called owned"].partition(" of ")
    assert int(called) <= 4
    assert rest.startswith("99 (<= 0.0")
    assert found["copies owned"] == "10 of 10 [0.69, 1.00]"  # 0.05 / 2 = 0.69 ** 10
    assert found["AUC"].startswith("1.000 [")
    tpr, _, rest = found["TPR at FPR 0.05"].partition(" (FPR ")
    hits, _, bound = rest.rstrip(")").partition("/49 <= ")
    assert (tpr, bound) == ("1.000", f"{inference.upper_bound(int(hits), 49):.3f}")
    assert found["Holm"] == "0 of 10, 199 needed"  # 0.05 / 10 = 1 / 200


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
    assert found["innocents called owned"] == "—"
    assert found["copies owned"] == "undecided 1"
    assert found["Holm"].endswith("needed")


@pytest.mark.parametrize(("count", "expected"), [(18, False), (19, True)])
def test_a_verdict_can_be_had_with_as_many_innocents_as_it_needs(count, expected):
    assert level.decidable(OUTLINE, [("mini", "ipguard", strangers(count))]) == expected


def test_a_mark_needs_descendants_too():
    marks = [dataclasses.replace(r, marks=True) for r in strangers(40)]
    assert not level.decidable(OUTLINE, [("mini", "activemark", marks)])


def test_neither_order_nor_repetition_changes_a_line():
    records = [*strangers(30), *(record(0.2 + i / 20, i, "released") for i in range(8))]
    expected = line(records)
    random.Random(0).shuffle(records)
    assert line(records) == expected
