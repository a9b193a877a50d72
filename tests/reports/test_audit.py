import dataclasses
import json
import re
import shutil

import pytest
from made import PRINT, TENSORS, ArrayStore, carried_out, cell, lost, outline, record, suite
from stand_ins import standing_in

import bench
from bench.cli import main
from bench.records import ledger
from bench.records.nouns import UserError, Utility, packed
from bench.records.table import write_tables
from bench.reports import audit
from bench.suite import plan, reader
from bench.suite.graph import Question


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """What a run of a small suite leaves: two marked copies, two twins, and their store."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "suite.yaml").write_text(suite(innocents="{strangers: 0, twin_seeds: 1}"))
    with standing_in():
        made = plan.make(reader.load(folder / "suite.yaml"), None)
    results = folder / "results"
    records = carried_out(made, ArrayStore(results / ".store"))
    ledger.write_outline(results / "tiny" / "suite.json", outline(records))
    for one in records:
        ledger.append(results / "tiny" / "records" / "run.jsonl", one)
    return results


@pytest.fixture
def home(first, tmp_path):
    """A copy of its results, store and all, to do with as a test pleases."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    return tmp_path / "tiny"


def read(home):
    return list(ledger.latest(ledger.read(home)).values())


def rewrite(home, records):
    shutil.rmtree(home / "records")
    for one in records:
        ledger.append(home / "records" / "run.jsonl", one)


def altered(home, **changes):
    """Alter the first record of the pruned, marked copy and write all back."""
    records = read(home)
    place = next(i for i, r in enumerate(records) if r.cell.attack[0].name == "prune.l1"
                 and r.cell.base == "released")  # fmt: skip
    records[place] = dataclasses.replace(records[place], **changes)
    rewrite(home, records)
    return records[place]


def bad(home):
    return [row for row in audit.verify(home) if row.outcome == "does not hold"]


NO_TABLES = "no verdict was recounted: no tables beside the records"


def said(home, capsys, *flags):
    capsys.readouterr()
    status = main(["verify-results", str(home), *flags])
    return status, capsys.readouterr().out


def stage(home, kind):
    """Find the artefact of one kind that came last by key."""
    store = ArrayStore(home.parent / ".store")
    return store, [a for a in store if a.kind == kind][-1]


def test_every_row_of_a_run_holds(home, capsys):
    assert [row.outcome for row in audit.verify(home)] == ["holds"] * 4
    assert said(home, capsys) == (0, f"4 of 4 rows hold, 0 do not\n{NO_TABLES}\n")


def evidence_with(home, **changes):
    (found,) = {r.evidence for r in read(home) if r.cell.attack[0].name == "prune.l1"
                and r.cell.base == "released"}  # fmt: skip
    return dataclasses.replace(found, **changes)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("evidence", lambda home: {"evidence": evidence_with(home, agreement=(1.0,) * 4)}),
        ("evidence", lambda home: {"evidence": evidence_with(home, statistic=(0.0,) * 4)}),
        ("suspect digest", lambda _: {"suspect_digest": "0" * 16}),
        ("owner digest", lambda _: {"owner_digest": "0" * 16}),
        ("utility", lambda home: {"utility": dataclasses.replace(read(home)[0].utility, value=1)}),
        ("utility", lambda _: {"utility": None}),
        (
            "fidelity",
            lambda home: {"fidelity": next(filter(None, (r.fidelity for r in read(home))))},
        ),
    ],
)
def test_a_record_that_says_otherwise_than_the_store_is_named(home, capsys, what, changes):
    record = altered(home, **changes(home))
    status, out = said(home, capsys)
    assert status == 3
    (line, summary, _) = out.splitlines()
    assert record.key in line
    assert ".jsonl:" in line
    assert line.endswith(f"its {what} is not the one in the store")
    assert summary == "3 of 4 rows hold, 1 do not"


def test_a_mark_taken_for_a_fingerprint_is_named(home):
    altered(home, marks=False)
    assert [row.why for row in bad(home)] == [
        "it takes a fingerprint for a mark, or a mark for a fingerprint"
    ]


