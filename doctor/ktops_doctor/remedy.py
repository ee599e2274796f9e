"""What the doctor may do itself: commands that are safe, shown beforehand, and can be undone."""

from __future__ import annotations

import shlex
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ktops_doctor.host import SILENT
from ktops_engine.text import text

Command = tuple[str, ...]
_LAST_LINES = 5


@dataclass(frozen=True)
class Remedy:
    """`commands` are run one after another, without a shell and without sudo.

    `title` says what they do; `undo` is the line that takes it back, '' when there is nothing to
    take back (a cache that is written anew).
    """

    title: str
    commands: tuple[Command, ...]
    undo: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """The commands as they would be typed."""
        return tuple(map(shlex.join, self.commands))

    @property
    def line(self) -> str:
        """All of them as one line to paste."""
        return " && ".join(self.lines)


def apply(remedy: Remedy, on_line: Callable[[str], None]) -> str:
    """Run the commands until one fails; why it failed, '' when all went well.

    `on_line` gets every line that they print.
    """
    for command in remedy.commands:
        reason = _run(command, on_line)
        if reason:
            return reason
    return ""


def _run(command: Command, on_line: Callable[[str], None]) -> str:
    tail: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return text("{program}: {reason}", program=command[0], reason=error.strerror)
    with process:
        try:
            for line in process.stdout or ():
                if line.strip():
                    tail.append(line.rstrip())
                    on_line(tail[-1])
        except BaseException:  # Ctrl-C: what was started ends too
            process.terminate()
            raise
    status = process.returncode
    if status == 0:
        return ""
    if status < 0:
        return text("{program} was ended by signal {number}", program=command[0], number=-status)
    return text(
        "{program} ended with status {status}: {last}",
        program=command[0],
        status=status,
        last=tail[-1] if tail else SILENT,
    )
