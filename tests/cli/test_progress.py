import io

import pytest
from rich.console import Console

from bench.cli.progress import describe, show
from bench.records.nouns import Cell, Evidence, Record, Rule, Spec, Utility

RULE = Rule("bit errors", "<=", 5)


PRUNED = (Spec("prune.l1", {"amount": 0.4}),)


def cell(lineage="released", attack=PRUNED, args=None):
    return Cell(Spec("mini"), Spec("activemark", args or {}), 0, "released", attack, 3, lineage)


RECORDS = [
    Record("a", "s", cell(), "ok", evidence=Evidence((1.0, 0.5), (0, 9), RULE, "image", 0.5),
           utility=Utility("accuracy", 0.25, "digits", 40)),
    Record("b", "s", cell("owner"), "failed", reason="RuntimeError: [/red] broke"),
    Record("c", "s", cell("stranger"), "skipped", reason="needs weights"),
    Record("d", "s", cell(), "incompatible", reason="no blocks"),
]  # fmt: skip


def shown(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    passed_on = list(show(iter(RECORDS), len(RECORDS), console))
    return passed_on, console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_records_pass_through_unchanged(terminal):
    assert shown(terminal)[0] == RECORDS


def test_a_pipe_gets_one_plain_line_a_cell():
    lines = shown(terminal=False)[1].splitlines()
    assert len(lines) == len(RECORDS)
    assert all("\x1b" not in line for line in lines)
    assert lines[0].startswith("[1/4]")
    assert lines[0].endswith("rate 0.500, score 0.7500, accuracy 0.250")
    assert lines[1].endswith("RuntimeError: [/red] broke")


def test_a_terminal_gets_one_table_with_counts():
    text = shown(terminal=True)[1]
    assert "4 of 4 cells" in text
    assert "1 failed, 1 incompatible, 1 ok, 1 skipped" in text
    assert "[/red] broke" in text


def test_records_are_shown_as_they_come_not_at_the_end():
    console = Console(file=io.StringIO(), force_terminal=False)
    stream = show(iter(RECORDS), len(RECORDS), console)
    next(stream)
    assert console.file.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (cell(), "mini · activemark · marked · prune.l1 0.4 · seed 3"),
        (cell("owner"), "mini · activemark · twin · prune.l1 0.4 · seed 3"),
        (cell("stranger", (Spec("control.stranger", {"index": 2}), Spec("prune.l1"))),
         "mini · activemark · stranger · control.stranger 2 > prune.l1 · seed 3"),
        (cell(args={"variant": "paper"}),
         "mini · activemark paper · marked · prune.l1 0.4 · seed 3"),
    ],
)  # fmt: skip
def test_a_cell_is_named_in_a_few_words(asked, words):
    assert describe(asked) == words
