"""The `ktops` command: its table of commands, and the one border between failures and the user."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from ktops.commandline import CommandSpec, LazyGroup
from ktops.output import Output
from ktops.shell_completion import COMPLETE_VARIABLE, enable_completion
from ktops.usage_error import usage_error
from ktops_engine.errors import EXIT_FAILED, KtopsError
from ktops_engine.text import text

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

COMMANDS = (
    CommandSpec(
        "doctor",
        "Start here",
        "Check this machine, with the fix for what is wrong.",
        "ktops.commands.doctor:doctor",
    ),
    CommandSpec(
        "serve",
        "Start here",
        "Load a model and answer the OpenAI API.",
        "ktops.commands.serve:serve",
    ),
    CommandSpec(
        "chat", "Start here", "Talk to a model in this terminal.", "ktops.commands.chat:chat"
    ),
    CommandSpec(
        "download",
        "Operate",
        "Fetch a model, resumable, and prove that it is whole.",
        "ktops.commands.download:download",
    ),
    CommandSpec(
        "build",
        "Operate",
        "Build the native kernels for this machine.",
        "ktops.commands.build:build",
    ),
    CommandSpec(
        "config",
        "Operate",
        "Show and change the settings.",
        "ktops.commands.config:COMMANDS",
    ),
    CommandSpec(
        "models",
        "Inspect",
        "List the models ktops knows, and which are here.",
        "ktops.commands.models:models",
    ),
    CommandSpec(
        "top",
        "Inspect",
        "Watch a running server: speed, queue, memory.",
        "ktops.commands.top:top",
    ),
    CommandSpec(
        "plan",
        "Inspect",
        "Show what of a model goes where, and how fast it can be.",
        "ktops.commands.plan:plan",
    ),
    CommandSpec(
        "bench",
        "Inspect",
        "Measure how fast this machine computes.",
        "ktops.commands.bench:COMMANDS",
    ),
    CommandSpec(
        "eval",
        "Inspect",
        "Measure how well a model predicts a text, and compare runs.",
        "ktops.commands.eval:evaluate",
    ),
    CommandSpec(
        "env",
        "Inspect",
        "Describe this installation and machine, for a report.",
        "ktops.commands.env:env",
    ),
    CommandSpec("version", "Inspect", "Print the version.", "ktops.commands.version:version"),
    CommandSpec(
        "completion",
        "Inspect",
        "Print the completion script of a shell.",
        "ktops.commands.completion:completion",
    ),
)

EXAMPLES = (
    ("ktops doctor", "can this machine run DeepSeek-R1?"),
    ("ktops serve", "serve what is here, or the demo"),
    ("ktops serve r1-q4km --cpu-infer 65", "DeepSeek-R1, experts on 65 threads"),
    ("ktops chat", "talk to it in this terminal"),
)

EXIT_CODES = """\
0 done   1 failed   2 usage   3 partial, or a check crashed
4 the machine has not enough   130 interrupted   143 terminated"""


class Terminated(BaseException):
    """SIGTERM arrived: unwind like Ctrl-C, so that everything started is stopped."""


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit status. Every failure ends here, as a message."""
    output = Output.before_parsing(args)
    debug = "--debug" in args or os.environ.get("KTOPS_DEBUG", "") not in ("", "0")
    try:
        with _sigterm_unwinds():
            return _invoke(args)
    except KtopsError as error:
        _trace(output, debug)
        output.error(error)
        return error.exit_status
    except typer.TyperException as error:
        _trace(output, debug)
        output.error(usage_error(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        output.note()
        return EXIT_INTERRUPTED
    except Terminated:
        return EXIT_TERMINATED
    except BrokenPipeError:
        # Whoever read our output has left. Point stdout elsewhere, or its last flush complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - the border: a defect ends in a message too
        _trace(output, debug)
        output.error(_unexpected(error, args))
        return EXIT_FAILED


def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """From a bare Linux server to a served DeepSeek, in one command."""
    if version:
        from ktops.commands.version import version as print_version

        print_version(ctx)
        raise typer.Exit


def build_command() -> LazyGroup:
    """The whole command tree, nothing of it imported yet."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.callback(invoke_without_command=True)(root)
    plain: Any = typer.main.get_command(app)
    return LazyGroup(
        COMMANDS,
        examples=EXAMPLES,
        exit_codes=EXIT_CODES,
        name="ktops",
        help=plain.help,
        callback=plain.callback,
        params=plain.params,
        invoke_without_command=True,
    )


def _invoke(args: Sequence[str]) -> int:
    if os.environ.get(COMPLETE_VARIABLE):
        enable_completion()
    status = build_command().main(args=args, prog_name="ktops", standalone_mode=False)
    return status if isinstance(status, int) else 0


def _unexpected(error: Exception, args: Sequence[str]) -> KtopsError:
    """A defect, or a condition nobody foresaw. The arguments are left out: they may hold a key."""
    command = " ".join(["ktops", *args[:1]])
    kind, reason = type(error).__name__, " ".join(str(error).split())
    message = text("unexpected {kind}", kind=kind)
    if reason:
        message = text("unexpected {kind}: {reason}", kind=kind, reason=reason)
    hint = text(
        "KTOPS_DEBUG=1 {command} ...   (the same command again, with its traceback to report)",
        command=command,
    )
    return KtopsError("unexpected", message, hint)


def _trace(output: Output, debug: bool) -> None:
    if debug:
        import traceback

        output.traceback(traceback.format_exc())


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Turn SIGTERM into an exception on the main thread for the duration of a command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(signum: int, frame: object) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
