"""Holds what `--json` prints against the schemas that ktops ships."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from ktops.cli import build_command

ERROR = "error"


def command_names() -> list[str]:
    """Every command that does something, its words joined by dashes: "env", "config-show"."""

    def walk(group: Any, prefix: str) -> Iterator[str]:
        for name in group.list_commands(None):
            command = group.get_command(None, name)
            if hasattr(command, "list_commands"):
                yield from walk(command, f"{prefix}{name}-")
            else:
                yield f"{prefix}{name}"

    return list(walk(build_command(), ""))


def schema_names() -> set[str]:
    """The schemas there are."""
    names = (entry.name for entry in files("ktops").joinpath("schemas").iterdir())
    return {name.removesuffix(".json") for name in names if name.endswith(".json")}


@cache
def schema(name: str) -> dict[str, Any]:
    """The schema of a command, or "error"."""
    path = files("ktops").joinpath("schemas", f"{name}.json")
    return json.loads(path.read_text(encoding="utf-8"))


def command_of(args: Sequence[str]) -> str | None:
    """The command that a command line runs; None when it names none."""
    group, words = build_command(), []
    for arg in args:
        if arg not in group.list_commands(None):
            continue
        words.append(arg)
        group = group.get_command(None, arg)
        if not hasattr(group, "list_commands"):
            return "-".join(words)
    return "version" if "--version" in args else None


def documents(stdout: str) -> list[Any]:
    """The JSON documents of an output: one over several lines, or one a line, or both."""
    decoder, found, rest = json.JSONDecoder(), [], stdout.strip()
    while rest:
        document, end = decoder.raw_decode(rest)
        found.append(document)
        rest = rest[end:].strip()
    return found


def check(command: str, document: Any) -> None:
    """Fail unless `document` is what `command` may print: its own form, or an error."""
    name = ERROR if isinstance(document, dict) and "error" in document else command
    error = best_match(Draft202012Validator(schema(name)).iter_errors(document))
    if error is not None:
        where = f"{command} --json against {name}.json at {error.json_path}"
        raise AssertionError(f"{where}: {error.message[:1000]}\n{str(document)[:2000]}")


def check_output(args: Sequence[str], stdout: str) -> None:
    """Check everything that a command line with --json printed; without --json do nothing."""
    if "--json" not in args or "--help" in args or "-h" in args:
        return
    command = command_of(args) or ERROR
    if command in schema_names():  # another test names the commands that have none
        for document in documents(stdout):
            check(command, document)
