"""Carry out what serves an owner: `bench protect` makes a key, `bench verify` reads a suspect."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.cli.parser import OK, Command, a_device, a_model, data_root, positive
from bench.records.nouns import UserError

if TYPE_CHECKING:
    from bench.data.settings import DataSettings
    from bench.records.nouns import Json


VERDICTS = {"owned": 0, "undecided": 3, "not owned": 1, "incompatible": 4}
"""Exit statuses of `verify`; with several keys the first of these that one of them came to."""

KEY, RELEASED = "key.safetensors", "model.safetensors"
"""The files that `protect` writes: what is kept secret and what goes out."""


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if len(set(names)) < len(names) or not all(re.fullmatch(r"\w[\w.-]*", n) for n in names):
        raise argparse.ArgumentTypeError(f"expected different names such as alice,bob, got {text}")
    return names


def _protect_arguments(command: argparse.ArgumentParser) -> None:
    a_model(command)
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
    data_root(command)
    a_device(command)


def protect_model(arguments: argparse.Namespace) -> int:
    """Protect a copy for every user, write each with its key, and say what to publish."""
    from bench.data import manifest
    from bench.models.weights import release
    from bench.registry import METHODS
    from bench.runs import claim
    from bench.runs.key import refuse_to_replace, write
    from bench.runs.machine import find_device
    from bench.runs.owners import load_owner
    from bench.suite.owners import owner_of
    from bench.suite.plan import weights_file

    spec = METHODS.spec(arguments.method, _settings(arguments.set))
    device = find_device(arguments.device)
    base = arguments.data or Path()
    settings = owner_of(
        arguments.model, arguments.weights, arguments.pretrained, arguments.image_size
    )
    homes = {user: arguments.output / user for user in arguments.users}
    for home in homes.values():
        for name in (KEY, RELEASED):
            refuse_to_replace(home / name)  # before the work, not after it
    owner = load_owner(settings, weights_file(settings, base) if settings.from_file else None)
    listed = manifest.read("images", _described(arguments.images, arguments.labels), base)
    pools = claim.owners_images(listed, owner.preprocess)
    keys, copies = {}, {}
    for user, home in homes.items():
        rng = claim.generator(arguments.seed, user)
        made = claim.protect(owner, spec, pools, rng, device, user)
        keys[user] = made.key
        if METHODS.get(spec.name).marks:
            copies[user] = home / RELEASED
            release(made.model, home / RELEASED)
        _print_lines(claim.advice(made, home / RELEASED))
    for user, key in keys.items():
        others = [copy for whose, copy in copies.items() if whose != user]
        key = claim.read_others(key, others, device)
        write(homes[user] / KEY, key)
        _print_lines(
            [
                ("key", f"{homes[user] / KEY}: keep it, and keep it secret"),
                ("commitment", key.commitment),
            ]
        )
    print(
        "Publish the commitment where somebody else vouches for the date, before the model goes "
        "out: a key made later can be fitted to anybody's model, and proves nothing."
    )
    return OK


def _described(images: str, labels: Literal["none", "sorted"]) -> DataSettings:
    from bench.data.settings import DataSettings

    embedded = {"photos": DataSettings("photos"), "digits": DataSettings("digits")}
    return embedded.get(images) or DataSettings("folder", path=images, labels=labels)


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


def _print_lines(lines: Sequence[tuple[str, str]]) -> None:
    for label, text in lines:
        print(f"{label:10} {text}")


def _verify_arguments(command: argparse.ArgumentParser) -> None:
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
    command.add_argument("--image-size", type=positive, help="its side, where not the library's")
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
    a_device(command)


def verify_suspect(arguments: argparse.Namespace) -> int:
    """Read a suspect and the innocents given with every key; the status is the verdict."""
    import dataclasses

    from bench.models.weights import load_suspect
    from bench.runs import claim
    from bench.runs.key import read_all
    from bench.runs.machine import find_device
    from bench.runs.owners import architecture_of
    from bench.suite.owners import owner_of
    from bench.verdicts.verdict import innocents_needed

    innocents_needed(arguments.alpha)  # refuses an alpha that is none
    keys = read_all(arguments.key, arguments.commitment)
    device = find_device(arguments.device)
    architecture = keys[0].owner
    if arguments.model is not None:
        architecture = architecture_of(owner_of(arguments.model, str(arguments.suspect), None))
    if arguments.image_size is not None:
        architecture = dataclasses.replace(architecture, image_size=arguments.image_size)
    strangers = claim.weight_files(arguments.strangers)
    descendants = claim.weight_files(arguments.descendants)
    loaded = load_suspect(arguments.suspect, architecture)
    suspect = claim.read(arguments.suspect.name, loaded, keys, device)
    findings = claim.judge(
        keys,
        suspect,
        [claim.read_file(file, keys, device) for file in strangers],
        [claim.read_file(file, keys, device) for file in descendants],
        arguments.alpha,
    )
    _print_lines([("suspect", claim.description(arguments.suspect.name, loaded))])
    if arguments.commitment is None:
        late = "without --commitment nothing shows that a key is older than the suspect"
        _print_lines([("note", late)])
    for found in findings:
        _print_lines(claim.sentences(found, arguments.alpha))
    if len(keys) > 1:
        best = claim.named(findings)
        who = "nobody" if best is None else best.key.user or best.key.commitment
        _print_lines([("named", who)])
    outcomes = {found.outcome for found in findings}
    return next(status for outcome, status in VERDICTS.items() if outcome in outcomes)


PROTECT = Command(
    "protect",
    "mark or fingerprint a model of yours and keep the key",
    _protect_arguments,
    protect_model,
)
VERIFY = Command(
    "verify",
    "say whether a suspect is the model a key was made for",
    _verify_arguments,
    verify_suspect,
)
