"""The `ktops` command, also as `python -m ktops`. Where it cannot start, the doctor still does."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; where a package that it needs is missing or broken, say so, and run
    `ktops doctor` without it."""
    if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs a checkout may have any Python
        found = ".".join(str(part) for part in sys.version_info[:3])
        sys.exit(
            f"error: ktops needs Python 3.11 to 3.13, and {sys.executable} is {found}\n"
            "  Fix: conda create -y -n ktops python=3.12"
        )
    try:
        from ktops.cli import main as command_line

        if sys.argv[1:2] == ["doctor"]:
            import pydantic  # noqa: F401 - typer reads options with it, and imports it only then
    except Exception as error:  # noqa: BLE001 - a broken package raises anything at its import
        from ktops.plain_doctor import run

        sys.exit(run(sys.argv[1:], error))
    command_line()


if __name__ == "__main__":
    main()
