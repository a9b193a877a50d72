import io
import json
import shutil
import time
from collections import Counter

import pytest
from documents import ROOT
from rich.console import Console

import bench
from bench.cli.progress import Seen, logged, names, show, working
from bench.cli.running import answered
from bench.models import meter
from bench.records import ledger
from bench.records.nouns import Cell, Evidence, Record, Rule, Spec, Utility
from bench.suite.graph import Stage
from bench.suite.todo import row_of

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

NAMES = names([record.cell for record in RECORDS])


def shown(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    passed_on = list(show(iter(RECORDS), len(RECORDS), NAMES, console))
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


@pytest.mark.parametrize(("verbose", "lines"), [(False, 100 + 1), (True, 1000)])
def test_of_many_cells_a_pipe_gets_some_and_those_that_failed(verbose, lines):
    many = [RECORDS[0]] * 500 + [RECORDS[1]] + [RECORDS[0]] * 499
    console = Console(file=io.StringIO(), force_terminal=False, width=160)
    assert list(show(iter(many), len(many), NAMES, console, None, verbose)) == many
    found = console.file.getvalue().splitlines()
    assert len(found) == lines
    assert any("broke" in line for line in found)
    assert found[-1].startswith("[1000/1000]")


def test_a_terminal_gets_one_table_with_counts():
    text = shown(terminal=True)[1]
    assert "4 of 4 cells" in text
    assert "1 failed, 1 incompatible, 1 ok, 1 skipped" in text
    assert "[/red] broke" in text


def test_records_are_shown_as_they_come_not_at_the_end():
    console = Console(file=io.StringIO(), force_terminal=False)
    stream = show(iter(RECORDS), len(RECORDS), NAMES, console)
    next(stream)
    assert console.file.getvalue().count("\n") == 1


def test_a_cell_is_named_in_a_few_words():
    assert NAMES(cell()) == "mini · activemark · marked · prune.l1 · seed 3"
    assert NAMES(cell("owner")) == "mini · activemark · twin · prune.l1 · seed 3"


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (cell(attack=(Spec("prune.l1", {"amount": 0.8}),)), "prune.l1 amount=0.4"),
        (cell(attack=(Spec("theirs", {"sigma": 0.1}), *PRUNED)), "prune.l1"),
    ],
)
def test_an_attack_is_named_by_what_tells_it_from_the_suites_others(others, words):
    assert f" · {words} · " in names([cell(), others])(cell())


def test_settings_of_anybodys_attack_are_shown():
    cells = [cell(attack=(Spec("theirs", {"sigma": s, "n": 1}),)) for s in (0.1, 0.2)]
    steps = [names(cells)(asked).split(" · ")[3] for asked in cells]
    assert steps == ["theirs sigma=0.1", "theirs sigma=0.2"]


def test_variants_of_a_method_and_numbers_of_a_stranger_are_told_apart():
    variants = [{"variant": name, "steps": 2} for name in ("paper", "expressprint")]
    strangers = [(Spec("control.stranger", {"index": i}), *PRUNED) for i in (0, 2)]
    cells = [cell(args=args) for args in variants]
    cells += [cell("stranger", attack, variants[0]) for attack in strangers]
    said = list(map(names(cells), cells))
    assert said[0] == "mini · activemark paper · marked · prune.l1 · seed 3"
    assert said[3].endswith("stranger · control.stranger index=2 > prune.l1 · seed 3")


STAGES = {
    "a": Stage("protect", {"method": {"name": "akh"}}),
    "b": Stage("attack", {"step": {"name": "prune.l1"}}),
    "c": Stage("attack", {"step": {"name": "prune.l1"}}),
    "d": Stage("cohort", {}),
}


def test_what_is_being_done_is_said_at_once_and_how_long_it_takes_once_a_stage_has_ended(
    monkeypatch,
):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    seen = Seen()
    seen.stages = STAGES
    assert seen.now == "now: looking at what there is already"
    seen.look({"a"}, dict.fromkeys("abcd"))
    now[0] = 65.0
    assert (seen.now, seen.remaining) == ("now: protecting akh (1:05)", "")
    seen.look({"b"}, dict.fromkeys("bcd"))  # the only one that ended took 65 s
    assert (seen.now, seen.remaining) == ("now: attacking prune.l1 (0:00)", "; about 3:15 left")
    now[0] = 70.0
    seen.look({"c", "d"}, dict.fromkeys("cd"))  # attacks take 5 s, the mean of kinds is 35 s
    assert seen.remaining == "; about 0:20 left"
    assert "training strangers (0:00)" in seen.now


