"""Write a table as Markdown, LaTeX or comma-separated values, or to a terminal."""

from __future__ import annotations

import csv as csv_format
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.records.files import write_atomically
from bench.records.nouns import UserError
from bench.records.plugins import Values

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console


NOTHING = "—"
"""Printed where nothing was asked."""

TERMINAL_COLUMN = 18
"""Letters; seven such columns and an attack's name fit on 120."""

LEAST_COLUMN = 9
"""Letters; where even these are too many, the terminal is too narrow."""

FIRST_COLUMN = 17
"""Letters at least for the names of attacks: a name broken within a word is hard to read."""

NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?")
"""What tables write for a number: no other zero comes first, so 01 is a name."""

LATEX_LETTERS = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": "\\textbackslash{}",
        "~": "\\textasciitilde{}",
        "^": "\\textasciicircum{}",
        "<": "\\textless{}",
        ">": "\\textgreater{}",
        "|": "\\textbar{}",
        '"': "\\textquotedbl{}",
        "'": "\\textquotesingle{}",
        "`": "\\textasciigrave{}",
        "≤": "\\ensuremath{\\le}",
        "≥": "\\ensuremath{\\ge}",
        "→": "\\textrightarrow{}",
    }
)
"""What a letter of running text is called in LaTeX."""


@dataclass(frozen=True)
class Table:
    """A table whose cells are text already.

    The first `heads` columns name the block a row belongs to; Markdown and the terminal print them
    once, above the block.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    heads: int = 0

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), "a row of another width"

    def frame(self) -> DataFrame:
        """Return the rows for pandas: numbers where all of a column is numbers, else text.

        Names stay text: those of blocks, and any that are no number as numbers are written, as 01.
        Where nothing was asked a value is missing. A column's name that comes twice gets a number.
        """
        import pandas

        nothing, text = [NOTHING, ""], io.StringIO(csv(self))
        frame = pandas.read_csv(text, dtype=str, na_values=nothing, keep_default_na=False)
        for number in range(self.heads, len(self.columns)):
            if all(NUMBER.fullmatch(row[number]) or row[number] in nothing for row in self.rows):
                frame.isetitem(number, pandas.to_numeric(frame.iloc[:, number]).to_numpy())
        return frame

    def blocks(self) -> dict[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the rows without their heads, by head, in order."""
        blocks: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for row in self.rows:
            blocks.setdefault(row[: self.heads], []).append(row[self.heads :])
        return blocks


@dataclass(frozen=True)
class Picture:
    """A drawing that stands by itself; `table` is the name of the one it belongs to."""

    name: str
    table: str
    caption: str
    svg: bytes


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write a table: the suffix of its files, and the text, which ends with its line."""

    suffix: str
    write: Callable[[Table], str]


FORMATS = Values(
    "format",
    Format,
    built_in={
        "terminal": "bench.records.table:TERMINAL",
        "markdown": "bench.records.table:MARKDOWN",
        "latex": "bench.records.table:LATEX",
        "csv": "bench.records.table:CSV",
    },
)
"""Every way to write a table, by the name that `--format` takes."""


def markdown(table: Table) -> str:
    """Write a table as Markdown, one block after the other."""
    lines = [f"# {table.name}: {table.caption}", ""]
    columns = table.columns[table.heads :]
    for head, rows in table.blocks().items():
        lines += [f"## {_heading(head)}", ""] if head else []
        lines += [_pipes(columns), _pipes(["---"] * len(columns)), *map(_pipes, rows), ""]
    lines += [f"* {_flat(note)}" for note in table.notes]
    return "\n".join(lines).rstrip() + "\n"


def latex(table: Table) -> str:
    """Write a table as LaTeX: it breaks over pages, its notes follow it, LaTeX counts it.

    Cells are broken as on a terminal: Table 2 is six inches wide, for pages of one column.
    """
    columns = table.columns[table.heads :]
    body = []
    for head, rows in table.blocks().items():
        title = f"{{@{{}}l}}{{\\textbf{{{_tex(_heading(head))}}}}} \\\\"
        across = ["\\addlinespace", f"\\multicolumn{{{len(columns)}}}{title}", "\\addlinespace"]
        body += [*(across if head else []), *map(_ampersands, rows)]
    lines = [
        f"% {_flat(table.name)}. \\usepackage[T1]{{fontenc}} \\usepackage{{booktabs,longtable}}",
        "\\begingroup\\scriptsize\\setlength{\\tabcolsep}{3pt}\\setlength{\\LTleft}{0pt}",
        f"\\begin{{longtable}}{{@{{}}{'l' * len(columns)}@{{}}}}",
        f"\\caption{{{_tex(table.caption)}}} \\\\",
        *("\\toprule", _ampersands(columns), "\\midrule", "\\endhead", "\\bottomrule", "\\endfoot"),
        *body,
        "\\end{longtable}",
        *(f"\\noindent {_tex(note)}\\par" for note in table.notes),
        "\\endgroup",
    ]
    return "\n".join(lines) + "\n"


def csv(table: Table) -> str:
    """Write a table's columns and rows as comma-separated values, without its notes."""
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return text.getvalue()


