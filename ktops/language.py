"""Which language people are spoken to in, and the catalogue of its sentences.

What programs read (--json, the server's answers, logs) is English always.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
from importlib.resources import files

_LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")  # the first that is set decides
_SIMPLIFIED = "错误"  # two characters that only the encodings of simplified Chinese have


class Language(StrEnum):
    """A language ktops speaks."""

    EN = "en"
    ZH = "zh"


def language_of(args: Sequence[str], environ: Mapping[str, str]) -> Language:
    """The language before the command line is parsed: --lang, else the environment's."""
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == "--lang":
            given = value if equals else "".join(args[index + 1 : index + 2])
            if given in set(Language):
                return Language(given)
    return language_of_environment(environ)


def language_of_environment(environ: Mapping[str, str]) -> Language:
    """KTOPS_LANG, else the locale; English for a language that ktops does not speak."""
    chosen = environ.get("KTOPS_LANG") or next(
        (environ[name] for name in _LOCALE_VARIABLES if environ.get(name)), ""
    )
    return Language.ZH if chosen.lower().startswith("zh") else Language.EN


def fits(language: Language, encoding: str | None) -> bool:
    """Whether an output with `encoding` (None: ASCII) can show sentences in `language`."""
    if language is Language.EN:
        return True
    try:
        _SIMPLIFIED.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@cache
def catalogue(language: Language) -> Mapping[str, str]:
    """English template -> template in `language`. English has none: it is what is written."""
    if language is Language.EN:
        return {}
    said: dict[str, str] = {}
    for path in (files("ktops") / "messages" / language).iterdir():
        said |= tomllib.loads(path.read_text(encoding="utf-8"))
    return said