def test_a_record_under_another_cells_key_is_named_without_a_store(home):
    shutil.rmtree(home.parent / ".store")
    records = read(home)
    rewrite(home, [*records[1:], dataclasses.replace(records[0], key=records[1].key)])
    assert [row.why for row in bad(home)] == ["the outline has another cell under its key"]


def test_a_key_that_its_stages_do_not_give_is_not_called_good(home, capsys):
    (home / "suite.json").unlink()
    altered(home, key="0123456789abcdef")
    status, out = said(home, capsys)
    assert status == 0
    assert out.splitlines()[:2] == ["3 of 4 rows hold, 0 do not", f"1 {audit.NO_STAGES}"]


@pytest.mark.parametrize("kind", ["extract", "utility", "protect", "owner"])
def test_a_sidecar_with_other_contents_is_named(home, capsys, kind):
    store, artefact = stage(home, kind)
    path = store.root / artefact.key[:2] / f"{artefact.key}.json"
    path.write_text(path.read_text().replace('"cost"', '"coat"'))
    status, out = said(home, capsys)
    assert status == 3
    assert f"{artefact.key} damaged: its sidecar is not as it was written" in out


@pytest.mark.parametrize(("kind", "rows"), [("owner", 4), ("protect", 4), ("attack", 1)])
def test_tensors_that_are_not_those_recorded_condemn_what_was_read_off_them(home, kind, rows):
    store, artefact = stage(home, kind)
    path = store.root / artefact.key[:2] / f"{artefact.key}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    whys = {row.why for row in bad(home)}
    assert whys == {f"{kind} {artefact.key} is damaged: its bytes are not those recorded"}
    assert len(bad(home)) == rows


def test_a_copy_that_was_dropped_is_no_fault(home):
    store, artefact = stage(home, "attack")
    store.drop(artefact.key)
    assert [row.outcome for row in audit.verify(home)] == ["holds"] * 4


def test_a_copy_that_is_dropped_while_rows_are_checked_is_no_fault(home):
    store, artefact = stage(home, "attack")
    index = audit._StoreIndex(store)
    store.drop(artefact.key)
    assert index.fault(artefact.key) == ""


def test_an_artefact_that_its_recipe_does_not_name_is_named(home):
    store, artefact = stage(home, "protect")
    sealed = {**artefact.recipe, "seed": artefact.recipe["seed"] + 1}
    store.put(artefact.key, "protect", sealed, artefact.parents, artefact.payload, TENSORS)
    assert {row.why for row in bad(home)} == {f"protect {artefact.key} is not named by its recipe"}
    assert len(bad(home)) == 4


def test_what_the_store_lost_or_never_had_could_not_be_verified(home, capsys):
    store, artefact = stage(home, "extract")
    store.remove(artefact.key)
    told = f"3 of 4 rows hold, 0 do not\n1 {audit.NO_STAGES}\n{NO_TABLES}\n"
    assert said(home, capsys) == (0, told)
    assert said(home, capsys, "--evidence", "required") == (4, told)
    shutil.rmtree(store.root)
    assert said(home, capsys) == (4, f"4 {audit.NO_STORE}\n{NO_TABLES}\n")


def test_nothing_at_all_is_not_verified(tmp_path, capsys):
    assert said(tmp_path, capsys) == (4, f"0 of 0 rows hold, 0 do not\n{NO_TABLES}\n")
    assert main(["verify-results", str(tmp_path / "nowhere")]) == 2
    with pytest.raises(UserError, match="expected a folder of results"):
        audit.verify(tmp_path / "nowhere")


@pytest.fixture
def printed(home):
    """The results with their tables, and without the store."""
    shutil.rmtree(home.parent / ".store")
    results = bench.read(home)
    write_tables(home, [*bench.report(results), *bench.report(results, price=True)])
    return home


def test_without_a_store_verdicts_and_tables_are_recounted_from_the_records(printed, capsys):
    status, out = said(printed, capsys)
    (first, last) = out.splitlines()
    assert (status, first) == (0, f"4 {audit.NO_STORE}")
    assert re.search(r"\d\d rows of \d printed tables follow from the records, \d verdict", last)
    assert said(printed, capsys, "--evidence", "required") == (4, out)


