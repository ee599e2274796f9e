"""The only module that prints. Data goes to stdout, everything else to stderr.

Three modes: human text, one JSON document (`--json`), and quiet (`-q`: only what a script needs).
Colour appears on a terminal alone, and never with NO_COLOR, TERM=dumb, CI or `--no-color`; what a
stream's encoding cannot carry is escaped, and the marks of ktops itself are ASCII.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TextIO

from ktops.language import Language, catalogue, fits, language_of
from ktops_engine.text import text, translate

if TYPE_CHECKING:
    from rich.console import Console

    from ktops_engine.errors import KtopsError

SCHEMA_VERSION = 1

_ANSI = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}
_YES = frozenset({"y", "yes", "是"})
_STAGE_WIDTH = 8
_STAGE_INDENT = 2


class Mode(StrEnum):
    """What stdout carries: text for people, one JSON document, or bare values for scripts."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


@dataclass(frozen=True)
class Output:
    """Where a command's words go. Created once a command from its global options.

    Sentences that are `Text` are said in `language`, except in JSON. The streams are looked up at
    every write, so a live display that replaces sys.stderr works.
    """

    mode: Mode = Mode.HUMAN
    no_color: bool = False
    language: Language = Language.EN

    @classmethod
    def before_parsing(cls, args: Sequence[str]) -> Output:
        """How to report an error of the command line itself: a guess from its words."""
        mode = Mode.QUIET if {"-q", "--quiet"} & set(args) else Mode.HUMAN
        return cls(
            mode=Mode.JSON if "--json" in args else mode,
            no_color="--no-color" in args,
            language=language_of(args, os.environ),
        )

    def say(self, sentence: str) -> str:
        """`sentence` in the language of this output, in English where a stream cannot carry it."""
        if all(fits(self.language, stream.encoding) for stream in (sys.stdout, sys.stderr)):
            return translate(sentence, catalogue(self.language))
        return sentence

    def result(
        self,
        document: Mapping[str, object],
        *,
        human: Iterable[str],
        quiet: Iterable[str] = (),
    ) -> None:
        """Print a command's answer on stdout: `document` with --json, else the mode's lines.

        Scripts read the quiet lines: they are English as they stand.
        """
        if self.mode is Mode.JSON:
            self._write(sys.stdout, _json({"schema_version": SCHEMA_VERSION, **document}))
        elif self.mode is Mode.QUIET:
            for line in quiet:
                self._write(sys.stdout, line)
        else:
            for line in human:
                self._write(sys.stdout, self.say(line))

    def event(self, event: str, **fields: object) -> None:
        """Print one line of JSON for a step of long work; says nothing in the other modes."""
        if self.mode is Mode.JSON:
            head = {"schema_version": SCHEMA_VERSION, "event": event}
            self._write(sys.stdout, _json({**head, **fields}, indent=None))

    def stage(self, name: str, sentence: str) -> None:
        """Print one step of a longer command on stderr, its name in a fixed column."""
        if self.mode is not Mode.QUIET:
            label = self.style(f"{name:<{_STAGE_WIDTH}}", "bold", stream=sys.stderr)
            self._write(sys.stderr, f"{'':{_STAGE_INDENT}}{label}{self.say(sentence)}")

    def note(self, sentence: str = "") -> None:
        """Print a remark on stderr; quiet mode drops it."""
        if self.mode is not Mode.QUIET:
            self._write(sys.stderr, self.say(sentence))

    def warn(self, sentence: str, fix: str = "") -> None:
        """Print a warning on stderr, with the command that helps; every mode shows it."""
        label = self.style(self.say(text("warning:")), "yellow", "bold", stream=sys.stderr)
        self._write(sys.stderr, f"{label} {self.say(sentence)}")
        self._fix(fix)

    def error(self, error: KtopsError) -> None:
        """Print what happened and what to do next; with --json a document on stdout."""
        if self.mode is Mode.JSON:
            body = {"code": error.code, "message": error.message, "hint": error.hint}
            document = {"schema_version": SCHEMA_VERSION, "error": body}
            self._write(sys.stdout, _json(document, indent=None))  # it may follow events
            return
        label = self.style(self.say(text("error:")), "red", "bold", stream=sys.stderr)
        self._write(sys.stderr, f"{label} {self.say(error.message)}")
        self._fix(error.hint)

    def _fix(self, hint: str) -> None:
        if not hint:
            return
        first, *rest = self.say(hint).splitlines()
        label = self.say(text("Fix:"))
        indent = " " * (3 + cell_width(label))
        self._write(sys.stderr, f"  {self.style(label, 'bold', stream=sys.stderr)} {first}")
        for line in rest:
            self._write(sys.stderr, f"{indent}{line}")

    def traceback(self, trace: str) -> None:
        """Print a traceback on stderr, as --debug asks for."""
        self._write(sys.stderr, trace.rstrip("\n"))

    def stream(self, piece: str, *styles: str) -> None:
        """Write a piece of running text on stdout as it is, without a line end, and flush it."""
        self._write(sys.stdout, self.style(piece, *styles, stream=sys.stdout), end="")

    def prompt(self, question: str) -> str:
        """Ask for one line on the terminal. Raises EOFError when the input has ended."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - importing it gives `input` line editing and history
        return input(_encodable(sys.stdout, self.say(question)))

    @property
    def can_ask(self) -> bool:
        """Whether somebody sits at the terminal to be asked."""
        return self.mode is Mode.HUMAN and sys.stdin.isatty()

    def confirm(self, question: str) -> bool:
        """Ask for a yes or no. No, unasked, where nobody can be asked."""
        return self.can_ask and self.prompt(question).strip().lower() in _YES

    @property
    def is_json(self) -> bool:
        """Whether stdout is to carry one JSON document."""
        return self.mode is Mode.JSON

    def style(self, words: str, *styles: str, stream: TextIO | None = None) -> str:
        """`words` in ANSI styles where `stream` (stdout unless said otherwise) shows them."""
        if not styles or not words or not self.has_color(stream or sys.stdout):
            return words
        codes = ";".join(_ANSI[style] for style in styles)
        return f"\x1b[{codes}m{words}\x1b[0m"

    def has_color(self, stream: TextIO) -> bool:
        """Whether colour may be written to `stream`."""
        return not self.no_color and not os.environ.get("NO_COLOR") and is_live(stream)

    @property
    def live(self) -> bool:
        """Whether stderr can carry a display that redraws itself."""
        return self.mode is Mode.HUMAN and is_live(sys.stderr)

    def console(self) -> Console:
        """A rich console on stderr that follows the same rules; rich is imported here only."""
        from rich.console import Console

        color = self.has_color(sys.stderr)
        return Console(
            file=sys.stderr,
            force_terminal=self.live,
            no_color=not color,
            color_system="standard" if color else None,
            highlight=False,
            soft_wrap=True,
        )

    def table(
        self,
        rows: Sequence[Sequence[str]],
        header: Sequence[str],
        *,
        dim_columns: Sequence[int] = (),
    ) -> list[str]:
        """Lines of a table on stdout: columns as wide as their widest cell, two spaces between.

        The header is said in the language of this output; cells are values.
        """
        header = [self.say(word) for word in header]
        widths = [max(map(cell_width, column)) for column in zip(header, *rows, strict=True)]

        def line(cells: Sequence[str], styles: Mapping[int, str]) -> str:
            padded = [
                cell + " " * (w - cell_width(cell)) for cell, w in zip(cells, widths, strict=True)
            ]
            padded[-1] = cells[-1]
            styled = (
                self.style(cell, styles[index]) if index in styles else cell
                for index, cell in enumerate(padded)
            )
            return "  ".join(styled).rstrip()

        body_styles = dict.fromkeys(dim_columns, "dim")
        head_styles = dict.fromkeys(range(len(header)), "bold")
        return [line(header, head_styles), *(line(row, body_styles) for row in rows)]

    def _write(self, stream: TextIO, line: str, end: str = "\n") -> None:
        stream.write(_encodable(stream, line) + end)
        stream.flush()


def is_live(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that understands escape codes and has a person in front."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    return os.environ.get("CI", "").lower() in ("", "0", "false")


def cell_width(words: str) -> int:
    """Columns that `words` takes on a terminal: CJK characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in words
    )


def _json(document: Mapping[str, object], indent: int | None = 2) -> str:
    return json.dumps(document, indent=indent, ensure_ascii=not _is_utf8(sys.stdout), default=str)


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")


def _encodable(stream: TextIO, words: str) -> str:
    """`words` with characters the stream cannot carry as backslash escapes, never an exception."""
    if _is_utf8(stream):
        return words.encode("utf-8", "replace").decode("utf-8")
    encoding = stream.encoding or "ascii"
    return words.encode(encoding, "backslashreplace").decode(encoding)