def read_csv(path: Path, name: str, caption: str) -> Table:
    """Read back the columns and rows that `write` left as comma-separated values."""
    columns, *rows = [*csv_format.reader(path.read_text("utf-8").splitlines())] or [[]]
    if not columns or any(len(row) != len(columns) for row in rows):
        raise UserError(f"{path}: expected rows as wide as their header; write the table again")
    return Table(name, caption, tuple(columns), tuple(map(tuple, rows)))


def wide_console() -> Console:
    """Return where tables are printed; a pipe has no width of its own, they take this one."""
    from rich.console import Console

    wide = Console()
    return wide if wide.is_terminal else Console(width=120)


def terminal(table: Table) -> str:
    """Write a table as a terminal shows it, in the colours and the width of the one there is."""
    console = wide_console()
    with console.capture() as captured:
        print_table(table, console)
    return captured.get().removesuffix("\n")


def print_table(table: Table, console: Console) -> None:
    """Print a table to a terminal; it reads well from 120 columns on."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    console.print(Text(f"{table.name}: {table.caption}", style="bold"))
    for head, rows in table.blocks().items():
        if head:
            console.print(Text(_heading(head), style="bold"))
        grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        columns = table.columns[table.heads :]
        width = _column_width(columns, rows, console.width)
        for number, column in enumerate(columns):
            grid.add_column(
                Text(_narrow(column, width)),
                no_wrap=number > 0,
                min_width=0 if number else FIRST_COLUMN,
                overflow="fold",
            )
        for first, *others in rows:
            grid.add_row(Text(first), *(Text(_narrow(cell, width)) for cell in others))
        console.print(grid)
        console.print()
    for note in table.notes:
        console.print(Text(f"* {_flat(note)}"))
    console.print()


def _column_width(columns: Sequence[str], rows: Sequence[Sequence[str]], there: int) -> int:
    """Return the widest column with which a block fits on a terminal, or the least."""
    for width in range(TERMINAL_COLUMN, LEAST_COLUMN, -1):
        cells = [[_narrow(cell, width) for cell in row[1:]] for row in (columns, *rows)]
        widest = [
            max(len(line) for cell in column for line in cell.splitlines() or [""])
            for column in zip(*cells, strict=True)
        ]
        if FIRST_COLUMN + sum(size + 2 for size in widest) <= there:
            return width
    return LEAST_COLUMN


def _narrow(cell: str, width: int) -> str:
    """Break a cell into lines where a reader would: before an interval, a range, a count."""
    parts = re.split(r" (?=\[|\(|\d+/\d)|(?<= /) ", cell)
    return "\n".join(textwrap.fill(part, width) for part in parts)


TERMINAL, MARKDOWN = Format("txt", terminal), Format("md", markdown)

LATEX, CSV = Format("tex", latex), Format("csv", csv)


def write_tables(
    folder: Path, made: Iterable[Table], pictures: Iterable[Picture] = ()
) -> tuple[Path, ...]:
    """Write every table as Markdown and CSV, every picture as SVG, each file whole; say where."""
    paths = []
    for table in made:
        for path, text in beside(folder, table).items():
            write_atomically(path, text.encode())
            paths.append(path)
    for picture in pictures:
        path = folder / f"{picture.name}.svg"
        write_atomically(path, picture.svg)
        paths.append(path)
    return tuple(paths)


def beside(folder: Path, table: Table) -> dict[Path, str]:
    """Return the text of every file that a table becomes in a folder, by its path."""
    stem = table.name.lower().replace(" ", "-")
    return {folder / f"{stem}.{form.suffix}": form.write(table) for form in (MARKDOWN, CSV)}


def _heading(head: Sequence[str]) -> str:
    return ", ".join(part for part in head if part != NOTHING)


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_flat(cell).replace("|", "\\|") for cell in cells) + " |"


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(map(_stacked, cells)) + " \\\\"


def _stacked(cell: str) -> str:
    """Break a cell into lines as the terminal does; LaTeX itself would run over the page."""
    lines = [_tex(line) for line in _narrow(_flat(cell), TERMINAL_COLUMN).split("\n")]
    stacked = "\\\\".join(lines)
    one = "\\begin{tabular}[t]{@{}l@{}}", stacked, "\\end{tabular}"
    return "".join(one) if len(lines) > 1 else stacked


def _tex(text: str) -> str:
    """Escape running text: after a line break it must not read as an argument, -- not as a dash."""
    guard = "{}" if text.startswith(("[", "*")) else ""
    return guard + re.sub("-(?=-)", "-{}", _flat(text).translate(LATEX_LETTERS))


def _flat(text: str) -> str:
    return " ".join(text.split())
