"""Say what a command is, read the line that names one, and give commands what they share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bench.records.settings import nearest, suggestion

OK, SOME_FAILED, USERS_MISTAKE = 0, 1, 2
"""Exit statuses: all cells ok, skipped or incompatible; some cell failed; the user's mistake."""

INTERRUPTED = 130
"""The exit status of a command that was interrupted, as shells have it."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its name, what it is for, what it takes, and what carries it out.

    `arguments` gives them to a parser; `carry_out` returns the exit status.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    carry_out: Callable[[argparse.Namespace], int]


CHOICE = re.compile(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)")
"""How the library says that a word is none of those it knows."""


class _Parser(argparse.ArgumentParser):
    """Refuses a line in one line, and says what may have been meant.

    No flag may be shortened: one that is added later would change what a line in a script means.
    """

    def __init__(self, **named: object) -> None:
        super().__init__(**{"allow_abbrev": False, **named})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, the nearest word there is, and where all are listed."""
        if given := CHOICE.search(message):
            what, word, known = given[1], given[2], re.findall(r"[^\s',]+", given[3])
            message = f"no {what} '{word}'{suggestion(word, known)}"
        elif unknown := message.partition("unrecognized arguments: ")[2]:
            word = unknown.split()[0].partition("=")[0]
            message = f"no argument '{unknown}'{nearest(word, [*self._option_string_actions])}"
        print(f"{self.prog}: {message}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(USERS_MISTAKE)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse what a command does not know in the command's own name, not in that of all."""
        known, others = super().parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return known, others


class _Version(argparse.Action):
    """Print the version; which it is is looked up only if somebody asks."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib import metadata

        print(f"{parser.prog} {metadata.version('vfm-ownership-bench')}")
        raise SystemExit(OK)


def parser(commands: Iterable[Command]) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = _Parser(
        prog="bench",
        description="Who owns this vision foundation model? Methods crossed with attacks.",
    )
    made.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    known, listed = made.add_subparsers(required=True, metavar="COMMAND"), tuple(commands)
    for command in listed:
        takes = known.add_parser(command.name, help=command.help, description=command.help)
        takes.set_defaults(carry_out=command.carry_out, commands=listed)
        command.arguments(takes)
    return made


OURS = Path(__file__).parents[2] / "suites"
"""The suites that come with the program."""


def suite_file(text: str) -> Path:
    """Return the file of a suite; one that comes with the program may be called by its name."""
    if not re.fullmatch(r"\w[\w-]*", text) or Path(text).exists():
        return Path(text)
    ours = {path.stem: path for path in sorted(OURS.glob("*.yaml"))}
    if text not in ours:
        raise argparse.ArgumentTypeError(f"no suite '{text}'{suggestion(text, ours)}")
    return ours[text]


def a_suite(parser: argparse.ArgumentParser) -> None:
    """Take a suite, and where its results and its data lie."""
    parser.add_argument(
        "suite", type=suite_file, help="suite file, or the name of one that comes with it: demo"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    data_root(parser)


def a_model(parser: argparse.ArgumentParser) -> None:
    """Take a model and its weights."""
    parser.add_argument("model", help="mini or LIBRARY:NAME, see `bench list models`")
    parser.add_argument("--weights", default="hub", help="hub (default), random or a file")
    which_weights(parser)
    parser.add_argument("--image-size", type=positive, help="its side, where not the library's")


def which_weights(parser: argparse.ArgumentParser) -> None:
    """Take what says more of weights than where they lie."""
    parser.add_argument("--pretrained", help="open_clip's tag, of a file's weights, too")
    parser.add_argument(
        "--entry", help="which of several sets of weights in a file, such as state_dict"
    )


def data_root(parser: argparse.ArgumentParser) -> None:
    """Take the folder where relative paths start."""
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("BENCH_DATA") or None,
        metavar="DIR",
        help="where relative paths of data and weights start (default: BENCH_DATA)",
    )


def a_device(parser: argparse.ArgumentParser) -> None:
    """Take the device to work on."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 ...")


def threads(parser: argparse.ArgumentParser) -> None:
    """Take how many threads a command of one owner's may work with."""
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: all cores there are)"
    )


def positive(text: str) -> int:
    """Read a number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got '{text}'") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def taken(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return what a line says under these names, as a function takes it."""
    return {name: getattr(arguments, name) for name in names}


def owners_labels(parser: argparse.ArgumentParser) -> None:
    """Take how a flat folder of the owner's images shows its labels."""
    parser.add_argument(
        "--labels",
        choices=("none", "sorted"),
        default="none",
        help="sorted: the files of a flat folder show one class each, in the order of their names",
    )


def pin(arguments: argparse.Namespace) -> None:
    """Work with so many threads, where a number was given."""
    if arguments.threads is not None:
        from bench.runs.machine import pin_threads

        pin_threads(arguments.threads)


def print_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Print lines of a label and a text."""
    for label, text in lines:
        print(f"{label:10} {text}")
