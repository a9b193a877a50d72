import dataclasses
import itertools
import json

import pytest

from bench.records.ledger import answers, append, latest, read, read_outline, write_outline
from bench.records.nouns import (
    SCHEMA,
    Cell,
    Cost,
    Evidence,
    Fidelity,
    Outline,
    Record,
    Rule,
    Spec,
    StepFacts,
    UserError,
    Utility,
    packed,
    unpacked,
)

CELL = Cell(
    owner=Spec("mini", {"library": "embedded"}),
    method=Spec("stamp", {"layers": [1, 2], "rate": 1e-4, "head": None}, 3),
    method_seed=0,
    base="released",
    attack=(Spec("prune.some", {"amount": 0.4}), Spec("tune")),
    attack_seed=7,
    lineage="released",
)
RECORD = Record(
    key="a" * 16,
    suite="demo",
    cell=CELL,
    status="ok",
    evidence=Evidence((1.0, 0.5), (0.0, 16.0), Rule("bit errors", "<=", 5.0), "image", 0.5),
    utility=Utility("accuracy", 0.9, "digits", 100),
    fidelity=Fidelity((0.99, 1.0), 0.9, 0.89, 100, "digits"),
    notes={"protect": {"block": 3, "curve": [1.0, 0.5]}},
    costs={"extract": Cost(1.5, 1.0, 20.0, device="cpu")},
    environment={"torch": "2.14"},
)


def line(record):
    return json.dumps(dataclasses.asdict(record)) + "\n"


def test_what_was_appended_is_read_back(tmp_path):
    failed = Record("b" * 16, "demo", CELL, "failed", reason='broke: "é\n"')
    for record in (RECORD, failed):
        append(tmp_path / "runs" / "one.jsonl", record)
    assert list(read(tmp_path)) == [RECORD, failed]
    assert (tmp_path / "runs" / "one.jsonl").read_bytes().count(b"\n") == 2


def test_no_record_with_nan_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        append(tmp_path / "one.jsonl", dataclasses.replace(RECORD, notes={"loss": float("nan")}))
    assert not (tmp_path / "one.jsonl").exists()


def test_a_run_killed_within_a_line_loses_its_last_record_only(tmp_path):
    path = tmp_path / "one.jsonl"
    text = line(RECORD).encode()
    for cut in (*range(0, len(text), 101), len(text) - 2, len(text) - 1):
        path.write_bytes(text + text[:cut])
        whole = 2 if cut == len(text) - 1 else 1  # only the newline is missing
        assert len(list(read(tmp_path))) == whole
        append(path, RECORD)
        assert list(read(tmp_path)) == [RECORD] * (whole + 1)


