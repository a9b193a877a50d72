"""Carry out `bench protect`, which makes a key, and `bench descendants`, which makes innocents."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import bench
from bench.cli import progress
from bench.cli.parser import (
    OK,
    Command,
    a_device,
    a_model,
    data_root,
    owners_labels,
    pin,
    positive,
    print_lines,
    taken,
    threads,
)
from bench.models.libraries import LIBRARIES
from bench.records.nouns import UserError, how_many
from bench.records.table import wide_console
from bench.verdicts.exact.coins import log10_p, p_text

if TYPE_CHECKING:
    from bench.records.nouns import Json
    from bench.runs.claims.making import Claim


OF_A_MODEL = ("weights", "pretrained", "entry", "image_size", "labels", "data", "device")
"""What a line says of an owner's model and images, beside which these are."""


def _protect_arguments(command: argparse.ArgumentParser) -> None:
    a_model(command)
    command.add_argument("--method", help="see `bench list methods`")
    command.add_argument(
        "--copy-of",
        type=Path,
        metavar="KEY",
        help="make copies of this key's claim instead, for --users that are numbers",
    )
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
    owners_labels(command)
    command.add_argument(
        "--users",
        type=lambda text: text.split(","),
        default=[""],
        metavar="A,B",
        help="a copy and a key for each",
    )
    command.add_argument(
        "--seed",
        type=int,
        help="to repeat a trial; a secret is no safer than its seed (default: unpredictable)",
    )
    command.add_argument(
        "--registry",
        type=Path,
        metavar="FILE",
        help="register an intent before the key is drawn, from its nonce, and the key after",
    )
    command.add_argument("--holder", default="", help="with --registry: in whose name")
    command.add_argument(
        "--alpha",
        type=float,
        default=0.05,
        help="with --registry: the level that the key is bound to (0.05)",
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    data_root(command)
    a_device(command)
    threads(command)


def protect_model(arguments: argparse.Namespace) -> int:
    """Protect a copy for every user, write each with its key, and say what to publish."""
    pin(arguments)
    given = taken(arguments, "users", *OF_A_MODEL)
    given["watch"] = lambda made: print_lines(advice(made))
    model, images, output = arguments.model, arguments.images, arguments.output
    named = taken(arguments, "seed", "registry", "holder", "alpha")
    settings = _settings(arguments.set)
    if arguments.copy_of is None:
        if arguments.method is None:
            raise UserError("expected --method NAME, or --copy-of KEY, got neither")
        how = {**given, **named, "settings": settings}
        make = functools.partial(bench.protect, model, arguments.method, images, output, **how)
    else:
        if arguments.method or settings or arguments.seed is not None or arguments.registry:
            raise UserError("--copy-of: expected no --method, --set, --seed or --registry with it")
        make = functools.partial(bench.copies, model, arguments.copy_of, images, output, **given)
    with progress.working(f"protecting {model}", wide_console()):
        claims = make()
    for made in claims:
        kept = f"{made.key_file}: keep it, and keep it secret"
        print_lines([("key", kept), ("commitment", made.key.commitment)])
    print(
        "Publish the commitment where somebody else vouches for the date, before the model goes "
        "out: a key made later can be fitted to anybody's model, and proves nothing."
    )
    return OK


def _settings(texts: Sequence[str]) -> dict[str, Json]:
    """Read NAME=VALUE: a value is JSON where it can be, else the text itself."""
    import json

    found: dict[str, Json] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set: expected NAME=VALUE, got '{text}'")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def advice(made: Claim) -> list[tuple[str, str]]:
    """Say what was made and what the key reads, off the released model and off the clean one."""
    key, lines = made.key, []
    marks = made.model_file is not None
    if key.user:
        lines.append(("user", key.user))
    if marks:
        line = LIBRARIES.get(key.owner.library).in_python(key.owner)
        how = f" (load_state_dict of {line})" if line else ""
        lines.append(("model", f"{made.model_file}: to be released{how}"))
    else:
        lines.append(("model", f"{key.method.name} is a fingerprint: the model stays as it is"))
    rule = f"by the paper's own rule, {made.released.rule.text}"
    clean = f"; off the clean owner {made.clean.rate:.3f}" if marks else ""
    lines.append(("rate", f"{made.released.rate:.3f} of the secret read back {rule}{clean}"))
    if made.released.null is not None:
        both = p_text(log10_p(made.released)), p_text(log10_p(made.clean))
        text = "{} of the released copy, {} of the clean owner: exact, no innocents needed"
        lines.append(("p-value", text.format(*both)))
    if made.released.rate <= 0.5:
        lines.append(("note", "the rule fails on most of the secret: give it more steps"))
    if marks and made.clean.rate > 0.5:
        fits = "this key also fits the unmarked model: it shows which base a suspect comes from "
        lines.append(("note", f"{fits}rather than that the released copy was taken"))
    return lines


PROTECT = Command(
    "protect",
    "mark or fingerprint a model of yours and keep the key",
    _protect_arguments,
    protect_model,
)


def _descendants_arguments(command: argparse.ArgumentParser) -> None:
    a_model(command)
    command.add_argument(
        "--images",
        default="digits",
        help="labelled ones to finetune on: a folder, or the embedded digits (the default)",
    )
    owners_labels(command)
    command.add_argument(
        "--max-images", type=positive, default=256, metavar="N", help="of these at most (256)"
    )
    command.add_argument("--seed", type=int, default=0, help="of every recipe's randomness (0)")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    data_root(command)
    a_device(command)
    threads(command)


def make_descendants(arguments: argparse.Namespace) -> int:
    """Write what honest users make of the clean model, for `verify --descendants`."""
    pin(arguments)
    with progress.working(f"making descendants of {arguments.model}", wide_console()):
        made = bench.descendants(
            arguments.model,
            arguments.output,
            **taken(arguments, "images", "max_images", "seed", *OF_A_MODEL),
            watch=lambda path: print_lines([("innocent", str(path))]),
        )
    print(f"{how_many(len(made), 'innocent')}: bench verify ... --descendants {arguments.output}")
    return OK


DESCENDANTS = Command(
    "descendants",
    "make what honest users turn a clean model of yours into: innocents for `verify`",
    _descendants_arguments,
    make_descendants,
)
