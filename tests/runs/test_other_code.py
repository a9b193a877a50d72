"""What other code made is told of, and made again where that is wished, with all that follows."""

import json
import shutil

import made
import pytest

import bench
from bench.records import ledger
from bench.records.leases import Leases
from bench.records.store import Store
from bench.runs.laboratory import Laboratory
from bench.suite import sources

TEXT = made.suite(innocents="{strangers: 0, twin_seeds: 1, pretraining_steps: 1}")


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A suite that was run by code that has since changed in one attack."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "tiny.yaml").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "plugin_digest", lambda place: f"old {place}"[:24])
        bench.run(folder / "tiny.yaml", folder, device="cpu", note=lambda line: None)
    return folder


def copy_of(folder, place):
    return shutil.copytree(folder, place / "run")


def test_a_run_tells_of_it_and_changes_nothing(answered, tmp_path):
    folder, said = copy_of(answered, tmp_path), []
    before = bench.read(folder / "tiny")
    assert bench.run(folder / "tiny.yaml", folder, device="cpu", note=said.append) == before
    named = [line.partition(" other code of ")[2].partition(":")[0] for line in said[:-1]]
    assert sorted(named) == ["activemark", "control.identity", "prune.l1"]
    assert said[-1].startswith("note: 4 answers follow from other code than today's")
    assert len(said) == 4


def test_it_is_made_again_with_what_follows_and_the_rest_stays(answered, tmp_path):
    folder, said = copy_of(answered, tmp_path), []
    store = Store(folder / ".store")
    before = {a.key: a.payload for a in store}
    old = bench.read(folder / "tiny").records
    bench.run(folder / "tiny.yaml", folder, device="cpu", stale="remake", note=said.append)
    after = {a.key: a for a in store}
    assert after.keys() == before.keys()
    renewed = {a.kind for a in after.values() if a.payload["code"] != before[a.key]["code"]}
    assert renewed == {"protect", "attack", "extract"}
    kept = {a.kind for a in after.values() if a.payload == before[a.key]}
    assert kept == {"owner"}  # utility and fidelity follow from what was made again
    new = bench.read(folder / "tiny").records
    assert new.keys() == old.keys()
    for key, record in new.items():
        assert record.evidence == old[key].evidence  # the code is the same in truth
        assert record.code["activemark"] != old[key].code["activemark"]
    (withdrawn,) = (folder / "tiny").rglob("*.withdrawn")
    taken = [json.loads(line)["key"] for line in withdrawn.read_text().splitlines()]
    assert sorted(taken) == sorted(old)
    bench.run(folder / "tiny.yaml", folder, device="cpu", stale="remake", note=said.append)
    assert len(said) == 1


def test_nothing_is_made_again_under_another_run(answered, tmp_path):
    folder = copy_of(answered, tmp_path)
    with (
        Leases(Store(folder / ".store").leases),
        pytest.raises(bench.UserError, match="expected no run on this store, one is at it"),
    ):
        bench.run(folder / "tiny.yaml", folder, device="cpu", stale="remake")
    assert len(ledger.answers(folder / "tiny")) == 4


def test_a_record_names_the_data_and_the_code_it_follows_from(answered):
    laid_out = bench.plan(answered / "tiny.yaml")
    digests = {name: found.digest for name, found in laid_out.manifests.items()}
    for record in bench.read(answered / "tiny").records.values():
        assert record.data == digests
        assert {"owner", "protect", "attack", "extract", "utility"} <= record.code.keys()
        assert record.cell.attack[0].name in record.code
        assert record.elsewhere == {}


def test_a_record_says_where_it_was_protected_and_attacked_if_elsewhere(
    answered, tmp_path, monkeypatch
):
    folder = copy_of(answered, tmp_path)
    laid_out = bench.plan(folder / "tiny.yaml")
    store = Store(folder / ".store")
    for key, stage in laid_out.stages.items():
        if stage.kind in ("extract", "utility", "fidelity"):
            store.remove(key)
    ledger.withdraw(folder / "tiny", {q.key for q in laid_out.questions})
    here = {"device": "another machine"}
    monkeypatch.setattr(Laboratory, "environment", property(lambda laboratory: here))
    found = bench.run(laid_out, folder, device="cpu", note=lambda line: None)
    for record in found.records.values():
        assert record.environment == here
        assert set(record.elsewhere) == {"protect", "attack"}
        assert record.elsewhere["protect"]["torch"]
