"""`ktops doctor` for a machine on which the command line itself does not start.

typer or another package that ktops needs is missing or broken. The doctor needs Python alone, so it
runs all the same: argparse in front, the same checks, the same report.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ktops.checkup.request import Request
from ktops.checkup.run import check_up
from ktops.language import Language
from ktops.output import Output
from ktops.settings import load_settings
from ktops_doctor import LiveHost
from ktops_engine.errors import EXIT_FAILED, KtopsError
from ktops_engine.text import text

_FLAGS = ("list-checks", "strict", "deep", "fix", "dry-run")


def run(args: Sequence[str], broken: BaseException) -> int:
    """Do `ktops ARGS` as far as it is the doctor's; `broken` is why there is no command line."""
    output = Output.before_parsing(args)
    reason = text("{kind}: {reason}", kind=type(broken).__name__, reason=str(broken))
    try:
        if args[:1] != ["doctor"]:
            raise KtopsError(
                "broken-installation",
                text("ktops does not start on this Python ({reason})", reason=reason),
                "ktops doctor",
            )
        output.warn(text("only the doctor runs on this Python ({reason})", reason=reason))
        return check_up(_request(args[1:]), output, load_settings, LiveHost)
    except KtopsError as error:
        output.error(error)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _request(args: Sequence[str]) -> Request:
    parser = argparse.ArgumentParser(prog="ktops doctor", allow_abbrev=False)
    parser.add_argument("--model")
    for name in ("--only", "--skip"):
        parser.add_argument(name, action="append", default=[], metavar="IDS")
    for name in _FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--yes", "-y", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quiet", "-q", action="store_true")
    parser.add_argument("--no-color", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--lang", choices=list(Language))
    given = parser.parse_args(args)
    return Request(
        model=given.model,
        only=tuple(given.only),
        skip=tuple(given.skip),
        list_checks=given.list_checks,
        strict=given.strict,
        deep=given.deep,
        fix=given.fix,
        yes=given.yes,
        dry_run=given.dry_run,
    )