BROKEN = [
    ("{'key': 1}\n", "expected a record"),
    ("[1]\n", "expected a record"),
    (line(RECORD).replace("0.99", "NaN"), "NaN is no JSON"),
    (line(RECORD).replace('"released"', '"stolen"'), "cell.base: Input should be 'released'"),
    (line(RECORD).replace('[1.0, 0.5], "stat', '[1.0, 1.5], "stat'), "agreements in [0, 1]"),
    (line(dataclasses.replace(RECORD, schema=2)), "expected schema 1, got 2; upgrade the bench"),
    (line(dataclasses.replace(RECORD, schema=0)), "expected schema 1, got 0; run its suite again"),
    ("{}\n", "expected schema 1, got None"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=[m for _, m in BROKEN])
def test_a_line_that_is_no_record_is_named(tmp_path, text, message):
    (tmp_path / "one.jsonl").write_text(line(RECORD) + text + line(RECORD))
    with pytest.raises(UserError) as caught:
        list(read(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / 'one.jsonl'}:2: ")
    assert message in str(caught.value)


def test_the_latest_word_does_not_depend_on_order():
    def other(status, reason=""):
        return dataclasses.replace(RECORD, status=status, reason=reason)

    ranks = [other("ok", "a"), other("ok", "b"), other("incompatible"), other("failed")]
    for count in range(1, len(ranks) + 1):
        best = ranks[-count:][0]
        for order in itertools.permutations(ranks[-count:]):
            assert latest(order) == {RECORD.key: best}


def test_skipped_and_incompatible_are_equals():
    skipped, unreadable = (
        dataclasses.replace(RECORD, status=status) for status in ("skipped", "incompatible")
    )
    assert latest([skipped, unreadable]) == latest([unreadable, skipped])


def test_equal_numbers_of_another_type_do_not_let_order_in():
    one, other = (dataclasses.replace(RECORD, notes={"steps": steps}) for steps in (1, 1.0))
    texts = {line(latest(order)[RECORD.key]) for order in ([one, other], [other, one])}
    assert len(texts) == 1


def test_keys_come_in_their_own_order():
    records = [dataclasses.replace(RECORD, key=key) for key in "cab"]
    assert list(latest(records)) == ["a", "b", "c"]


def test_file_names_do_not_matter(tmp_path):
    retry = dataclasses.replace(RECORD, status="failed", reason="out of memory")
    for folder, records in (("x", (RECORD, retry)), ("y", (retry, RECORD))):
        for name, record in zip(("1.jsonl", "2.jsonl"), records, strict=True):
            append(tmp_path / folder / name, record)
    assert latest(read(tmp_path / "x")) == latest(read(tmp_path / "y")) == {RECORD.key: RECORD}


def test_an_outline_is_read_back_as_it_was_written(tmp_path):
    outline = Outline("demo", "A title", 0.05, (("b", CELL), ("a", CELL)), ("fewer steps",), ("w",))
    path = tmp_path / "runs" / "suite.json"
    write_outline(path, outline)
    before = path.read_bytes()
    assert read_outline(path) == outline
    write_outline(path, read_outline(path))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["suite.json"]
    assert list(read(tmp_path)) == []


def test_an_outline_says_every_spec_once_however_many_cells_it_makes(tmp_path):
    cells = [dataclasses.replace(CELL, attack_seed=seed) for seed in range(50)]
    other = dataclasses.replace(CELL, base="other model", other_model=Spec("vit", {"seed": 1}))
    outline = Outline("demo", "", 0.05, tuple((f"{i}", c) for i, c in enumerate([*cells, other])))
    path = tmp_path / "suite.json"
    write_outline(path, outline)
    assert read_outline(path) == outline
    assert path.read_text().count('"stamp"') == path.read_text().count('"vit"') == 1


def test_an_outline_that_spells_out_its_specs_is_read_too(tmp_path):
    outline = Outline("demo", "", 0.05, (("a", CELL),))
    text = json.dumps({"schema": SCHEMA, "outline": dataclasses.asdict(outline)})
    (tmp_path / "suite.json").write_text(text)
    assert read_outline(tmp_path / "suite.json") == outline


def test_records_share_equal_parts_and_keep_apart_what_is_not_the_same_text(tmp_path):
    whole = Spec("prune.some", {"amount": 1, "on": True})
    for key, args in (("1", whole.args), ("2", whole.args), ("3", {"amount": 1.0, "on": 1})):
        cell = dataclasses.replace(CELL, attack=(Spec("prune.some", args),))
        append(tmp_path / "one.jsonl", dataclasses.replace(RECORD, key=key, cell=cell))
    one, two, three = answers(tmp_path).values()
    assert one.cell.attack[0] is two.cell.attack[0]
    assert one.cell.method is two.cell.method is three.cell.method
    assert one.evidence.agreement[1] is three.evidence.agreement[1]
    assert (
        three.cell.attack[0].text
        == '{"args":{"amount":1.0,"on":1},"name":"prune.some","version":1}'
    )
    assert one.cell.attack[0].text == whole.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory; `bench run` writes it"),
        ("{", "expected JSON"),
        ('{"schema": 2}', "expected schema 1, got 2"),
        ('{"schema": 1}', "run the suite again"),
        ('{"schema": 1, "outline": {"name": "x"}}', "title: Field required"),
        ('{"schema": 1, "outline": {"specs": [], "cells": [["a", {"owner": 0}]]}}', "numbered"),
    ],
)
def test_an_outline_that_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "suite.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_outline(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("right", "text"),
    [
        ([], ""),
        ([True], "8"),
        ([False, True, True, True], "7"),
        ([True, False, True, False, False, False, True], "a2"),
    ],
)
def test_which_images_were_right_takes_a_digit_for_four(right, text):
    assert packed(right) == text
    assert unpacked(text, len(right)) == tuple(right)


def test_a_record_from_before_images_were_told_apart_is_still_read(tmp_path):
    value = dataclasses.asdict(RECORD)
    for part, names in {"utility": ("right", "chance"), "fidelity": (
        *("owner_probe_right", "released_probe_right"),
        *("own_task", "own_images", "owner_right", "released_right"),
    )}.items():  # fmt: skip
        for name in names:
            del value[part][name]
    (tmp_path / "old.jsonl").write_text(json.dumps(value) + "\n")
    (back,) = read(tmp_path)
    assert (back.utility.right, back.fidelity.own_images) == ("", 0)
    assert back == RECORD


def test_what_a_reading_noted_stands_once_among_the_records_notes(tmp_path):
    seen = Evidence((1.0,), (1.0,), Rule("cosine", ">=", 0.9), "matrix", None, {"compared": 1})
    made = dataclasses.replace(RECORD, evidence=seen, notes={"extract": {"compared": 1}})
    append(tmp_path / "one.jsonl", made)
    assert (tmp_path / "one.jsonl").read_text().count("compared") == 1
    (back,) = read(tmp_path)
    assert back.notes == {"extract": {"compared": 1}}
    assert back.evidence.score == 1.0


def test_an_outline_tells_of_every_step_what_a_report_cannot_ask_a_plug_in(tmp_path):
    """One without steps is written as it always was."""
    path, step = tmp_path / "suite.json", CELL.attack[0]
    facts = StepFacts("exact", True, "the location of the mark", 300, "d1")
    told = Outline("demo", "", 0.05, (("a", CELL),), steps=((step, facts),))
    write_outline(path, told)
    assert read_outline(path) == told
    assert "queries" not in path.read_text()
    asked = dataclasses.replace(told, steps=((step, dataclasses.replace(facts, queries=7)),))
    write_outline(path, asked)
    assert read_outline(path) == asked
    write_outline(path, dataclasses.replace(told, steps=()))
    assert '"steps"' not in path.read_text()
    assert read_outline(path).steps == ()
