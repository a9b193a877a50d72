"""Innocents that no attack made: another owner's mark, other models, strangers of other shapes."""

from collections import Counter

import pytest
import torch
from made import outline, suite
from safetensors.torch import save_file

from bench.cli import main
from bench.data.embedded import WEIGHTS
from bench.models.building import randomised
from bench.models.vision import Architecture
from bench.records import ledger
from bench.records.nouns import UserError, unpacked
from bench.records.store import Store
from bench.reports import tables
from bench.runs import engines
from bench.runs.laboratory import Laboratory, load_owners
from bench.runs.session import answer
from bench.suite import plan, reader
from bench.verdicts.innocents import WHOLE, innocents, with_digests

MODELS = [
    "{embedded: mini}",
    "{embedded: mini, weights: copy.safetensors}",
    "{embedded: mini, weights: another.safetensors}",
    "{timm: test_vit, weights: wide.safetensors}",
]
SUITE = suite(
    attacks=["{name: control.identity}"],
    innocents="{strangers: 1, pretraining_steps: 1, other_keys: 1, other_shapes: 1, "
    f"models: [{', '.join(MODELS)}]}}",
)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("innocents")
    (folder / "copy.safetensors").write_bytes((WEIGHTS / "mini.safetensors").read_bytes())
    for name, shape in (
        ("another", Architecture("embedded", "mini")),
        ("wide", Architecture("timm", "test_vit", head="own")),
    ):
        save_file(randomised(shape, 7).state_dict(), folder / f"{name}.safetensors")
    (folder / "suite.yaml").write_text(SUITE)
    return plan.make(reader.load(folder / "suite.yaml"), folder), folder


@pytest.fixture(scope="module")
def records(planned):
    made, folder = planned
    told = []
    laboratory = Laboratory(made, Store(folder / "store"), folder, torch.device("cpu"), told.append)
    load_owners(laboratory)
    found = list(answer(laboratory, made.questions, engines.serial, folder / "r.jsonl"))
    one = "mini and mini (copy.safetensors) are one model, or nearly: as innocents they count once"
    assert told == [one]
    return found


@pytest.fixture(scope="module")
def rows(planned, records):
    asked = [question.key for question in planned[0].questions]  # whatever was answered first
    listed = sorted(records, key=lambda record: asked.index(record.key))
    table, *_ = tables.tables(outline(listed), {r.key: r for r in records})
    named = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {row["attack"]: row for row in named if not row["attack"].startswith("price")}


def test_every_innocent_is_read_or_incompatible_and_none_fails(records):
    assert Counter((r.cell.base, r.cell.lineage, r.status) for r in records) == {
        ("released", "released", "ok"): 1,
        ("owner", "owner", "ok"): 1,
        ("owner", "stranger", "ok"): 2,  # one like the owner, a deeper one
        ("owner", "stranger", "incompatible"): 1,  # a wider one
        ("other key", "owner", "ok"): 1,
        ("other model", "stranger", "ok"): 1,
        ("other model", "stranger", "incompatible"): 1,
    }


def test_another_owners_mark_is_its_released_model_and_no_other(records):
    weights = {r.cell.base: r.suspect_digest for r in records if r.cell.lineage != "stranger"}
    assert len(set(weights.values())) == 3
    (record,) = (r for r in records if r.cell.base == "other key")
    assert (record.cell.method_seed, record.cell.other_seed) == (0, 1)
    assert record.fidelity is None  # the price is that of the mark the claim is about


def test_what_could_not_be_read_is_held_to_a_task_all_the_same(records):
    unread = [r for r in records if r.status == "incompatible"]
    assert [r.utility.metric for r in unread] == ["probe accuracy"] * 2
    assert all(r.evidence is None for r in unread)


def test_an_owner_without_a_classifier_has_no_task_of_its_own_in_the_price(records):
    (price,) = (r.fidelity for r in records if r.fidelity)
    assert (price.own_images, price.own_task, price.owner_right) == (0, "", "")
    right = unpacked(price.owner_probe_right, price.probe_images)
    assert sum(right) / len(right) == pytest.approx(price.owner_probe_accuracy)


def test_innocents_that_could_be_read_count_and_the_incompatible_do_not(records):
    (null,) = innocents(with_digests(records)).values()
    strangers, descendants, other_keys = null.against(WHOLE, 0.05)
    assert len(strangers.scores) == 3
    assert descendants.scores == (null.clean,)
    assert len(other_keys.scores) == 1


def test_their_records_read_back_as_written_and_those_before_them_too(planned, records):
    _, folder = planned
    kept = list(ledger.read(folder))
    assert [r.cell for r in kept] == [r.cell for r in records]
    twin = next(r for r in kept if r.cell.base == "owner")
    path = folder / "before" / "r.jsonl"
    ledger.append(path, twin)
    path.write_text(path.read_text().replace('"other_model":null,"other_seed":null,', "", 1))
    assert "other" not in path.read_text()
    assert list(ledger.read(path.parent)) == [twin]


def test_a_table_gives_each_kind_a_row_in_the_column_of_its_innocents(rows):
    assert list(rows) == [
        "control.identity",
        "control.stranger mini",
        "another owner's mark",
        "mini",
        "test_vit",
        "control.stranger mini-deep",
        "control.stranger mini-wide",
    ]
    for name, row in rows.items():
        if name != "control.identity":
            assert (row["marked"], row["p"], row["verdict"]) == ("—", "—", "—")
    assert rows["control.identity"]["stranger"].endswith("(n=1)")  # of the owner's shape alone
    assert rows["another owner's mark"]["twin"].endswith("(n=1)")
    assert rows["another owner's mark"]["stranger"] == "—"
    assert rows["mini"]["stranger"].endswith("(n=1)")
    assert rows["control.stranger mini-deep"]["stranger"].endswith("(n=1)")
    for wide in ("test_vit", "control.stranger mini-wide"):
        assert rows[wide]["stranger"].startswith("incompatible: expected the owner's")


def test_a_check_says_whether_the_weights_of_innocents_are_there(planned, capsys):
    _, folder = planned
    assert main(["check", str(folder / "suite.yaml"), "--data", str(folder)]) == 0
    assert capsys.readouterr().out.count("ok       innocent ") == 4
    assert main(["check", str(folder / "suite.yaml"), "--data", str(folder / "store")]) == 2
    assert capsys.readouterr().out.count("missing  innocent ") == 3


def test_an_unknown_shape_is_refused_where_it_is_written(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.replace("identity}", "stranger, shape: mini-deap}"))
    with pytest.raises(UserError) as caught:
        reader.load(path)
    assert str(caught.value) == (
        f"{path}:7: attack 'control.stranger': shape: expected 'mini', 'mini-deep' or "
        "'mini-wide', got 'mini-deap'; did you mean 'mini-deep'?"
    )
