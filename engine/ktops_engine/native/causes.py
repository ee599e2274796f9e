"""Why a build failed, told from what the compiler, CMake and ninja printed."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from pathlib import Path

from ktops_engine.text import Text, text

# Ordered: a full disk or a killed compiler makes the later complaints appear too.
_DISK_FULL = r"No space left on device|Disk quota exceeded|errno=28\b"
_OUT_OF_MEMORY = (
    r"Killed signal|Killed \(program|\bKilled\b|virtual memory exhausted|cannot allocate memory"
    r"|std::bad_alloc|out of memory allocating"
)
_NOT_WRITABLE = r"Permission denied|Read-only file system|Operation not permitted"
_OLD_ASSEMBLER = (
    r"no such instruction|unsupported instruction|bad register name|bad instruction"
    r"|unrecognized option .--64|operand (type|size) mismatch"
)
_OLD_CMAKE = r"CMake \d[\d.]* or higher is required|policy \S+ is not known"
_BAD_NINJA = r"manifest 'build\.ninja' still dirty|Clock skew detected"
_INCOMPLETE = r"fatal error: \S+: No such file|cannot find -l|crt[1in]\.o|is not able to compile"
_OLD_COMPILER = (
    r"unrecognized command[- ]line option|unrecognized argument|unknown argument"
    r"|requires .-std=c\+\+2"
)
_BROKEN_COMPILER = r"internal compiler error|cannot execute|Segmentation fault"
_KILLED_STATUSES = (-9, 137)


def probable_cause(log: str, status: int, root: Path) -> tuple[Text, str]:
    """What probably went wrong in a build that printed `log` and ended with `status`, and the
    command that helps. `root` is the folder of the cache, where the build lay."""
    for pattern, cause, hint in _causes(root):
        if re.search(pattern, log, re.IGNORECASE):
            return cause, hint
    if status in _KILLED_STATUSES:
        return _out_of_memory()
    return text("The end of the log tells why."), "ktops build --force"


def _causes(root: Path) -> tuple[tuple[str, Text, str], ...]:
    places = shlex.join([str(root), tempfile.gettempdir()])
    return (
        (_DISK_FULL, text("The disk is full."), f"df -h {places}"),
        (_OUT_OF_MEMORY, *_out_of_memory()),
        (
            _OLD_ASSEMBLER,
            text("The assembler does not know AVX-512 or AMX: binutils are older than g++."),
            "conda install -y -c conda-forge binutils_linux-64 gxx",
        ),
        (
            _OLD_CMAKE,
            text("CMake is too old."),
            f"{sys.executable} -m pip install --upgrade cmake ninja",
        ),
        (
            _BAD_NINJA,
            text("The clock of this machine, or of the disk of the cache, is wrong."),
            f"date; ls -ld --time-style=full-iso {shlex.quote(str(root))}",
        ),
        (
            _INCOMPLETE,
            text("The headers or libraries of the compiler are incomplete."),
            "sudo apt-get install --reinstall g++ libc6-dev",
        ),
        (
            _OLD_COMPILER,
            text("The compiler does not know an option that the kernels need: it is too old."),
            "g++ --version",
        ),
        (
            _BROKEN_COMPILER,
            text("The compiler itself crashed, or cannot be run."),
            "sudo apt-get install --reinstall g++",
        ),
        (
            _NOT_WRITABLE,
            text("A folder that the build needs may not be written."),
            f"ls -ld {places}",
        ),
    )


def _out_of_memory() -> tuple[Text, str]:
    return text(
        "The compiler ran out of memory and was killed; with one job at a time it needs less."
    ), "CMAKE_BUILD_PARALLEL_LEVEL=1 ktops build"
