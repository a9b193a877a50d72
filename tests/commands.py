"""Run `bench` within a test and catch what it says."""

import contextlib
import io
from typing import NamedTuple

from bench.cli import main


class Said(NamedTuple):
    status: int
    out: str
    err: str


def bench(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(a) for a in arguments])
    return Said(status, out.getvalue(), err.getvalue())
