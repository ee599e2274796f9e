"""Which instruction sets a build holds and with what options, as CMake wrote them down."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

COMMON = "all"
_ISA_FOLDER = "isa"
_COMMANDS = "compile_commands.json"
# Options that say where things are, or that take the next word: no part of how code is generated.
_WITH_A_VALUE = frozenset({"-o", "-c", "-MF", "-MT", "-MQ", "-isystem", "-include"})
_PLACES = ("-I", "-M", "-Wl,")


def compiled_flags(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The instruction sets compiled in a build folder of CMake, in the order of the build, and
    compiler options: those all files share under "all", and what each set has beside them.

    Empty when CMake left no record. The record: https://clang.llvm.org/docs/JSONCompilationDatabase.html
    """
    try:
        entries = json.loads((folder / _COMMANDS).read_text())
        files = {Path(entry["file"]): _options(entry["command"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError):
        return [], {}
    shared = [
        option
        for option in next(iter(files.values()), [])
        if all(option in options for options in files.values())
    ]
    sets = {path.stem: own for path, own in files.items() if path.parent.name == _ISA_FOLDER}
    flags = {COMMON: shlex.join(shared)}
    for isa, own in sets.items():
        flags[isa] = shlex.join(option for option in own if option not in shared)
    return list(sets), flags


def _options(command: str) -> list[str]:
    kept = []
    skip_next = True  # the compiler itself
    for word in shlex.split(command):
        if skip_next:
            skip_next = False
        elif word in _WITH_A_VALUE:
            skip_next = True
        elif word.startswith("-") and not word.startswith(_PLACES):
            kept.append(word)
    return kept
