"""The commands that read records: report, compare, verify-results."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import bench
from bench.cli.parser import OK, Command
from bench.records.nouns import UserError, how_many
from bench.records.table import (
    FORMATS,
    Picture,
    Table,
    print_table,
    read_csv,
    wide_console,
    write_tables,
)

if TYPE_CHECKING:
    from bench.records.ledger import Results
    from bench.reports.audit import Recount


PAGE = "html"
"""The format of a whole report, with pictures and records; all others are of one table."""

WHOLE = {
    "format": PAGE,
    **dict.fromkeys(("reference", "price", "frontier", "calibration", "equal_price"), False),
}
"""What is asked of a report when all there are numbers for goes on a page."""

BY_FLAG = {
    "frontier": "price-of-removal.csv",
    "calibration": "level-and-power.csv",
    "equal_price": "at-equal-price.csv",
}
"""What a flag of `report` leaves beside the records, for those that need not be there."""

WORSE, UNMEASURED = 3, 4
"""Of `compare` and `verify-results`: something is worse or wrong; nothing was there to tell by."""


def _report_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("suite", type=Path, help="suite file, or the folder of its results")
    command.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    command.add_argument(
        "--format",
        choices=_Formats(),
        default="terminal",
        metavar="NAME",
        help="terminal (default), markdown, latex, csv, html for all as one page, or what another "
        "package writes",
    )
    command.add_argument(
        "--reference", action="store_true", help="the paper's printed figures beside ours, too"
    )
    command.add_argument(
        "--price",
        action="store_true",
        help="the worst case instead: what the worst attack leaves of every claim, by what the "
        "thief can pay in utility, images and compute, printed and written beside the records",
    )
    command.add_argument(
        "--frontier",
        action="store_true",
        help="the price of removal instead: utility lost against what is still detected, printed "
        "and written beside the records, with a picture (frontier.svg)",
    )
    command.add_argument(
        "--calibration",
        action="store_true",
        help="level and power of the verdicts, AUC, detection at a stated false-positive rate and "
        "every two methods compared, too, written beside the records with a picture (roc.svg)",
    )
    command.add_argument(
        "--equal-price",
        action="store_true",
        help="what is read at which price, too: methods within a class of equal prices, of each "
        "mark the settings nearest to it; written beside the records",
    )
    command.add_argument(
        "--cells",
        type=Path,
        metavar="FILE",
        help="every cell as one row of typed columns instead, as .csv, .json or .parquet",
    )


class _Formats:
    """What `--format` takes: which packages announce more is asked once somebody names one."""

    def __iter__(self) -> Iterator[str]:
        yield from (PAGE, *FORMATS.names())


def show_report(arguments: argparse.Namespace) -> int:
    """Print a suite's tables from its records; needs neither torch nor the models."""
    form = None if arguments.format == PAGE else FORMATS.get(arguments.format)
    home = _home(arguments)
    results = bench.read(home)
    gc.freeze()  # records make no cycles, and looking for some among so many takes seconds
    if arguments.cells is not None:
        from bench.reports import tidy

        rows = tidy.rows(results.outline, results.records)
        tidy.write(arguments.cells, rows)
        print(f"{arguments.cells}: {how_many(len(rows), 'cell')}")
        return OK
    made, pictures = _asked(results, home, arguments)
    if form is None:
        from bench.reports import page

        print(page.html(results.outline, results.records, made, pictures), end="")
    else:
        print(*map(form.write, made), sep="\n")
    return OK


def _asked(
    results: Results, home: Path, arguments: argparse.Namespace
) -> tuple[tuple[Table, ...], tuple[Picture, ...]]:
    """Make what is asked for, and write what was asked for by name beside the records.

    A page holds all that there are numbers for, asked for or not.
    """
    from bench.reports import drawings, frontier, printed

    found, whole = (results.outline, results.records), arguments.format == PAGE
    made = () if arguments.frontier or arguments.price else bench.report(results)
    pictures: tuple[Picture, ...] = ()
    if arguments.price or whole:
        worst = bench.report(results, price=True)
        made = (*worst, *made)
        if arguments.price:
            write_tables(home, worst)
    if arguments.frontier or (whole and frontier.has_sweeps(results.outline)):
        prices = bench.report(results, frontier=True)
        pictures = (drawings.frontier_picture(*found),)
        made = (*made, *prices)
        if arguments.frontier:
            write_tables(home, prices, pictures)
    if arguments.reference:
        made = (*made, *printed.tables(*found))
    if whole and (profiled := home / "figure-2.csv").is_file():
        caption = "activations after each block, as `bench profile` left them beside the records"
        made = (*made, read_csv(profiled, "Figure 2", caption))
    if arguments.calibration or whole:
        judged, drawn = _calibration(results, arguments.calibration)
        made, pictures = (*made, *judged), (*pictures, *drawn)
        if arguments.calibration:
            write_tables(home, judged, drawn)
    if arguments.equal_price:
        from bench.runs.tuning import equal

        level_prices = equal.equal_price(*found)
        made = (*made, level_prices)
        write_tables(home, [level_prices])
    return made, pictures


