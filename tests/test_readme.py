"""What the README alone promises: the two commands of the gate, and a table out of the records."""

import re

import pytest
from commands import bench
from documents import ROOT

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
            assert cell == f"{rate} / {twin}, owned {copies}"
    assert (len(shown), len(cells)) == (4, 3)


@pytest.mark.parametrize("kind", ["methods", "attacks"])
def test_the_list_of_plug_ins_is_the_one_the_command_prints(kind, capsys):
    assert main(["list", kind, "--format", "markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / kind / "README.md").read_text()
