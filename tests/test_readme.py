"""What the README shows works: its commands parse, its Python compiles, its files exist."""

import re
import shlex
from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.parser import parser
from bench.cli.program import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CI_BLOCK = re.compile(r"^<!-- ci: (\w+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# A command ends with its line, or where a comment, another command or a redirection begins.
COMMAND = re.compile(r"(?:^|[/\s])bench ((?:[^\n#&|;>\\]|\\\n)+)")


def bench_commands() -> list[str]:
    shell = [text for language, text in BLOCK.findall(README) if language in ("", "bash", "sh")]
    inline = re.findall(r"`((?:\.venv/bin/)?bench \w+ [^`\n]+)`", README)
    return [found.strip() for text in (*shell, *inline) for found in COMMAND.findall(text)]


def test_the_readme_holds_the_two_commands_that_the_gate_runs():
    install = 'python -m venv .venv && .venv/bin/pip install -e ".[test]"'
    assert dict(CI_BLOCK.findall(README)) == {
        "demo": f"{install} && .venv/bin/bench run suites/demo.yaml\n",
        "tests": f"{install} && .venv/bin/pytest -n 2 --dist loadfile\n",
    }


@pytest.mark.parametrize("command", bench_commands())
def test_every_command_the_readme_shows_is_one_the_program_knows(command):
    parser(COMMANDS).parse_args(shlex.split(command.replace("\\\n", " ")))


@pytest.mark.parametrize(
    "code", [t for language, t in BLOCK.findall(README) if language == "python"]
)
def test_every_python_example_compiles(code):
    compile(code, "README.md", "exec")


@pytest.mark.parametrize("path", sorted({*re.findall(r"\bsuites/[\w./-]+\.yaml", README)}))
def test_every_suite_the_readme_names_exists(path):
    assert (ROOT / path).is_file()


def test_the_readme_opens_with_the_published_table():
    published = (ROOT / "results/published/demo/table2sidebyside.md").read_text()
    shown = README.partition("<!-- table 2 -->")[2].partition("<!-- end -->")[0]
    rows = [line for line in published.splitlines() if line.startswith("|")]
    assert [line for line in shown.splitlines() if line.startswith("|")] == rows
    assert "@@" not in README


def test_the_list_of_attacks_is_the_one_the_command_prints(capsys):
    assert main(["list", "attacks", "--format", "markdown"]) == 0
    assert capsys.readouterr().out == (ROOT / "attacks/README.md").read_text()


SHOWN = [text for _, text in BLOCK.findall(README) if text.startswith("$ bench ")]


@pytest.mark.parametrize("shown", SHOWN, ids=lambda text: text.splitlines()[0])
def test_what_the_readme_shows_of_a_command_is_what_it_prints(shown, tmp_path, monkeypatch, capsys):
    command, _, text = shown.partition("\n")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "118")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))  # a machine that has nothing
    main([*shlex.split(command)[2:], "--results", str(tmp_path)])
    printed = " ".join(capsys.readouterr().out.split())
    # "..." stands for what is left out, and what follows it in brackets says what that was.
    for part in re.split(r"\.\.\.(?:\s+\([^)]*\))?", text):
        assert " ".join(part.split()) in printed
