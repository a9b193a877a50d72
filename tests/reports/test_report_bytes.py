"""What a report says depends on the records alone: not on their order, files, folders or runs."""

import dataclasses
import random
import shutil

import pytest
from commands import bench
from made import (
    BITS,
    MARK,
    MUTATION,
    PRINT,
    UNTOUCHED,
    cell,
    key_of,
    lost,
    outline,
    record,
    stranger,
)

from bench.records import ledger
from bench.records.nouns import Evidence, Spec, Utility, digest

SWEEP = [(Spec("prune.l1", {"amount": amount}),) for amount in (0.2, 0.4)]
RULES = {"activemark": BITS, "adv_tra": MUTATION}


def answer(method, lineage, attack, seed, number):
    base = "released" if lineage == "released" else "owner"
    asked = cell(method, base, attack, seed, seed if lineage == "released" else number)
    key = int(key_of(asked), 16)
    level = key % 5 / 20 + (0.75 if lineage == "released" else 0.4)
    native = round(32 * (1 - level)) if method is MARK else 1 - level
    return record(
        asked,
        evidence=Evidence((level,) * 8, (float(native),) * 8, RULES[method.name], "image", 0.5),
        suspect_digest=digest(lineage, number, [a.args for a in attack], seed),
        utility=Utility("accuracy", 0.5 + key % 7 / 20, "digits", 100),
    )


def study():
    """Two methods, two keys, one sweep; innocents enough for verdicts; one answer failed once."""
    found = []
    for method in (MARK, PRINT):
        for seed in (0, 1):
            for attack in (UNTOUCHED, *SWEEP):
                found.append(answer(method, "released", attack, seed, 0))
                if method is MARK:
                    found += [answer(method, "owner", attack, seed, i) for i in range(7)]
            found += [answer(method, "stranger", stranger(i), seed, 0) for i in range(20)]
    return found


def written(home, files):
    for name, records in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        for one in records:
            ledger.append(home / name, one)
    shutil.copy(home.parent / "suite.json", home / "suite.json")
    return home


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """The same results as one run left them, and as two that overlap, merged in another order."""
    folder = tmp_path_factory.mktemp("results")
    records = study()
    hole = dataclasses.replace(records[0], key="f" * 16)
    ledger.write_outline(folder / "suite.json", outline([*records, hole]))
    shuffled = [*records]
    random.Random(0).shuffle(shuffled)
    first, second = shuffled[:90], [lost(records[0]), *shuffled[60:]]
    return [
        written(folder / "one", {"records/a.jsonl": records}),
        written(folder / "two", {"z.jsonl": first, "deep/er/b.jsonl": second}),
    ]


FORMATS = ("terminal", "markdown", "latex", "csv", "html")


ASKED = [
    *((style, (), "Table 2") for style in FORMATS),
    ("markdown", ("--calibration",), "Methods compared"),
    ("markdown", ("--price",), "Price grid"),
    ("markdown", ("--frontier",), "Price of removal"),
    ("markdown", ("--reference",), "Paper's Table 2"),
    ("html", ("--reference",), "Paper's Table 2"),
    ("terminal", ("--calibration", "--frontier", "--reference"), "Level and power"),
]
"""Every format and every flag: what a flag adds is written in any format alike."""


@pytest.mark.parametrize(("style", "flags", "word"), ASKED, ids=lambda part: "".join(part))
def test_merging_runs_renaming_files_and_permuting_records_change_no_byte(
    homes, style, flags, word
):
    one, two = (bench("report", home, "--format", style, *flags) for home in homes)
    assert (one.status, one.err) == (0, "")
    assert one.out == two.out
    # CSV has no titles and LaTeX no apostrophes.
    assert word in one.out or style in ("csv", "latex", "html")
    one, two = (
        {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
        for home in homes
    )
    two.pop("z.jsonl")
    assert one == two


def test_a_page_holds_all_that_there_are_numbers_for(homes):
    text = bench("report", homes[0], "--format", "html").out
    for name in (
        "Worst case",
        "Price grid",
        "Table 2",
        "Level and power",
        "Methods compared",
        "Price of removal",
    ):
        assert f"<h2>{name}</h2>" in text
    assert text.count('src="data:image/svg+xml;base64,') == 2  # ROC and frontier


def test_figure_2_is_on_the_page_where_a_profile_lies_beside_the_records(homes, tmp_path):
    home = shutil.copytree(homes[0], tmp_path / "profiled")
    (home / "figure-2.csv").write_text("block,mean top-5\n0,12.50\n1,<b>\n")
    text = bench("report", home, "--format", "html").out
    assert "<h2>Figure 2</h2>" in text
    assert '<th scope="row">1</th><td>&lt;b&gt;</td>' in text
    for torn in ("", "block,mean top-5\n0\n"):
        (home / "figure-2.csv").write_text(torn)
        said = bench("report", home, "--format", "html")
        assert (said.status, said.out) == (2, "")
        assert "figure-2.csv: expected rows as wide as their header" in said.err


def test_records_of_another_protocol_are_not_mixed_in_whatever_is_asked(homes, tmp_path):
    home = shutil.copytree(homes[0], tmp_path / "mixed")
    ledger.append(home / "other.jsonl", dataclasses.replace(study()[0], schema=2))
    for flags in ((), ("--calibration",), ("--frontier",), ("--format", "html")):
        said = bench("report", home, *flags)
        assert (said.status, said.out) == (2, "")
        assert "expected schema 1, got 2" in said.err
