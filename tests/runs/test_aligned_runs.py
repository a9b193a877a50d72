"""Aligned readings, run for real: what is stored, recorded and held to the store."""

import pytest
from made import QUICK, suite

import bench
from bench.records.nouns import Incompatible
from bench.records.store import Store
from bench.reports import audit
from bench.runs import laboratory
from bench.suite import plan, reader


def asked(folder, **parts):
    (folder / "suite.yaml").write_text(
        suite(**{"methods": [QUICK.replace("{", "{align: [none, static], ")]} | parts)
    )
    return plan.make(reader.load(folder / "suite.yaml"), None)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    made = asked(folder, attacks=["{name: control.identity}", "{name: reparam.permute}"])
    results = bench.run(made, folder / "results", device="cpu", note=lambda line: None)
    assert not [r.reason for r in results.records.values() if r.status != "ok"]
    return folder / "results", results


def readings(results, attack, base):
    """Return what was read off one suspect, raw and aligned."""
    chosen = [
        r
        for r in results.records.values()
        if r.cell.base == base and r.cell.attack[-1].name == attack and r.cell.lineage != "stranger"
    ]
    return {r.cell.method.align: r for r in chosen}


@pytest.mark.parametrize("base", ["released", "owner"])
def test_what_a_permutation_hides_is_read_again(found, base):
    _, results = found
    whole = readings(results, "control.identity", base)["none"].evidence
    hidden = readings(results, "reparam.permute", base)
    assert hidden["none"].evidence.agreement != whole.agreement
    assert hidden["static"].evidence.score == pytest.approx(whole.score, abs=0.01)


@pytest.mark.parametrize("base", ["released", "owner"])
def test_who_hid_nothing_is_read_as_before(found, base):
    _, results = found
    both = readings(results, "control.identity", base)
    assert both["static"].evidence.score == pytest.approx(both["none"].evidence.score, abs=0.01)


def test_a_record_says_how_a_suspect_was_aligned_and_at_what_cost(found):
    _, results = found
    for record in results.records.values():
        if record.cell.method.align == "none":
            assert "align" not in record.costs
        else:
            assert record.costs["align"].seconds > 0
            assert record.notes["align"]["stage"] == "static"
            assert (record.notes["align"]["residual"] > 0.5) == (record.cell.lineage == "stranger")
            assert "align" in record.code


def test_rows_of_aligned_readings_hold_against_their_store(found):
    home, results = found
    checked = audit.verify(home / "tiny")
    assert {row.outcome for row in checked} == {"holds"}
    assert len(checked) == len(results.records)


def test_an_alignment_is_kept_small(found):
    home, _ = found
    kept = [a for a in Store(home / ".store") if a.kind == "align"]
    assert kept
    assert all(a.bytes < 100_000 for a in kept)


def test_a_suspect_that_cannot_be_aligned_is_incompatible_with_the_reason(tmp_path, monkeypatch):
    def refused(*_):
        raise Incompatible("no basis is like this one")

    monkeypatch.setattr(laboratory, "align", refused)
    made = asked(tmp_path, attacks=["{name: control.identity}"], innocents="{strangers: 0}")
    results = bench.run(made, tmp_path / "results", device="cpu", note=lambda line: None)
    said = {(r.cell.method.align, r.status, r.reason) for r in results.records.values()}
    assert said == {("none", "ok", ""), ("static", "incompatible", "no basis is like this one")}
