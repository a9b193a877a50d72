"""What `import bench` gives a program: values in, values out, and errors that are the user's."""

import pytest
import torch
from documents import ROOT
from made import suite

import bench

TABLE = bench.Table(
    "Table",
    "of everything",
    ("attack", "rate", "p", "copies", "rate"),
    (("prune", "0.5", "—", "1/2", "1.0"), ("none", "1.0", "0.05", "2/2", "")),
)


@pytest.fixture(scope="module")
def demo():
    return bench.read(ROOT / "results/published/demo")


@pytest.fixture
def alone(tmp_path):
    """A suite of two cells, whose mark is not learnt."""
    text = suite(innocents="{strangers: 0, twin_seeds: 1, pretraining_steps: 1}")
    (tmp_path / "tiny.yaml").write_text(text.replace("  - {name: prune.l1, amount: 0.4}\n", ""))
    return tmp_path


def test_records_are_read_as_values(demo):
    (key, cell), *_ = demo.outline.cells
    assert isinstance(demo.records[key], bench.Record)
    assert demo.records[key].cell == cell
    assert demo.failed == ()


def test_a_table_is_a_frame_with_numbers_where_all_of_a_column_is(demo):
    frame = TABLE.frame()
    assert list(frame.columns) == ["attack", "rate", "p", "copies", "rate.1"]
    assert [frame[name].dtype.kind for name in ("rate", "p", "rate.1")] == ["f"] * 3
    assert frame["attack"].tolist() == ["prune", "none"]
    assert frame["p"].isna().tolist() == [True, False]
    for table in bench.report(demo):
        assert table.frame().shape == (len(table.rows), len(table.columns))


def test_names_in_a_frame_stay_text_whatever_they_look_like():
    columns = ("method", "user", "copies", "run", "share", "code")
    rows = (("1", "01", "2", "1e5", "-0.5", "nan"), ("2", "7", "", "2.50", "+1e-05", "True"))
    frame = bench.Table("Users", "by name", columns, rows, heads=1).frame()
    assert frame["method"].tolist() == ["1", "2"]  # heads are names
    assert frame["user"].tolist() == ["01", "7"]
    assert frame["code"].tolist() == ["nan", "True"]
    assert frame["run"].tolist() == [1e5, 2.5]
    assert frame["share"].tolist() == [-0.5, 1e-5]
    assert frame["copies"].isna().tolist() == [False, True]
    assert frame["copies"][0] == 2


def test_a_report_has_the_tables_that_are_asked_for(demo):
    def names(**asked):
        return [table.name for table in bench.report(demo, **asked)]

    plain = names()
    assert plain[:2] == ["Table 2", "Table 2 side by side"]
    assert names(reference=True)[: len(plain)] == plain
    assert "Level and power" in names(calibration=True)
    assert "Table 2" not in names(frontier=True)


def test_a_run_hands_on_its_records_does_nothing_twice_and_leaves_the_threads_alone(alone):
    seen, threads = [], torch.get_num_threads()

    def watch(start, records):
        seen.append(start)
        yield from records

    laid_out = bench.plan(alone / "tiny.yaml")
    for _ in range(2):
        results = bench.run(laid_out, alone, device="cpu", threads=threads + 1, watch=watch)
    assert [(start.todo, start.cells) for start in seen] == [(2, 2)]
    assert {record.status for record in results.records.values()} == {"ok"}
    assert results == bench.read(alone / "tiny")
    assert torch.get_num_threads() == threads


def test_what_a_user_can_put_right_is_one_kind_of_error(tmp_path):
    for mistake in (
        lambda: bench.plan(tmp_path / "no.yaml"),
        lambda: bench.run(tmp_path / "no.yaml", tmp_path),
        lambda: bench.read(tmp_path),
        lambda: bench.protect("mini", "activemrk", "photos", tmp_path),
        lambda: bench.protect("mini", "activemark", "photos", tmp_path, users=["a", "a"]),
        lambda: bench.verify(tmp_path / "suspect.pth", tmp_path / "key.safetensors"),
        lambda: bench.verify(tmp_path / "suspect.pth", []),
        lambda: bench.verify(tmp_path / "suspect.pth", [], alpha=1.5),
    ):
        with pytest.raises(bench.UserError):
            mistake()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_there_is_said_so():
    with pytest.raises(AttributeError, match="'bench' has no attribute 'runn'"):
        _ = bench.runn
    assert set(bench.NOUNS) <= set(bench.__all__)
