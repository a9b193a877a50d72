"""Every cell as one row of typed columns."""

import csv
import json
import sys

import pytest
from commands import bench
from made import MARK, PRINT, UNTOUCHED, cell, lost, matches, outline, record, stranger

from bench.records import ledger
from bench.records.nouns import Cost, Fidelity, Spec, StepFacts
from bench.reports import tidy

PRUNE = (Spec("prune.l1", {"amount": 0.4}),)


def study():
    costs = {"protect": Cost(60.0, 50.0, 10, 5, 400, "CPU"), "extract": Cost(0.1 + 0.2)}
    price = Fidelity((0.9, 0.7), 0.8, 0.75, 100, "digits")
    read = record(cell(attack=PRUNE), costs=costs, fidelity=price)
    others = [record(cell(MARK, "owner", stranger(i)), 16.0) for i in range(2)]
    failed = lost(record(cell(attack=PRUNE, seed=1)), "failed", 'it said "no", twice')
    return [read, *others, failed, record(cell(attack=UNTOUCHED))]


@pytest.fixture
def found():
    records = study()
    steps = ((PRUNE[0], StepFacts("compression")),)
    asked = outline([*records, cell(attack=PRUNE, seed=7)], steps=steps)
    return asked, {one.key: one for one in records}


@pytest.fixture
def home(found, tmp_path):
    asked, records = found
    ledger.write_outline(tmp_path / "demo/suite.json", asked)
    for one in records.values():
        ledger.append(tmp_path / "demo/records/one.jsonl", one)
    return tmp_path / "demo"


def test_there_is_one_row_a_cell_and_every_column_has_its_type(found):
    rows = tidy.rows(*found)
    assert sorted(row["key"] for row in rows) == sorted(key for key, _ in found[0].cells)
    for row in rows:
        assert [*row] == [*tidy.COLUMNS]
        for name, kind in tidy.COLUMNS.items():
            assert row[name] is None or type(row[name]) is kind, name


def test_a_row_says_what_its_record_says(found):
    row, *_ = tidy.rows(*found)
    told = {
        "attack": "prune.l1",
        "suspect": "marked",
        "change": "compression",
        "exact": False,
        "rate": 1.0,
        "threshold": 5.0,
        "queries": 20,
        "verdict": "undecided",
        "utility": 0.9,
        "protect_ideal_seconds": 50.0,
        "extract_ideal_seconds": None,
        "device": "CPU",
    }
    assert {name: row[name] for name in told} == told
    assert row["cosine"] == pytest.approx(0.8)
    assert json.loads(row["attack_settings"])[0]["args"] == {"amount": 0.4}


def test_what_is_not_known_is_missing_and_why_is_said(found):
    rows = {row["method_seed"]: row for row in tidy.rows(*found)}
    assert (rows[1]["status"], rows[1]["reason"]) == ("failed", 'it said "no", twice')
    assert (rows[7]["status"], rows[7]["rate"], rows[7]["marks"]) == ("hole", None, None)


def test_a_frame_has_numbers_where_columns_are_numbers(found):
    frame = tidy.frame(tidy.rows(*found))
    assert len(frame) == 6
    for name, kind in tidy.COLUMNS.items():
        assert str(frame[name].dtype) == {**tidy.DTYPES}[kind], name
    assert frame["rate"].isna().sum() == 2


def test_csv_and_json_hold_every_digit(found, home, tmp_path):
    rows = tidy.rows(*found)
    for suffix in ("csv", "json"):
        said = bench("report", home, "--cells", tmp_path / f"cells.{suffix}")
        assert (said.status, said.out) == (0, f"{tmp_path}/cells.{suffix}: 6 cells\n")
    assert json.loads((tmp_path / "cells.json").read_text()) == rows
    with (tmp_path / "cells.csv").open(newline="") as file:
        read = [*csv.DictReader(file)]
    for row, texts in zip(rows, read, strict=True):
        for name, kind in tidy.COLUMNS.items():
            written = {bool: "true".__eq__}.get(kind, kind)
            assert (written(texts[name]) if texts[name] else None) == row[name], name


def test_parquet_is_written_where_it_can_be(home, tmp_path):
    pytest.importorskip("pyarrow")
    import pandas

    assert bench("report", home, "--cells", tmp_path / "cells.parquet").status == 0
    assert len(pandas.read_parquet(tmp_path / "cells.parquet")) == 6


def test_without_what_writes_parquet_the_way_out_is_said(home, tmp_path, monkeypatch):
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    said = bench("report", home, "--cells", tmp_path / "cells.parquet")
    assert said.status == 2
    assert "Parquet is written by pyarrow, which is not installed" in said.err
    assert not [*tmp_path.glob("cells*")]


def test_a_file_of_another_suffix_is_refused(home, tmp_path):
    said = bench("report", home, "--cells", tmp_path / "cells.xlsx")
    assert said.status == 2
    assert "expected a file named .csv or .json or .parquet" in said.err


FORGE, THIEF = Spec("forge"), Spec("overmark", {"times": 2})


def forged(asked, agreement):
    name = " ".join(step.text for step in asked.attack)
    return record(asked, evidence=matches(*[agreement] * 10), suspect_digest=name)


def test_what_accusers_forge_is_last_with_kinds_of_its_own_and_the_accused_is_judged():
    accused = [
        forged(cell(PRINT, "owner", stranger(i), accuser=FORGE, accused=1), float(i == 1))
        for i in range(20)
    ]
    disputed = [
        forged(cell(PRINT, "released", UNTOUCHED, accuser=THIEF), 1.0),
        record(cell(PRINT, "accuser", UNTOUCHED, lineage="released", accuser=THIEF)),
        record(cell(PRINT, "accuser", UNTOUCHED, lineage="released", accuser=THIEF, other_seed=0)),
    ]
    hole = cell(PRINT, "owner", stranger(20), accuser=FORGE, accused=2)
    asked = outline([*accused, *disputed, *study(), hole])
    rows = tidy.rows(asked, {one.key: one for one in [*accused, *disputed, *study()]})
    assert sorted(row["key"] for row in rows) == sorted(key for key, _ in asked.cells)
    for row in rows:
        assert [*row] == [*tidy.COLUMNS]
        for name, kind in tidy.COLUMNS.items():
            assert row[name] is None or type(row[name]) is kind, name
    kinds = [row["kind"] for row in rows]
    assert kinds == ["honest"] * 5 + ["forged"] * 23 + ["dispute"]
    by_key = {row["key"]: row for row in rows}
    told = [by_key[one.key] for one in accused]
    assert {(row["accuser"], row["accused"], row["suspect"]) for row in told} == {
        ("forge", 1, "stranger")
    }
    assert [row["verdict"] for row in told] == [None, "owned", *[None] * 18]
    assert [by_key[one.key]["suspect"] for one in disputed] == [
        *("marked", "shown as his", "shown as his"),
    ]
    assert by_key[disputed[0].key]["verdict"] is not None
    assert by_key[disputed[1].key]["accuser_settings"] == THIEF.text
    assert [row["status"] for row in rows if row["accused"] == 2] == ["hole"]
