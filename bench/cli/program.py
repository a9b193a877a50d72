"""The command `bench`: run a suite, plan it, report on it, and look at what there is."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from bench.cli import looking, reporting, running
from bench.cli.checking import check_suite
from bench.cli.owning import protect_model, verify_suspect
from bench.cli.parser import OK, USERS_MISTAKE, Command, parser
from bench.records.nouns import Incompatible, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one line on stderr."""
    arguments = parser(COMMANDS).parse_args(argv)
    try:
        status: int = arguments.command(arguments)
    except (UserError, Incompatible) as error:
        print(f"bench: {error}", file=sys.stderr)
        return USERS_MISTAKE
    except BrokenPipeError:  # `bench list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:  # a full disk, a folder nobody may write to
        print(f"bench: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return USERS_MISTAKE
    except KeyboardInterrupt:
        print("bench: interrupted; what was finished is kept, run again to go on", file=sys.stderr)
        return 130
    return status


COMMANDS: Mapping[str, Command] = {
    "run": running.run_suite,
    "plan": running.show_plan,
    "report": reporting.show_report,
    "compare": reporting.compare_results,
    "verify-results": reporting.verify_results,
    "perf": looking.watch_speed,
    "list": looking.list_known,
    "check": check_suite,
    "profile": looking.profile_model,
    "protect": protect_model,
    "verify": verify_suspect,
    "store": running.show_store,
}
"""What carries out each command."""
