import re

from documents import ROOT

import bench
from bench.reports.page import glance
from bench.reports.page.answers import Answer, Column, Kind, Map


def answer(state, rate="0.50", forged=False):
    return Answer(state, (), rate, "", "", "", (), forged)


def drawn(*rows, name="mini", kind="finetuning"):
    columns = [Column(n, f"method{n}", "", "weights") for n in range(len(rows[0][1]))]
    untouched = Kind(
        "untouched", [("control.identity", [answer("owned", "1.00") for _ in columns])]
    )
    return Map(name, columns, [untouched, Kind(kind, rows)], ["0.250 (twin, x)" for _ in columns])


def test_findings_name_what_lasts_and_what_takes_most():
    one = drawn(
        ("tune", [answer("owned"), answer("not owned")]),
        ("prune", [answer("owned"), answer("owned")]),
    )
    assert glance.findings([one]) == [
        "Longest recognised: method0, owned after 2 of 2 attacks.",
        "What takes most: tune; claims still owned after it: 1 of 2.",
        "0 of 4 cells are undecided and 0 cannot be read; "
        "the highest rate off an innocent is 0.250, by method1.",
    ]


def test_where_nobody_is_owned_no_attack_is_blamed():
    found = glance.findings([drawn(("tune", [answer("undecided"), answer("incompatible", "")]))])
    assert found[0] == glance.NOBODY
    assert found[1].startswith("1 of 2 cells are undecided and 1 cannot be read")


def test_an_innocent_who_is_accused_is_no_claim_that_lasts():
    one = drawn(("forge", [answer("owned", forged=True)]), ("tune", [answer("not owned")]))
    assert glance.findings([one])[0] == glance.NOBODY


def test_the_map_of_the_published_demo_is_one_screen_of_ascii():
    found = bench.read(ROOT / "results/published/demo")
    text = glance.lines(found.outline, found.records, 120)
    assert len(text) <= 24
    assert all(line.isascii() and len(line) <= 120 for line in text)
    [row] = [line for line in text if line.startswith("finetune.segment")]
    shown = re.search(
        r"\| finetune.segment \| (\d\.\d+) /.*owned 0/1", (ROOT / "README.md").read_text()
    )
    assert row.split()[1:3] == ["x", f"{float(shown[1]):.2f}"]  # expressprint, in README's table


def test_what_does_not_fit_side_by_side_stands_below():
    found = bench.read(ROOT / "results/published/demo")
    text = glance.lines(found.outline, found.records, 60)
    assert all(len(line) <= 60 for line in text)
    assert sum(line.startswith("finetune.segment") for line in text) > 1


def test_of_many_attacks_each_kind_shows_the_worst():
    rows = [(f"a{i}", [answer("owned", "0.90")]) for i in range(40)]
    rows[7] = ("a7", [answer("not owned", "0.10")])
    text = list(glance._map(drawn(*rows), 100))
    assert [line.split() for line in text if line.startswith("finetuning")] == [
        ["finetuning,", "worst", "of", "40", "x", "0.10"]
    ]


def test_long_names_keep_what_tells_them_apart():
    names = [f"timm_vit_large_patch14_dinov2_lvd142m_{n}" for n in (1, 2)]
    cut = [glance._cut(name, 20) for name in names]
    assert cut[0] != cut[1]
    assert {len(name) for name in cut} == {20}
