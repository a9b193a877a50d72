"""Say what the command `bench` takes: its commands, their arguments, and what these name."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.suite.owners import OwnerSettings


Command = Callable[[argparse.Namespace], int]
"""What carries a command out and returns its exit status."""

OK, SOME_FAILED, USERS_MISTAKE = 0, 1, 2
"""Exit statuses: all cells ok, skipped or incompatible; some cell failed; the user's mistake."""


def parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return what reads the command line; `commands` carry out what it names."""
    made = argparse.ArgumentParser(
        prog="bench",
        description="Who owns this vision foundation model? Methods crossed with attacks.",
    )
    known = made.add_subparsers(required=True, metavar="COMMAND")
    for name, (text, arguments) in COMMANDS.items():
        command = known.add_parser(name, help=text, description=text)
        command.set_defaults(command=commands[name])
        arguments(command)
    return made


def _run(command: argparse.ArgumentParser) -> None:
    _a_suite(command)
    _a_device(command)
    command.add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help="processes (default): workers on this machine; ray: all GPUs of it, or a cluster",
    )
    command.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of a Ray cluster, auto for the one on this machine (default: Ray on this machine)",
    )
    command.add_argument(
        "--workers",
        type=_positive,
        help="stages carried out side by side (default: 1 on a GPU, else one per --threads cores; "
        "with ray, as many as the cluster has room for)",
    )
    command.add_argument(
        "--threads",
        type=_positive,
        default=1,
        help="CPU threads of one stage; evidence is repeatable for equal numbers (default 1)",
    )
    command.add_argument(
        "--compile",
        action="store_true",
        help="run transformer blocks through torch.compile: the last digits of evidence may "
        "differ, and records say so (meant for GPUs; on a CPU it made DeiT-Tiny slower)",
    )
    command.add_argument(
        "--drop-copies",
        action="store_true",
        help="delete the weights of an attacked copy as soon as no cell of this suite needs them: "
        "less disk, and records are as ever; a later suite makes again what it needs; two runs at "
        "once on one store drop nothing",
    )


def _plan(command: argparse.ArgumentParser) -> None:
    _a_suite(command)
    command.add_argument(
        "--device",
        metavar="NAME",
        help="estimate for a device that is not here, by what is declared of it (a100-80gb ...); "
        "default: by what was measured here",
    )


def _report(command: argparse.ArgumentParser) -> None:
    command.add_argument("suite", type=Path, help="suite file, or the folder of its results")
    command.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    formats = ("terminal", "markdown", "latex", "csv", "html")
    command.add_argument("--format", choices=formats, default="terminal")
    command.add_argument(
        "--reference", action="store_true", help="the paper's printed figures beside ours, too"
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


def _compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("base", type=Path, help="folder of the old results")
    command.add_argument("head", type=Path, help="folder of the new results")
    for name in ("rate", "score", "utility"):
        text = f"how far the {name} of a cell may move for the worse (the table says the default)"
        command.add_argument(f"--{name}", type=float, help=text)


def _verify_results(command: argparse.ArgumentParser) -> None:
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")


def _perf(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "Exit status with --check: 0 all holds, 2 something to put right in the command, 3 "
        "something is worse, 4 something could not be measured."
    )
    given = command.add_mutually_exclusive_group()
    given.add_argument("--check", action="store_true", help="hold counts and times to the baseline")
    given.add_argument("--update", action="store_true", help="make what is measured the baseline")
    command.add_argument(
        "--base", metavar="REV", help="with --check: time this revision in turns with the tree, too"
    )
    command.add_argument(
        "--workloads",
        type=Path,
        nargs="+",
        default=[Path("tests/perf/workloads.py")],
        metavar="FILE",
        help="Python files that list WORKLOADS (default: tests/perf/workloads.py)",
    )
    command.add_argument(
        "--baseline",
        type=Path,
        default=Path("results/perf/baseline.json"),
        metavar="FILE",
        help="default: results/perf/baseline.json",
    )
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")


def _list(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", choices=("methods", "attacks", "models", "data"))
    command.add_argument("--format", choices=("terminal", "markdown"), default="terminal")


def _check(command: argparse.ArgumentParser) -> None:
    _a_suite(command)
    command.add_argument(
        "--download",
        action="store_true",
        help="fetch what its publisher lets anybody fetch: weights from the hub, Oxford-IIIT Pet",
    )


def _profile(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="mini or LIBRARY:NAME, see `bench list models`")
    command.add_argument("--weights", default="hub", help="hub (default), random or a file")
    command.add_argument("--pretrained", help="open_clip's tag, for weights from the hub")
    command.add_argument("--images", default="photos", help="photos (default) or a folder")
    command.add_argument(
        "--count", type=int, default=100, help="images (default 100, as the paper)"
    )
    command.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where to write the table, too"
    )
    _data_root(command)
    _a_device(command)


def _protect(command: argparse.ArgumentParser) -> None:
    _a_model(command)
    command.add_argument("--method", required=True, help="see `bench list methods`")
    command.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="settings of the method",
    )
    command.add_argument(
        "--images", required=True, help="your images: a folder, or the embedded photos or digits"
    )
    command.add_argument(
        "--labels",
        choices=("none", "sorted"),
        default="none",
        help="sorted: the files of a flat folder show one class each, in the order of their names",
    )
    command.add_argument(
        "--users", type=_names, default=("",), metavar="A,B", help="a copy and a key for each"
    )
    command.add_argument(
        "--seed",
        type=int,
        help="to repeat a trial; a secret is no safer than its seed (default: unpredictable)",
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    _data_root(command)
    _a_device(command)


def _verify(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        "Exit status: 0 owned (with several keys: by one of them), 1 not owned, 2 something to put "
        "right, 3 undecided, 4 incompatible: no key can read this suspect."
    )
    command.add_argument("suspect", type=Path, help="its weights: safetensors, or a state dict")
    command.add_argument(
        "--key", type=Path, nargs="+", required=True, metavar="FILE", help="one for each user"
    )
    command.add_argument(
        "--commitment", nargs="+", metavar="HEX", help="what was published, of every key"
    )
    command.add_argument("--model", help="the suspect's architecture (default: the owner's)")
    command.add_argument("--image-size", type=_positive, help="its side, where not the library's")
    command.add_argument(
        "--strangers", type=Path, metavar="DIR", help="models that never met the owner's"
    )
    command.add_argument(
        "--descendants",
        type=Path,
        metavar="DIR",
        help="for a mark: finetuned copies of the clean owner, and the clean owner itself",
    )
    command.add_argument("--alpha", type=float, default=0.05, help="level of the verdict (0.05)")
    _a_device(command)


def _store(command: argparse.ArgumentParser) -> None:
    command.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    command.add_argument(
        "--collect",
        nargs="+",
        type=Path,
        metavar="SUITE",
        help="remove every artefact that none of these suites uses",
    )
    _data_root(command)


def _a_suite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", type=Path, help="suite file, e.g. suites/demo.yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    _data_root(parser)


def _a_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="mini or LIBRARY:NAME, see `bench list models`")
    parser.add_argument("--weights", default="hub", help="hub (default), random or a file")
    parser.add_argument("--pretrained", help="open_clip's tag, for weights from the hub")
    parser.add_argument("--image-size", type=_positive, help="its side, where not the library's")


def _data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("BENCH_DATA") or None,
        metavar="DIR",
        help="where relative paths of data and weights start (default: BENCH_DATA)",
    )


def _a_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 ...")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if len(set(names)) < len(names) or not all(re.fullmatch(r"\w[\w.-]*", n) for n in names):
        raise argparse.ArgumentTypeError(f"expected different names such as alice,bob, got {text}")
    return names


def owner_of(
    text: str, weights: str, pretrained: str | None, image_size: int | None = None
) -> OwnerSettings:
    """Return the model that LIBRARY:NAME names, as a suite would have it."""
    from bench.models.libraries import EMBEDDED
    from bench.records.settings import settings
    from bench.suite.owners import OwnerSettings

    library, _, name = text.rpartition(":")
    value = {"library": library or EMBEDDED, "name": name, "weights": weights}
    given = {"pretrained": pretrained, "image_size": image_size}
    return settings(OwnerSettings, value | {k: v for k, v in given.items() if v is not None})


COMMANDS: Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "run": ("answer every cell of a suite and print its tables", _run),
    "plan": ("say what a run would do, what is there, what it costs", _plan),
    "report": ("print the tables again, from the records alone", _report),
    "compare": ("say whether new results are worse than old ones", _compare),
    "verify-results": ("check records against outline and store", _verify_results),
    "perf": ("measure the speed of watched work; --check fails where it is worse", _perf),
    "list": ("list methods, attacks, models or embedded data", _list),
    "check": ("say line by line what a suite needs, and how to get it", _check),
    "profile": ("measure the activations of every block of a model", _profile),
    "protect": ("mark or fingerprint a model of yours and keep the key", _protect),
    "verify": ("say whether a suspect is the model a key was made for", _verify),
    "store": ("list what the store holds; --collect frees what no suite uses", _store),
}
"""What each command is for, and what gives its parser the arguments."""