def test_a_terminal_says_what_is_being_done_before_a_cell_is_answered():
    seen, console = Seen(), Console(file=io.StringIO(), force_terminal=True, width=160)
    seen.stages = STAGES

    def records():
        seen.look({"d"}, dict.fromkeys("abcd"))
        time.sleep(0.5)  # two drawings
        assert "0 of 4 cells in 0:00" in console.file.getvalue()
        assert "now: training strangers" in console.file.getvalue()
        yield from RECORDS

    assert list(show(records(), len(RECORDS), NAMES, console, seen)) == RECORDS


def test_machines_are_told_every_cell_in_a_line_of_json():
    said = []
    assert list(logged(iter(RECORDS), len(RECORDS), said.append)) == RECORDS
    first, second, *_ = map(json.loads, said)
    assert (first["number"], first["of"], first["status"], first["rate"]) == (1, 4, "ok", 0.5)
    assert first["attack"] == [{"name": "prune.l1", "args": {"amount": 0.4}, "version": 1}]
    assert (second["rate"], second["reason"]) == (None, "RuntimeError: [/red] broke")


@pytest.fixture
def demo(tmp_path):
    """What the committed demo has answered, and a folder in which nothing is answered yet."""
    home = ROOT / "results/published/demo"
    shutil.copy(home / "suite.json", tmp_path)
    return bench.read(home), tmp_path, Console(file=io.StringIO(), width=400)


def said(console):
    return console.file.getvalue().splitlines()


def test_a_methods_answer_is_said_with_its_last_cell_while_others_go_on(demo):
    found, home, console = demo
    records = [found.records[key] for key, _ in found.outline.cells]
    methods = list(dict.fromkeys(record.cell.method.text for record in records))
    left, whole = Counter(record.cell.method.text for record in records), 0
    for record in answered(records, home, console):
        assert sum(", so far (" not in line for line in said(console)) == whole
        left[record.cell.method.text] -= 1
        whole += not left[record.cell.method.text]
    lines = [line for line in said(console) if ", so far (" not in line]
    assert len(lines) == len(methods)
    assert " mini, akh: owned after 7 attacks (" in lines[-3]
    assert "; not owned after finetune.segment 0.02; innocents at most 0.240" in lines[-3]


def test_first_verdicts_are_said_once_most_attacks_of_a_method_have_one(demo):
    found, home, console = demo
    mine = [key for key, cell in found.outline.cells if cell.method.name == "committed_bits"]
    cells = {key: found.records[key].cell for key in mine}
    shared = [key for key in mine if row_of(cells[key]) == ()]
    marked = [key for key in mine if cells[key].base == "released"]
    later = [key for key in mine if row_of(cells[key]) is None]
    records = [found.records[key] for key in (*marked[:5], *shared, *later, *marked[5:])]
    for number, _ in enumerate(answered(records, home, console)):
        assert len(said(console)) == (number >= len(shared) + 5)
    first, last = said(console)
    assert f" mini, committed_bits, so far ({len(shared) + 5} of {len(mine)} cells): owned" in first
    most = max(found.records[key].evidence.rate for key in shared)
    assert first.split("mini, ")[1].endswith(f" innocents at most {most:.3f}")
    assert " mini, committed_bits: owned after 8 attacks (" in last


def test_first_verdicts_that_an_earlier_run_told_are_not_said_again(demo):
    found, home, console = demo
    cells = [key for key, cell in found.outline.cells if cell.method.name == "committed_bits"]
    for key in cells[:-1]:
        ledger.append(home / "records" / "earlier.jsonl", found.records[key])
    assert len(list(answered([found.records[cells[-1]]], home, console))) == 1
    (line,) = said(console)
    assert " mini, committed_bits: owned after 8 attacks (" in line


def test_work_without_a_plan_says_what_it_sent_through_models():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with working("protecting mini", console):
        meter.count(forward=1234.0, backward=600.0)
        time.sleep(0.4)
    assert (
        "protecting mini (0:00): 1,234 images forward, 600 images back" in console.file.getvalue()
    )
    assert not meter.counting()


def test_a_pipe_is_told_nothing_of_work_without_a_plan():
    console = Console(file=io.StringIO())
    with working("protecting mini", console):
        pass
    assert console.file.getvalue() == ""
