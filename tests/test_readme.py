"""What the README alone promises: the two commands of the gate, and a table out of the records."""

import re

import pytest
from commands import bench
from documents import ROOT, blocks
from made import suite
from pandas import DataFrame
from safetensors.torch import save_file

from bench import testing
from bench.cli import main

README = (ROOT / "README.md").read_text()

CI_BLOCK = re.compile(r"^<!-- ci: (\w+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_readme_holds_the_two_commands_that_the_gate_runs():
    install = 'python -m venv .venv && .venv/bin/pip install -e ".[test]"'
    assert dict(CI_BLOCK.findall(README)) == {
        "demo": f"{install} && .venv/bin/bench run suites/demo.yaml\n",
        "tests": f"{install} && .venv/bin/pytest -n 2 --dist loadfile\n",
    }


def rows(text):
    """The first table of a text, by row and column."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, _, *body = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in body}


def section(text, heading):
    return text.partition(heading)[2].partition("\n#")[0]


def test_the_readmes_table_is_what_the_published_records_say():
    said = bench("report", ROOT / "results/published/demo", "--format", "markdown").out
    beside = said.partition("# Table 2 side by side")[2]
    marked, twins = rows(section(beside, ", positive:")), rows(section(beside, ", negative:"))
    shown = rows(README.partition("<!-- table 2 -->")[2].partition("<!-- end -->")[0])
    for attack, cells in shown.items():
        for method, cell in cells.items():
            rate, verdict = marked[attack][method].split(" ", 1)
            owned = re.search(r"(?<!not )owned (\d/\d)", verdict)
            copies = owned[1] if owned else "0/" + verdict[-1]
            twin = twins[attack][method].partition(" ")[0]
            _, _, reservation = verdict.partition("; ")
            assert cell == f"{rate} / {twin}, owned {copies}{'*' if reservation else ''}"
            assert f"* **\\***: {reservation}" in README
    assert (len(shown), len(cells)) == (5, 4)


@pytest.mark.parametrize(
    ("kind", "folder"),
    [("methods", "methods"), ("attacks", "attacks"), ("accusers", "attacks/accusers")],
)
def test_the_list_of_plug_ins_is_the_one_the_command_prints(kind, folder, capsys):
    assert main(["list", kind, "--format", "markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / folder / "README.md").read_text()


def test_the_readmes_python_does_what_it_says(tmp_path, monkeypatch):
    """Line by line, on a suite of the same name that is smaller, with a mark that is not learnt."""
    monkeypatch.chdir(tmp_path)
    innocents = "{strangers: 0, twin_seeds: 1, pretraining_steps: 1}"
    small = suite(name="mine", innocents=innocents)
    (tmp_path / "mine.yaml").write_text(small)
    (tmp_path / "mine/strangers").mkdir(parents=True)
    save_file(testing.stranger(0).state_dict(), tmp_path / "mine/strangers/0.safetensors")
    [text] = [text for text in blocks(ROOT / "README.md", "python") if "bench.run(" in text]
    made = {}
    exec(text.replace('"lr": 1e-3', '"steps": 2'), made)
    assert len(made["cells"]) == len(made["results"].outline.cells)
    assert {type(frame) for frame in made["frames"]} == {DataFrame}
    assert made["claim"].model_file.is_file()
    assert made["found"].outcome == "undecided"
    assert made["found"].findings[0].verdict.rank("strangers").n == 1
