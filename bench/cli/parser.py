"""Say what a command is, read the line that names one, and give commands what they share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

OK, SOME_FAILED, USERS_MISTAKE = 0, 1, 2
"""Exit statuses: all cells ok, skipped or incompatible; some cell failed; the user's mistake."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its name, what it is for, what it takes, and what carries it out.

    `arguments` gives them to a parser; `carry_out` returns the exit status.
    """

    name: str
    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    carry_out: Callable[[argparse.Namespace], int]


def parser(commands: Iterable[Command]) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(
        prog="bench",
        description="Who owns this vision foundation model? Methods crossed with attacks.",
    )
    known = made.add_subparsers(required=True, metavar="COMMAND")
    for command in commands:
        takes = known.add_parser(command.name, help=command.help, description=command.help)
        takes.set_defaults(carry_out=command.carry_out)
        command.arguments(takes)
    return made


def a_suite(parser: argparse.ArgumentParser) -> None:
    """Take a suite, and where its results and its data lie."""
    parser.add_argument("suite", type=Path, help="suite file, e.g. suites/demo.yaml")
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


def positive(text: str) -> int:
    """Read a number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number
