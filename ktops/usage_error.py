"""What typer finds wrong with a command line, said as ktops says things.

Typer gives English sentences and no ids, so they are known by their form; one that is not known
is passed on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce

import typer

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import Text, text

_Form = tuple[str, Callable[[dict[str, str]], Text]]

_FORMS: tuple[_Form, ...] = (
    (r"no such option: (?P<option>.+)", lambda said: text("no such option: {option}", **said)),
    (
        r"option (?P<option>'.+') does not take a value",
        lambda said: text("option {option} does not take a value", **said),
    ),
    (
        r"option (?P<option>'.+') requires an argument",
        lambda said: text("option {option} requires an argument", **said),
    ),
    (
        r"got unexpected extra argument\(s\) \((?P<words>.+)\)",
        lambda said: text("got unexpected extra argument(s) ({words})", **said),
    ),
    (r"missing argument (?P<name>'.+')", lambda said: text("missing argument {name}", **said)),
    (r"missing option (?P<name>'.+')", lambda said: text("missing option {name}", **said)),
    (
        r"missing argument (?P<name>'.+')\. Choose from:\s+(?P<choices>.+)",
        lambda said: text(
            "missing argument {name}: one of {choices}",
            name=said["name"],
            choices=" ".join(said["choices"].split()),
        ),
    ),
    (
        r"invalid value for (?P<name>'.+?'): (?P<reason>.+)",
        lambda said: text(
            "invalid value for {name}: {reason}",
            name=said["name"],
            reason=_said(said["reason"], _REASONS),
        ),
    ),
)
_REASONS: tuple[_Form, ...] = (
    (r"Input should be a valid integer.*", lambda said: text("it must be a whole number")),
    (r"Input should be a valid number.*", lambda said: text("it must be a number")),
    (
        r"Input should be greater than or equal to (?P<low>\S+)",
        lambda said: text("it must be at least {low}", **said),
    ),
    (
        r"Input should be less than or equal to (?P<high>\S+)",
        lambda said: text("it must be at most {high}", **said),
    ),
    (
        r"(?:Value error, )?(?P<value>.+) is not one of (?P<choices>.+)",
        lambda said: text("{value} is not one of {choices}", **said),
    ),
)


def usage_error(error: typer.TyperException) -> KtopsError:
    """`error` in our form, with the help of the command it came from."""
    close = sorted(getattr(error, "possibilities", None) or ())
    message = (error.message if close else error.format_message()).rstrip(".")
    sentence = _said(message[:1].lower() + message[1:], _FORMS)
    if close:
        names = reduce(lambda left, right: text("{left} or {right}", left=left, right=right), close)
        sentence = text("{problem}; did you mean {names}?", problem=sentence, names=names)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "ktops"
    return KtopsError("usage", sentence, f"{path} --help", exit_status=EXIT_USAGE)


def _said(message: str, forms: tuple[_Form, ...]) -> str:
    """`message` as the Text of the form it has, else as it is."""
    for pattern, compose in forms:
        found = re.fullmatch(pattern, message, re.DOTALL)
        if found:
            return compose(found.groupdict())
    return message
