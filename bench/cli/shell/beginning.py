"""Carry out `bench init`: write a first suite for a model and a folder of images, with comments."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.parser import OK, Command, positive, which_weights
from bench.data.settings import EMBEDDED
from bench.records.files import write_atomically
from bench.records.nouns import UserError

if TYPE_CHECKING:
    from bench.suite.owners import OwnerSettings

SUITE = """\
# What is asked: every method of every owner, after every attack. `bench check {file}` says what it
# needs, `bench plan {file}` what it will cost, `bench run {file}` answers it.
name: {name}

owners:
  - {owner}
    # What fingerprints ask for labels; a model with a classifier of its own needs none of it.
    classifier: {{data: digits}}

methods:                          # `bench list methods`; `bench explain NAME` for settings
  # A fingerprint by labels: the model stays as it is. Its authors ask 100 points, 1000 iterations.
  - {{name: ipguard, points: 30, iterations: 100, lr: 0.01}}
  - {{name: cka}}                   # a fingerprint by features

attacks:                          # `bench list attacks`; a list of several is done in turn
  - {{name: control.identity}}      # the model as it is
  - {{name: finetune.classify, data: digits, epochs: 3}}
  - {{name: prune.l1, amount: 0.4}}

data:
  mine: {mine}
  digits: {{}}                      # embedded: what thieves finetune on, and what is probed

owner_images: mine                # yours: they are split, and thieves never see them
probe: digits                     # labelled: how useful a stolen model still is

innocents:
  strangers: 3                    # 19 are needed for a verdict at alpha = 0.05
  twin_seeds: 1
alpha: 0.05
"""


def suite_text(name: str, file: Path, owner: str, images: str) -> str:
    """Return the text of a suite; `owner` is the owner as a mapping in one line."""
    if images in EMBEDDED and not Path(images).is_dir():  # a folder of yours comes first
        mine = f"{{loader: {images}, max_images: 256}}   # embedded; loader: folder, path: FOLDER"
    else:
        folder = json.dumps(str(Path(images).resolve()), ensure_ascii=False)
        mine = f"{{loader: folder, path: {folder}, max_images: 256}}"
    return SUITE.format(name=name, file=file, owner=owner, mine=mine)


def _owner(arguments: argparse.Namespace) -> str:
    """Write an owner as suites do; refuse one that there is not."""
    from bench.suite.owners import owner_of

    model, weights = arguments.model, arguments.weights
    file = weights if weights in ("hub", "random") else str(Path(weights).resolve())
    made = owner_of(model, file, arguments.pretrained, arguments.image_size, arguments.entry)
    lines = [f"{made.library}: {json.dumps(made.name, ensure_ascii=False)}"]
    if weights != "hub":
        lines.append(f"weights: {json.dumps(file)}")
    if arguments.pretrained:
        lines.append(f"pretrained: {json.dumps(arguments.pretrained)}")
    if arguments.entry:
        lines.append(f"entry: {json.dumps(arguments.entry)}")
    size = arguments.image_size
    if not size and weights not in ("hub", "random"):
        size = _size_of_images(made, Path(file))
    if size:
        lines.append(f"image_size: {size}")
    return "\n    ".join(lines)


def _size_of_images(owner: OwnerSettings, file: Path) -> int | None:
    """Return the side of the images that a file's positions are of, where not the library's own."""
    from bench.models.weights import load_weights
    from bench.runs.owners import architecture_of

    size = load_weights(file, architecture_of(owner), owner.entry).image_size
    if size:
        print(f"{file.name}: its positions are of images of {size} pixels; so is the owner")
    return size


def _arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="mini or LIBRARY:NAME, see `bench list models`")
    command.add_argument("folder", help="your images: a folder, or the embedded photos or digits")
    command.add_argument("--weights", default="hub", help="hub (default), random or a file")
    which_weights(command)
    command.add_argument(
        "--image-size", type=positive, help="its side in pixels, where not the library's own"
    )
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: the folder's name, as .yaml"
    )


def write_suite(arguments: argparse.Namespace) -> int:
    """Write a suite where there is none yet, and say what to do with it."""
    from bench.data.settings import described

    images: str = arguments.folder
    if described(images).path and not Path(images).is_dir():
        raise UserError(f"expected a folder of images, photos or digits, got {images}")
    name = re.sub(r"[^\w.-]|^\W", "_", Path(images).resolve().name) or "mine"
    file: Path = arguments.output or Path(f"{name}.yaml")
    if file.exists():
        raise UserError(f"expected no file yet at {file}, found one; choose another with -o")
    write_atomically(file, suite_text(name, file, _owner(arguments), images).encode())
    print(f"{file}: next, bench check {file}")
    return OK


INIT = Command("init", "write a first suite for your model and images", _arguments, write_suite)
