"""The command `bench`: find the command a line names, carry it out, and say what went wrong."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Sequence

from bench.cli.checking import CHECK
from bench.cli.claims.protecting import DESCENDANTS, PROTECT
from bench.cli.claims.verifying import TRACE, VERIFY
from bench.cli.looking import EXPLAIN, LIST, PERF, PROFILE
from bench.cli.parser import INTERRUPTED, OK, USERS_MISTAKE, Command, parser
from bench.cli.reporting import COMPARE, LEADERBOARD, REPORT, VERIFY_RESULTS
from bench.cli.running import PLAN, RUN, STORE, TUNE
from bench.cli.sampling import SAMPLE
from bench.cli.shell.beginning import INIT
from bench.cli.shell.completion import COMPLETION
from bench.cli.shell.schema import SCHEMA
from bench.records.nouns import Incompatible, UserError, shown

COMMANDS: tuple[Command, ...] = (
    *(RUN, PLAN, REPORT, LEADERBOARD, COMPARE, VERIFY_RESULTS, PERF, LIST, CHECK),
    *(PROFILE, PROTECT, DESCENDANTS, VERIFY, TRACE, STORE, SAMPLE, TUNE),
    *(EXPLAIN, INIT, SCHEMA, COMPLETION),
)
"""Every command, in the order of `bench --help`."""


PLAIN = {
    **dict.fromkeys("\u2014\u2013\u2212\u2500", "-"),
    **dict.fromkeys("\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", "#"),
    **{"\u00b7": ".", "\u2026": ".", "\u2022": "*", "\u00d7": "x", "\u2502": "|"},
    **{"\u2192": ">", "\u2265": ">", "\u2264": "<", "\u2248": "~"},
}
"""What stands for a sign on a terminal that has no other than letters, as wide as it was."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write what a stream's code has no sign for: by one that looks alike, else by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    written = (PLAIN.get(s) or s.encode("ascii", "backslashreplace").decode() for s in signs)
    return "".join(written), error.end


codecs.register_error("bench.plain", _plain)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files need be no text, and a terminal's code need not have our signs.
        with contextlib.suppress(OSError):  # a stream that already stands somewhere stays as it is
            sys.stdout.reconfigure(errors="bench.plain")
    arguments = parser(COMMANDS).parse_args(argv)
    try:
        status: int = arguments.carry_out(arguments)
    except (UserError, Incompatible) as error:
        print(f"bench: {shown(str(error))}", file=sys.stderr)
        return USERS_MISTAKE
    except BrokenPipeError:  # `bench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:  # a full disk, a folder nobody may write to
        told = f"{error.filename or 'system'}: {error.strerror or error}"
        print(f"bench: {shown(told)}", file=sys.stderr)
        return USERS_MISTAKE
    except KeyboardInterrupt:
        print("bench: interrupted; what was finished is kept, run again to go on", file=sys.stderr)
        return INTERRUPTED
    return status
