"""Edits one setting in the user's config.toml and leaves every other line as it is.

The file is flat `name = value` TOML. Statements and comments are found by asking tomllib what a
piece of text means, so quoted names, multi-line strings and a '#' inside a text need no rules here.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import tomllib
from pathlib import Path

from ktops.settings import read_config_text
from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

_GROUP_AND_OTHERS = 0o077


def write_setting(path: Path, name: str, value: object, *, secret: bool = False) -> bool:
    """Give the setting `name` a value in the file at `path`, or remove it when `value` is None.

    The file is replaced in one step, a symbolic link kept; a new file, and one that receives a
    `secret`, is readable by its owner alone. Returns whether the file changed. Raises KtopsError
    "invalid-config" (the file is not TOML), "invalid-setting" (no TOML text can hold the value) or
    "config-not-written".
    """
    old, values = read_config_text(path)
    new = edit_setting(old, name, value)
    if new != old:
        expected = {key: kept for key, kept in values.items() if key != name}
        if value is not None:
            expected[name] = _plain(value)
        if tomllib.loads(new) != expected:
            reason = text("the line of {name!r} would change what other lines mean", name=name)
            hint = text("change {name!r} in {path} by hand", name=name, path=path)
            raise _not_written(path, reason, hint)
        _replace(path, new.encode("utf-8"), secret=secret)
    return new != old


def edit_setting(content: str, name: str, value: object) -> str:
    """TOML text with the setting `name` changed, appended, or removed when `value` is None.

    A comment behind the value stays where it is; one that stands above a removed line stays too.
    """
    new_line = None if value is None else f"{name} = {_literal(name, value)}"
    statements = _statements(content)
    for index, statement in enumerate(statements):
        if name in tomllib.loads(statement):
            if new_line is None:
                del statements[index]
            else:
                statements[index] = _indent(statement) + new_line + _tail(statement)
            return "".join(statements)
    if new_line is None:
        return content
    end = "\r\n" if "\r\n" in content else "\n"
    gap = end if content and not content.endswith("\n") else ""
    return f"{content}{gap}{new_line}{end}"


def _statements(content: str) -> list[str]:
    """`content` cut behind each line that ends a TOML statement; joined, the pieces are it."""
    pieces = []
    piece = ""
    for line in content.split("\n"):
        piece += line
        if _meaning(piece) is None:  # a multi-line value goes on
            piece += "\n"
            continue
        pieces.append(piece + "\n")
        piece = ""
    pieces[-1] = pieces[-1].removesuffix("\n")
    return pieces


def _meaning(piece: str) -> dict[str, object] | None:
    # A carriage return is an end of line only with the line feed that was cut away.
    try:
        return tomllib.loads(piece.removesuffix("\r"))
    except tomllib.TOMLDecodeError:
        return None


def _indent(statement: str) -> str:
    return statement[: len(statement) - len(statement.lstrip(" \t"))]


def _tail(statement: str) -> str:
    """What follows the value: blanks, a comment, the end of the line."""
    whole = _meaning(statement)
    end = len(statement)
    for position, char in enumerate(statement):
        if char == "#" and _meaning(statement[:position]) == whole:
            end = position
            break
    return statement[len(statement[:end].rstrip()) :]


def _plain(value: object) -> str | int:
    return value if isinstance(value, int) else str(value)


def _literal(name: str, value: object) -> str:
    """`value` as TOML: a number, or a basic string on one line."""
    plain = _plain(value)
    if isinstance(plain, int):
        return str(plain)
    try:
        plain.encode("utf-8")
    except UnicodeEncodeError as error:
        raise KtopsError(
            "invalid-setting",
            text(
                "{label} is {raw!r}: it must be {wanted}",
                label=name,
                raw=plain,
                wanted=text("text that UTF-8 can hold"),
            ),
            text("give {name} another value", name=name),
            exit_status=EXIT_USAGE,
        ) from error
    # JSON escapes what TOML wants escaped, except the delete character.
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")


def _replace(path: Path, content: bytes, *, secret: bool) -> None:
    """Write beside the file and rename over it, so that a reader sees the old file or the new."""
    try:
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                mode = stat.S_IMODE(target.stat().st_mode)
                temporary.chmod(mode & ~_GROUP_AND_OTHERS if secret else mode)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _not_written(path, reason, f"ls -ld {path} {path.parent}") from error


def _not_written(path: Path, reason: str, hint: str) -> KtopsError:
    message = text("{path} cannot be changed: {reason}", path=path, reason=reason)
    return KtopsError("config-not-written", message, hint)
