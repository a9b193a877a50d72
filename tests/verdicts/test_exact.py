"""Exact nulls in verdicts, records and tables: no innocents are needed, and they check the null."""

import dataclasses

import numpy as np
import pytest
from made import bit_errors, outline, suspect

from bench.records import ledger
from bench.records.nouns import Evidence, ExactNull, Rule, Spec
from bench.reports import notes
from bench.reports.tables import calibration, tables
from bench.verdicts import level
from bench.verdicts.checks import fairness
from bench.verdicts.checks.uniform import innocent_evidence, uniform_table, uniformity
from bench.verdicts.innocents import innocents, outcomes, verdict_on

METHOD = Spec("coins")
RULE = Rule("agreement", ">=", 1)


def coins(signs, levels=1):
    agreement = tuple(0.5 + float(s) / (2 * levels) for s in signs)
    return Evidence(agreement, agreement, RULE, "bit", 0.5, null=ExactNull(levels))


def tossed(rng, count=64):
    return coins(rng.choice([-1, 1], count))


def marked(read, number=0, lineage="released", seed=0):
    made = suspect(number, read, lineage, seed, METHOD)
    return dataclasses.replace(made, marks=True)


def innocent_records(rng, secrets=4, each=6):
    return [
        marked(tossed(rng), number, lineage, seed)
        for seed in range(secrets)
        for number in range(each)
        for lineage in ("stranger", "owner")
    ]


def test_a_verdict_of_an_exact_null_asks_no_innocent():
    record = marked(coins([1] * 60 + [-1] * 4))
    verdict = verdict_on(record, innocents([record]), 0.05)
    assert (verdict.outcome, verdict.ranks, verdict.needed) == ("owned", (), 0)
    assert set(outcomes([record], innocents([record]), 0.05).values()) == {"owned"}
    assert notes.largest_p([verdict, verdict]) == notes.largest_p([verdict]) == "3.7e-14"
    assert notes.ranked_among([verdict]) == "none needed; least p 5.4e-20"


def test_the_clean_owner_is_not_owned_whatever_else_was_read():
    rng = np.random.default_rng(0)
    record = marked(tossed(rng), lineage="owner")
    assert verdict_on(record, innocents([record]), 0.01).outcome == "not owned"


def test_a_record_keeps_its_null_and_one_without_is_written_as_before(tmp_path):
    exact, plain = marked(coins([1, -1, 1])), marked(bit_errors(1, 2), 1)
    for record in (exact, plain):
        ledger.append(tmp_path / "r.jsonl", record)
    assert [*ledger.read(tmp_path)] == [exact, plain]
    first, second = (tmp_path / "r.jsonl").read_text().splitlines()
    assert '"null":{"levels":1}' in first
    assert '"null":' not in second.partition('"evidence"')[2].partition("}")[0]


def test_innocents_of_a_sound_null_look_uniform_however_alike_they_are():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(40):
        first = tossed(rng)  # read six times over: dependent as can be
        found.append(uniformity([[first] * 6, [tossed(rng) for _ in range(6)]]).p)
    assert min(found) > 1 / 1000
    assert np.mean(np.array(found) <= 0.2) < 0.45


def test_innocents_of_a_broken_null_do_not():
    rng = np.random.default_rng(2)
    broken = [coins(rng.choice([-1, 1], 64, p=[0.3, 0.7])) for _ in range(8)]
    check = uniformity([[one] for one in broken])
    assert check.p == 0.001
    assert check.small >= 5
    assert check.interval[0] > 0.1


def test_the_table_shows_every_kind_of_innocent_and_only_for_exact_nulls():
    records = innocent_records(np.random.default_rng(3))
    groups = [("mini", "coins", records)]
    table = uniform_table(outline(), groups)
    told = [(row[2], row[3], row[4]) for row in table.rows]
    assert told == [("strangers", "24", "4"), ("descendants", "24", "4")]
    assert all(float(row[6]) > 0.01 for row in table.rows)
    assert [t.name for t in calibration(outline(), groups)][:2] == [
        "Level and power",
        "Exact nulls",
    ]
    plain = [marked(bit_errors(3, 4), n, "stranger") for n in range(3)]
    assert uniform_table(outline(), [("mini", "plain", plain)]).rows == ()


def test_table_2_says_p_and_that_no_innocents_are_needed():
    copy = marked(coins([1] * 60 + [-1] * 4), 1)
    records = [copy, *innocent_records(np.random.default_rng(7), secrets=1, each=2)]
    found = tables(outline(records), {record.key: record for record in records})
    table = next(table for table in found if table.name == "Table 2")
    said = " ".join(" ".join(row) for row in table.rows)
    assert "3.7e-14" in said
    assert "none needed; least p 5.4e-20" in said
    assert "owned" in said


def test_no_reading_is_chosen_by_its_score():
    records = innocent_records(np.random.default_rng(4), secrets=1, each=3)
    found = innocent_evidence([*records, *records])
    assert [len(s) for s in found["strangers"]] == [3]


def test_level_and_power_count_each_innocent_by_its_own_p():
    rng = np.random.default_rng(5)
    records = [*innocent_records(rng, secrets=2), *(marked(coins([1] * 64), n) for n in range(5))]
    table = level.level_table(outline(), [("mini", "coins", records)])
    first = dict(zip(table.columns, table.rows[0], strict=True))
    assert first["called owned"].split(" (")[0].endswith("of 12")
    assert first["attacked copies owned"].startswith("5 of 5")
    assert any("by an exact null" in note for note in table.notes)
    assert level.decidable(outline(), [("mini", "coins", records[:1])])


def readings(redraw):
    rng = np.random.default_rng(6)
    seen = rng.normal(size=200)
    bits = rng.choice([-1, 1], (25, 200))
    first, *others = (redraw(seen, b) for b in bits)
    return first, others


def sound(seen, bits):
    return coins(np.sign(seen) * bits)


def fitted(seen, bits):
    """Read as if a map had been fitted to the bits: what agrees is read the more plainly."""
    shift = seen + 0.3 * bits
    return coins(np.rint(np.clip(shift * bits, -2, 2) * 5), 10)


def picked(seen, bits):
    """Leave out the queries that disagree most."""
    return coins(np.where(np.argsort(seen * bits).argsort() < 20, 0, np.sign(seen) * bits))


def stuck(seen, bits):
    return coins(np.sign(seen))


def lucky(seen, bits):
    return coins(np.where(np.arange(200) < 150, np.sign(seen) * bits, 1))


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (sound, ""),
        (fitted, "distances from 1/2 depend on the bits"),
        (picked, "distances from 1/2 depend on the bits"),
        (stuck, "bits as they were, not half of them"),
        (lucky, "bits as they were, not half of them"),
    ],
)
def test_evidence_that_looks_at_its_bits_is_found_out(read, said):
    found = fairness.complaint(*readings(read))
    assert said in found
    assert bool(found) == bool(said)


def test_evidence_without_a_null_or_too_good_is_found_out():
    assert "another null" in fairness.complaint(coins([1]), [bit_errors(1)])
    assert "another number of queries" in fairness.complaint(coins([1]), [coins([1, 1])])
    assert fairness.too_good(coins([1] * 30)) == "p = 1e-9 off an innocent model"
    assert fairness.too_good(coins([1] * 15)) == ""
