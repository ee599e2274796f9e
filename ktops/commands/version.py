"""`ktops version`: which ktops this is."""

from __future__ import annotations

import platform

import typer

from ktops.commandline import output_of

EXAMPLES = (
    ("ktops version", ""),
    ("ktops version -q", "the bare number"),
    ("ktops version --json", "with the version of Python"),
)


def version(ctx: typer.Context) -> None:
    """Print the version of ktops."""
    number = ktops_version()
    output_of(ctx).result(
        {"ktops": number, "python": platform.python_version()},
        human=[f"ktops {number}"],
        quiet=[number],
    )


def ktops_version() -> str:
    """The version of the installed distribution; "unknown" when ktops runs from bare sources."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed_version

    try:
        return installed_version("ktops")
    except PackageNotFoundError:
        return "unknown"
