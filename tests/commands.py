"""Run `bench` within a test and catch what it says; a suite small enough to be run for real."""

import contextlib
import io
from typing import NamedTuple

from bench.cli import main

SUITE = """
name: tiny
owners:
  - {embedded: mini}
methods:
  - {name: activemark, steps: 2, batch: 4, images: 4, encoder_hidden: 16, decoder_hidden: 16}
attacks:
  - {name: control.identity}
  - {name: prune.l1, amount: 0.4}
data:
  digits: {max_images: 40}
  photos: {max_images: 24}
owner_images: photos
probe: digits
innocents: {strangers: 1, twin_seeds: 1, pretraining_steps: 1}
"""


class Said(NamedTuple):
    status: int
    out: str
    err: str


def bench(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(a) for a in arguments])
    return Said(status, out.getvalue(), err.getvalue())
