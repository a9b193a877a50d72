"""Forged claims, run for real: what is stored, recorded, held to the store and printed."""

import pytest
from made import suite

import bench
from bench.records.store import Store
from bench.reports import audit
from bench.reports.price import accusers
from bench.runs.foresight.budget import budget
from bench.suite import plan, reader

pytestmark = pytest.mark.slow

ACCUSERS = (
    "{name: post_hoc.search, draws: 2}",
    "{name: post_hoc.forge}",
    "{name: post_hoc.backdate}",
    "{name: overmark}",
    "{name: disclosed}",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accused")
    (folder / "suite.yaml").write_text(
        suite(
            methods=["{name: oracle.weights, entries: 64}"],
            attacks=["{name: control.identity}"],
            innocents="{strangers: 3, twin_seeds: 1, pretraining_steps: 1}",
            accusers=list(ACCUSERS),
            accused="2",
        )
    )
    made = plan.make(reader.load(folder / "suite.yaml"), None)
    results = bench.run(made, folder / "results", device="cpu", workers=1, note=lambda line: None)
    return folder / "results", made, results


def forged(results, name):
    return [r for r in results.records.values() if r.cell.accuser and r.cell.accuser.name == name]


def test_every_claim_is_answered_or_says_why_not(found):
    _, made, results = found
    assert {r.key for r in results.records.values()} == {q.key for q in made.questions}
    assert {r.status for r in results.records.values()} == {"ok", "skipped"}
    [skipped] = forged(results, "post_hoc.forge")
    assert (skipped.status, skipped.reason) == (
        *("skipped", "no way to fit its secret is written down"),
    )


def test_a_backdated_fingerprint_names_the_innocent_it_was_taken_of_and_no_other(found):
    for record in forged(found[2], "post_hoc.backdate"):
        accused = record.cell.attack[0].args["index"] == record.cell.accused
        assert (record.evidence.rate == 1.0) == accused
        assert record.notes["protect"]["stopped_by"] == "date"


def test_the_best_of_two_keys_agrees_no_less_than_the_first(found):
    for record in forged(found[2], "post_hoc.search"):
        noted = record.notes["protect"]
        assert noted["keys_tried"] == 2
        assert noted["best_score"] >= noted["first_score"]
        if record.cell.attack[0].args["index"] == record.cell.accused:
            assert record.evidence.score == noted["best_score"]


def test_a_disclosed_key_is_read_as_its_owner_reads_it(found):
    results = found[2]
    [honest] = [
        r
        for r in results.records.values()
        if r.cell.accuser is None and r.cell.lineage == "released"
    ]
    on_owner = [r for r in forged(results, "disclosed") if r.cell.base == "released"]
    assert [r.evidence for r in on_owner] == [honest.evidence]
    assert (
        on_owner[0].notes["protect"]["secret_digest"] == (honest.notes["protect"]["secret_digest"])
    )


def test_records_hold_against_the_store_and_a_second_run_makes_nothing(found, monkeypatch):
    folder, made, results = found
    checked = audit.verify(folder / "tiny")
    assert {one.outcome for one in checked} <= {"holds", "not verified"}
    assert sum(one.outcome == "holds" for one in checked) >= len(results.records) - 1
    before = {a.key: a.bytes for a in Store(folder / ".store")}
    again = bench.run(made, folder, device="cpu", workers=1, note=lambda line: None)
    assert again.records.keys() == results.records.keys()
    assert {a.key: a.bytes for a in Store(folder / ".store")} == before


def test_records_name_the_code_of_accuser_and_method(found):
    for record in forged(found[2], "overmark"):
        assert {"overmark", "oracle.weights", "accuse", "extract"} <= record.code.keys() or (
            record.cell.other_seed is not None
        )


def test_passes_of_forging_are_foreseen(found):
    folder, made, _ = found
    rows = budget(made, Store(folder / "nothing"), made.stages).rows
    [row] = [row for row in rows if row.kind == "accuse"]
    assert (row.stages, row.forward, row.backward) == (6, 0, 0)  # weights are compared


def test_the_report_has_the_tables(found):
    results = found[2]
    names = [table.name for table in bench.report(results)]
    assert {"Accusers", "Disputes"} <= set(names)
    assert "Evasion and forgery" in [t.name for t in bench.report(results, price=True)]
    table, _ = accusers.tables(results.outline, results.records)
    shown = {row[2]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert shown["post_hoc.backdate"]["owned"] == "0/2, undecided 2"
    assert shown["post_hoc.backdate"]["rate"] == "1.000"
    assert shown["disclosed"]["with commitment"] == "refused: name"
