import re

import pytest

from bench.records.table import NOTHING, Table, latex

TABLE = Table(
    "Table 2",
    "who & what",
    ("owner", "attack", "rate"),
    (
        ("mini", "prune.l1 amount=0.2", "0.970 [0.935, 0.981] (n=2: 0.953-0.977)"),
        ("mini", "finetune_all", NOTHING),
        ("other", "prune", "50 % < 1"),
    ),
    ("a note on $N$ & more",),
    heads=1,
)


def test_latex_has_one_row_per_row_with_as_many_cells_as_columns():
    body = latex(TABLE).split("\\endfoot\n")[1].split("\\end{longtable}")[0]
    rows = [line for line in body.splitlines() if re.search(r"(?<!\\)&", line)]
    assert [len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows] == [2, 2, 2]
    assert all(row.endswith(r"\\") for row in rows)
    assert body.count(r"\multicolumn{2}") == 2  # one for each owner
    assert latex(TABLE).count(r"\textbf{mini}") == 1


def test_latex_opens_and_closes_every_group_and_environment():
    text = latex(TABLE)
    bare = re.sub(r"\\\\|\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert opened
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    assert text.index(r"\end{longtable}") < text.index(r"a note on \$N\$ \& more")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("5 % & $ # a_b {x}", r"5 \% \& \$ \# a\_b \{x\}"),
        (r"C:\temp~^", r"C:\textbackslash{}temp\textasciitilde{}\textasciicircum{}"),
        ("a -> b <= c", r"a -\textgreater{} b \textless{}= c"),
        ("a--b --- c", "a-{}-b -{}-{}- c"),  # no dashes of LaTeX's own
        ("[0.1, 0.2]", "{}[0.1, 0.2]"),  # no argument of the line break before it
        ("*bold*", "{}*bold*"),
        ("", ""),
    ],
)
def test_latex_prints_text_as_it_stands(text, written):
    (row,) = [
        line
        for line in latex(Table("T", "c", ("x", "y"), ((text, "end"),))).splitlines()
        if line.endswith(r" & end \\")
    ]
    assert row == rf"{written} & end \\"


def test_latex_breaks_long_cells_into_lines():
    text = latex(TABLE)
    stacked = r"0.970\\{}[0.935, 0.981]\\(n=2: 0.953-0.977)"
    assert rf"\begin{{tabular}}[t]{{@{{}}l@{{}}}}{stacked}\end{{tabular}}" in text