def _home(arguments: argparse.Namespace) -> Path:
    """Return the folder of a suite's results, which is named or follows from the suite's name."""
    given: Path = arguments.suite
    if given.suffix not in (".yaml", ".yml"):
        named: Path = arguments.results / given  # as `bench run demo` has called them
        return named if not given.exists() and named.is_dir() else given
    from bench.suite import reader

    tree = reader.tree(given)
    try:
        name = dict(reader.plain(tree))["name"]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"expected a suite file with a name, got {given}") from None
    return Path(arguments.results) / str(name)


def _calibration(results: Results, asked: bool) -> tuple[tuple[Table, ...], tuple[Picture, ...]]:
    """Return what verdicts are worth; nothing if nobody asked and too few innocents can tell."""
    from bench.reports import drawings, tables
    from bench.reports.blocks import by_method
    from bench.verdicts import level

    groups = by_method(results.outline, results.records)
    if not asked and not level.decidable(results.outline, groups):
        return (), ()
    curve = drawings.roc_picture(groups)
    return tables.calibration(results.outline, groups), () if curve is None else (curve,)


def _compare_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", type=Path, help="folder of the old results")
    command.add_argument("head", type=Path, help="folder of the new results")
    for name in ("rate", "score", "utility"):
        text = f"how far the {name} of a cell may move for the worse (the table says the default)"
        command.add_argument(f"--{name}", type=float, help=text)


def compare_results(arguments: argparse.Namespace) -> int:
    """Print what moved between two results; 3 if for the worse, 4 if nothing can tell."""
    from bench.reports import compare

    base, head = bench.read(arguments.base), bench.read(arguments.head)
    given = {name: getattr(arguments, name) for name in ("rate", "score", "utility")}
    tolerance = compare.Tolerance(**{k: v for k, v in given.items() if v is not None})
    found = compare.compare(base, head, tolerance)
    console = wide_console()
    for made in (compare.table(found, head, tolerance), compare.by_method(found)):
        print_table(made, console)
    if found.outcome == "regressed":
        return WORSE
    return UNMEASURED if found.outcome == "not measured" else OK


def _verify_results_arguments(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "Exit status: 0 all that could be checked holds, 2 something to put right, 3 something "
        "does not hold, 4 nothing could be checked, or not all evidence and it is required."
    )
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    command.add_argument(
        "--evidence",
        choices=("if-there", "required"),
        default="if-there",
        help="required: exit 4 unless all evidence was held to the store it came from; if-there "
        "(default): where there is no store, verdicts and tables are recounted from the records",
    )


def verify_results(arguments: argparse.Namespace) -> int:
    """Print every record and row of a table that does not hold; 3 if there is one."""
    from bench.reports import audit

    checked = [row for folder in arguments.folders for row in audit.verify(folder)]
    unread = any(row.outcome == "does not hold" and not row.key for row in checked)
    recounts = [] if unread else [*map(_recount, arguments.folders)]
    for line in audit.lines(checked, recounts):
        print(line)
    outcomes = {row.outcome for row in checked}
    if "does not hold" in outcomes or any(found.wrong for found in recounts):
        return WORSE
    unheld = any(row.why in (audit.NO_STORE, audit.NO_STAGES) for row in checked)
    if arguments.evidence == "required" and (unheld or "holds" not in outcomes):
        return UNMEASURED
    return OK if "holds" in outcomes or any(found.tables for found in recounts) else UNMEASURED


def _recount(folder: Path) -> Recount:
    """Print the tables of a folder again, and those asked for by a flag where they lie there."""
    from bench.reports import audit

    if not (folder / "suite.json").is_file():
        return audit.recount(folder, ())
    results, flags = bench.read(folder), {"price": True}
    flags |= {flag: True for flag, file in BY_FLAG.items() if (folder / file).is_file()}
    made = [*bench.report(results)]
    for flag in flags:
        made += [one for one in bench.report(results, **{flag: True}) if one not in made]
    return audit.recount(folder, made)


def _leaderboard_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folders", nargs="+", type=Path, metavar="RESULTS")
    command.add_argument(
        "-o", "--output", type=Path, default=Path("site"), metavar="DIR", help="default: site"
    )


def write_leaderboard(arguments: argparse.Namespace) -> int:
    """Write a static site of all methods in some folders of results, with a page for each."""
    from bench.records.ledger import Results
    from bench.reports import page
    from bench.reports.board import entries, site

    submissions = []
    for folder in arguments.folders:
        entry, outline, records = entries.read(folder)
        made, pictures = _asked(Results(outline, records), folder, argparse.Namespace(**WHOLE))
        text = page.html(outline, records, made, pictures)
        submissions.append(site.Submission(entry, text, outline, records))
        told = ", ".join(f"{count} {outcome}" for outcome, count in entry.checked.items())
        print(f"{folder}: {how_many(len(entry.standings), 'row')} ({told})")
    *_, index = site.write(arguments.output, submissions)
    print(f"{index}: open it in a browser, no server needed")
    return OK


LEADERBOARD = Command(
    "leaderboard",
    "write a static site of all methods in folders of results",
    _leaderboard_arguments,
    write_leaderboard,
)
REPORT = Command(
    "report", "print the tables again, from the records alone", _report_arguments, show_report
)
COMPARE = Command(
    "compare",
    "say whether new results are worse than old ones",
    _compare_arguments,
    compare_results,
)
VERIFY_RESULTS = Command(
    "verify-results",
    "check records against outline and store, and tables against records",
    _verify_results_arguments,
    verify_results,
)
