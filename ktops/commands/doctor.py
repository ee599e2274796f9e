"""`ktops doctor`: hold this machine against what a model needs, with the fix for what is wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from ktops.checkup.request import Request
from ktops.checkup.run import DEFAULT_TARGET, check_up
from ktops.checkup.targets import target_for
from ktops.commandline import output_of
from ktops.settings import load_settings
from ktops_doctor import LiveHost

__all__ = ["doctor", "target_for"]

EXAMPLES = (
    ("ktops doctor", "is it ready for the default model?"),
    ("ktops doctor --model demo", "is it ready for this one?"),
    ("ktops doctor --fix", "mend what can be mended; asks first"),
    ("ktops doctor --deep", "measure too, and read every file"),
    ("ktops doctor --only gpu,mem.total", "some checks, by topic or id"),
    ("ktops doctor -q", "the ids of the checks that fail"),
    ("ktops doctor --json", "everything, for a program"),
)


def doctor(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"Model to check for; default: the settings' default, else {DEFAULT_TARGET}.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="IDS", help="Checks to run, by id or topic (gpu)."),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="IDS", help="Checks to leave out.")
    ] = None,
    list_checks: Annotated[
        bool, typer.Option("--list-checks", help="List the checks; run none.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also run the checks that take long.")
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what is safe to mend and can be undone.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --fix: do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --fix: show it, do nothing.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as failures.")] = False,
) -> None:
    """Check this machine against what a model needs, with the fix for what is wrong.

    Exit status: 0 no failure, 1 a check or a repair failed, 2 usage, 3 a check crashed.
    """
    request = Request(
        model=model,
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        list_checks=list_checks,
        strict=strict,
        deep=deep,
        fix=fix,
        yes=yes,
        dry_run=dry_run,
    )
    status = check_up(request, output_of(ctx), load_settings, LiveHost)
    if status:
        raise typer.Exit(status)