def test_a_rate_that_was_changed_in_a_record_is_found_in_what_is_printed_of_it(printed, capsys):
    altered(printed, evidence=evidence_with(printed, statistic=(0.0,) * 4))
    status, out = said(printed, capsys)
    assert status == 3
    assert re.search(r"table-2\.csv:\d+: it does not follow from the records", out)


def test_bit_errors_that_are_not_those_of_the_agreement_are_named_without_a_store(printed, capsys):
    altered(printed, evidence=evidence_with(printed, agreement=(1.0,) * 4))
    status, out = said(printed, capsys)
    assert status == 3
    assert "its bit errors are not those of its agreement" in out


def test_a_verdict_that_was_changed_in_a_table_is_found(printed, capsys):
    path = printed / "table-2.csv"
    place, line = next(
        (n, line) for n, line in enumerate(path.read_text().splitlines(), 1) if "undecided" in line
    )
    path.write_text(path.read_text().replace("undecided", "owned", 1))
    status, out = said(printed, capsys)
    assert (status, line.count("undecided") > 0) == (3, True)
    assert out.startswith(f"{path}:{place}: it does not follow from the records")


def test_a_share_that_is_not_that_of_its_images_is_named_without_a_store(printed, capsys):
    right = packed([True, True, False, True])
    altered(printed, utility=Utility("accuracy", 0.75, "digits", 4, right))
    assert not any("utility" in row.why for row in bad(printed))
    altered(printed, utility=Utility("accuracy", 0.95, "digits", 4, right))
    status, out = said(printed, capsys)
    assert status == 3
    assert "its utility is not the share of the 4 images it got right" in out


CELL = cell(PRINT)
SKIPPED = Question(CELL, "", False, "", "", "", "", "", None, "needs labels")


def test_a_skipped_cell_can_be_verified_from_the_record_alone(tmp_path, capsys):
    skipped = lost(record(CELL, key=SKIPPED.key), "skipped", "needs labels")
    ledger.append(tmp_path / "tiny" / "run.jsonl", skipped)
    assert said(tmp_path / "tiny", capsys) == (0, f"1 of 1 rows hold, 0 do not\n{NO_TABLES}\n")
    other = dataclasses.replace(skipped, reason="needs logits")
    ledger.append(tmp_path / "tiny" / "run.jsonl", other)
    status, out = said(tmp_path / "tiny", capsys)
    assert status == 3
    assert out.startswith(f"{tmp_path / 'tiny' / 'run.jsonl'}:2: {SKIPPED.key} its key is not")


@pytest.mark.parametrize("status", ["failed", "incompatible"])
def test_a_cell_without_evidence_could_not_be_verified(home, status):
    altered(home, status=status, reason="x", evidence=None, utility=None)
    assert [row.why for row in audit.verify(home) if row.outcome != "holds"] == [audit.NOT_STORED]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"schema": 0}', "expected schema 1, got 0"),
        ('{"schema": 99}', "upgrade the bench"),
        ("no record", "expected a record"),
        ('{"schema": 1, "key": 3}', "key: "),
    ],
)
def test_a_line_that_is_no_record_is_named_and_the_rest_goes_on(home, line, words):
    file = home / "records" / "zz.jsonl"
    file.write_text(f"{line}\n")
    (row,) = bad(home)
    assert (row.place, row.key) == (f"{file}:1", "")
    assert words in row.why
    assert sum(r.outcome == "holds" for r in audit.verify(home)) == 4


def test_an_outline_that_cannot_be_read_is_named(home):
    text = json.loads((home / "suite.json").read_text())
    (home / "suite.json").write_text(json.dumps(text | {"schema": 0}))
    (row,) = bad(home)
    assert row.place == str(home / "suite.json")


def test_every_folder_counts(home, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["verify-results", str(tmp_path / "empty"), str(home)]) == 0
    assert capsys.readouterr().out.startswith("4 of 4 rows hold")
