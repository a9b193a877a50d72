"""Tables in a format of others, the one that the results' README shows."""

import importlib.metadata
import sys
from importlib.metadata import EntryPoint

import pytest
from commands import bench
from documents import ROOT, blocks
from made import cell, outline, record

from bench.cli import main
from bench.records import ledger, table
from bench.records.table import FORMATS

DOCUMENT = ROOT / "results/README.md"

[LINED] = (text for text in blocks(DOCUMENT, "python") if "my_text" in text)
[ANNOUNCED] = blocks(DOCUMENT, "toml")


@pytest.fixture
def home(tmp_path):
    """The results of one cell."""
    asked = record(cell())
    ledger.write_outline(tmp_path / "demo/suite.json", outline([asked]))
    ledger.append(tmp_path / "demo/records/one.jsonl", asked)
    return tmp_path / "demo"


@pytest.fixture
def announce(monkeypatch, tmp_path):
    """Let a package announce formats, for the length of a test."""
    (tmp_path / "my_text.py").write_text(LINED)
    monkeypatch.syspath_prepend(tmp_path)

    def announce(**formats):
        points = [EntryPoint(name, value, FORMATS.group) for name, value in formats.items()]
        monkeypatch.setattr(
            importlib.metadata,
            "entry_points",
            lambda group: [p for p in points if p.group == group],
        )
        FORMATS.__dict__.pop("_announced", None)
        monkeypatch.setattr(FORMATS, "_found", {})

    yield announce
    FORMATS.__dict__.pop("_announced", None)
    sys.modules.pop("my_text", None)


def test_a_report_is_printed_in_the_format_of_a_package(announce, home):
    name, value = ANNOUNCED.splitlines()[1].replace('"', "").split(" = ")
    announce(**{name: value})
    said = bench("report", home, "--format", name)
    assert (said.status, said.err) == (0, "")
    assert "\nowner | method | access | attack | marked | twin | stranger" in f"\n{said.out}"
    assert "\nmini | activemark | needs features, weights | control.identity | 1.000" in said.out


def test_no_format_is_imported_before_it_is_named(announce, home):
    announce(lost="nowhere:LOST")
    assert bench("report", home, "--format", "csv").status == 0
    said = bench("report", home, "--format", "lost")
    assert said.status == 2
    assert "format 'lost': cannot import nowhere:LOST (ModuleNotFoundError" in said.err


def test_what_is_no_format_is_refused_with_its_origin(announce, home):
    announce(theirs="my_text:lined")
    said = bench("report", home, "--format", "theirs")
    assert said.status == 2
    assert "format 'theirs': expected my_text:lined to be a Format, got function" in said.err


def test_a_format_of_the_name_of_ours_is_refused(announce, home):
    announce(csv="my_text:LINED")
    said = bench("report", home, "--format", "csv")
    assert said.status == 2
    assert "claimed by bench.records.table:CSV (built in) and my_text:LINED" in said.err


def test_a_format_that_nobody_announces_is_refused_with_those_there_are(home, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(home), "--format", "excel"])
    assert "known: html, terminal, markdown, latex, csv;" in capsys.readouterr().err


def test_every_format_writes_whole_lines():
    whole = table.Table("Table 2", "who", ("owner", "rate"), (("mini", "1.000"),), ("a note",), 1)
    for name in FORMATS.names():
        text = FORMATS.get(name).write(whole)
        assert text.endswith("\n")
        assert "1.000" in text
