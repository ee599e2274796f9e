"""How the raw value of a setting is read, from a flag, a variable or a file.

Each reader takes the raw value and the folder a relative path starts from, and raises UnfitError.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ktops.units import parse_amount
from ktops_engine.nodes import NUMA_MODES, NumaMode
from ktops_engine.text import Text, text

AUTO = "auto"
ALL = "all"


class UnfitError(Exception):
    """A raw value that a setting cannot take; `wanted` completes "must be ..."."""

    def __init__(self, wanted: Text) -> None:
        super().__init__(wanted)
        self.wanted = wanted


def read_words(raw: object, base: Path) -> str:
    """A text that is not empty."""
    if not isinstance(raw, str) or not raw.strip():
        raise UnfitError(text("a text that is not empty"))
    return raw.strip()


def read_path(raw: object, base: Path) -> Path:
    """A path, absolute where `base` is, with the home folder in place of "~"."""
    if not isinstance(raw, str | Path) or not str(raw):
        raise UnfitError(text("a path"))
    try:
        return base / Path(raw).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UnfitError(text("a path; that home folder does not exist")) from error


def integer(low: int, high: int | None = None) -> Callable[[object, Path], int]:
    """A reader of whole numbers in a range."""
    wanted = text("a whole number, at least {low}", low=low)
    if high is not None:
        wanted = text("a whole number from {low} to {high}", low=low, high=high)

    def parse(raw: object, base: Path) -> int:
        try:
            value = int(raw) if isinstance(raw, str) else raw
        except ValueError as error:
            raise UnfitError(wanted) from error
        if not isinstance(value, int) or isinstance(value, bool):
            raise UnfitError(wanted)
        if value < low or (high is not None and value > high):
            raise UnfitError(wanted)
        return value

    return parse


def integer_or_auto(low: int) -> Callable[[object, Path], int | str]:
    """A reader of whole numbers from `low` on, or "auto"."""

    def parse(raw: object, base: Path) -> int | str:
        if raw == AUTO:
            return AUTO
        try:
            return integer(low)(raw, base)
        except UnfitError as error:
            raise UnfitError(
                text("a whole number, at least {low}, or {word}", low=low, word=AUTO)
            ) from error

    return parse


def read_memory(raw: object, base: Path) -> str:
    """An amount as `parse_amount` takes it, or "all"."""
    words = raw.strip() if isinstance(raw, str) else ""
    if words.lower() == ALL:
        return ALL
    if not parse_amount(words):
        raise UnfitError(
            text("an amount of memory such as {example}, or {word}", example="40GiB", word=ALL)
        )
    return words


def read_numa(raw: object, base: Path) -> NumaMode:
    """A way to treat NUMA nodes."""
    for mode in NUMA_MODES:
        if raw == mode:
            return mode
    raise UnfitError(text("one of {names}", names=", ".join(NUMA_MODES)))
