"""What the documents show works: commands parse, suites load, links lead somewhere."""

import dataclasses
import re
import shlex

import pytest
from documents import (
    ROOT,
    blocks,
    code,
    documents,
    headings,
    links,
    missing,
    name,
    numbers,
    sentences,
    shown,
    suites,
)

from bench.cli import main
from bench.data.settings import DataSettings
from bench.suite import reader
from bench.suite.grid import Suite
from bench.suite.innocents import InnocentSettings
from bench.suite.owners import ClassifierSettings, OwnerSettings

everywhere = pytest.mark.parametrize("document", documents(), ids=name)

LONGEST = 20
"""Words in a sentence."""


def test_the_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@everywhere
def test_every_command_a_document_shows_is_one_the_program_knows(document):
    for command in shown(document):
        command.parsed()


@everywhere
def test_every_file_a_command_names_is_there_or_made_above_it(document):
    assert list(missing(document)) == []


@everywhere
def test_every_suite_a_document_shows_loads(document, tmp_path):
    for file, text in suites(document).items():
        (tmp_path / file).write_text(text)
        reader.load(tmp_path / file)


def test_the_smallest_suite_runs_on_a_machine_that_has_nothing_else(tmp_path, capsys):
    [(file, text)] = suites(ROOT / "README.md").items()
    (tmp_path / file).write_text(text)
    assert main(["check", str(tmp_path / file)]) == 0
    assert main(["plan", str(tmp_path / file), "--results", str(tmp_path)]) == 0
    assert "undecided" not in capsys.readouterr().out


@everywhere
def test_every_python_example_compiles(document):
    for text in blocks(document, "python"):
        compile(text, name(document), "exec")


@everywhere
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(document):
    for target, heading in links(document):
        assert target.exists(), target
        assert not heading or heading in headings(target), heading


@everywhere
def test_every_suite_a_document_names_exists(document):
    for path in set(re.findall(r"\bsuites/[\w./-]+\.yaml", document.read_text())):
        assert (ROOT / path).is_file(), path


@everywhere
def test_sentences_are_short(document):
    long = [text for text in sentences(document) if len(text.split()) > LONGEST]
    assert long == []


@everywhere
def test_every_number_in_a_table_stands_in_the_results_it_is_from(document):
    for source, table in numbers(document):
        folder, _, paper = source.partition(" and ")
        files = [*(document.parent / folder).glob("*.md")]
        files += ROOT.glob("bench/**/activemark.yaml") if paper else []
        assert files, source
        known = {n for file in files for n in re.findall(r"\d+\.\d+", file.read_text())}
        assert set(re.findall(r"\d+\.\d+", table)) <= known, source


def test_every_key_of_a_suite_file_is_explained():
    explained = (ROOT / "suites/README.md").read_text()
    nouns = (Suite, OwnerSettings, ClassifierSettings, DataSettings, InnocentSettings)
    for noun in nouns:
        for field in dataclasses.fields(noun):
            known = f"`{field.name}`" in explained
            assert known or (noun, field.name) in {
                (OwnerSettings, "library"),
                (OwnerSettings, "name"),
            }


@pytest.mark.parametrize(
    ("folder", "pattern"), [("suites", "**/*.yaml"), ("results", "**/suite.json")]
)
def test_every_suite_and_every_result_is_listed_where_it_lies(folder, pattern):
    named = {target.resolve() for target, _ in links(ROOT / folder / "README.md")}
    for path in (ROOT / folder).glob(pattern):
        assert {path.resolve(), path.parent.resolve()} & named, path


def outputs() -> list[str]:
    found = [text for document in documents() for text in blocks(document, "text")]
    return [text for text in found if text.startswith("$ bench ")]


@pytest.mark.parametrize("output", outputs(), ids=lambda text: text.splitlines()[0])
def test_what_a_document_shows_of_a_command_is_what_it_prints(
    output, tmp_path, monkeypatch, capsys
):
    command, _, text = output.partition("\n")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "118")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))  # a machine that has nothing
    main([*shlex.split(command)[2:], "--results", str(tmp_path)])
    printed = " ".join(capsys.readouterr().out.split())
    # "..." stands for what is left out, and what follows it in brackets says what that was.
    for part in re.split(r"\.\.\.(?:\s+\([^)]*\))?", text):
        assert " ".join(part.split()) in printed


def test_a_command_block_that_nobody_could_run_is_noticed(tmp_path):
    lost = tmp_path / "README.md"
    lost.write_text("```bash\nbench verify stolen.pth --key key.safetensors\n```\n")
    assert [said.rpartition(" ")[2] for said in missing(lost)] == ["stolen.pth", "key.safetensors"]
    assert [language for language, _ in code(lost)] == ["bash"]
