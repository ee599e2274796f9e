"""What a build needs: CMake, ninja and a compiler; and what the machine looks like."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.native.cache import DETECTED
from ktops_engine.text import text

NumaChoice = Literal["auto", "on", "off"]

OLDEST_GCC = 11
NEWEST_GCC_TRIED = 16
NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: where it is and the first line of its --version."""

    path: Path
    version: str


@dataclass(frozen=True)
class Toolchain:
    """Everything a build runs."""

    cmake: Path
    ninja: Path
    compiler: Compiler


def find_toolchain() -> Toolchain:
    """CMake and ninja, preferably those installed beside this Python, and a compiler.

    Raises KtopsError: compiler-missing, compiler-too-old, cmake-missing.
    """
    compiler = find_compiler()
    return Toolchain(_find_tool("cmake"), _find_tool("ninja"), compiler)


def find_compiler() -> Compiler:
    """The default g++ when it is new enough, else the newest versioned one (g++-14, ...).

    Raises KtopsError: compiler-missing, compiler-too-old.
    """
    too_old: Compiler | None = None
    versioned = [f"g++-{major}" for major in range(NEWEST_GCC_TRIED, OLDEST_GCC - 1, -1)]
    for name in ("g++", *versioned):
        found = shutil.which(name)
        if found is None:
            continue
        compiler = Compiler(Path(found), _first_line([found, "--version"]))
        if _major_version(found) >= OLDEST_GCC:
            return compiler
        too_old = too_old or compiler
    if too_old is not None:
        raise KtopsError(
            "compiler-too-old",
            text(
                "{path} is {version}; the kernels are C++20 and need g++ {oldest} or newer.",
                path=too_old.path,
                version=too_old.version or text("not working"),
                oldest=OLDEST_GCC,
            ),
            f"sudo apt-get install g++-{OLDEST_GCC}",
        )
    raise KtopsError(
        "compiler-missing",
        text("There is no C++ compiler (g++) on the PATH to build the kernels with."),
        "sudo apt-get install g++",
    )


def wants_numa(choice: NumaChoice, environ: Mapping[str, str], nodes: Path = NODES) -> bool:
    """Whether to build for several memory nodes: the choice, else USE_NUMA, else what `nodes`
    (the sysfs folder) shows. Raises KtopsError: bad-use-numa."""
    if choice != "auto":
        return choice == "on"
    value = environ.get("USE_NUMA", "")
    if value in ("0", "1"):
        return value == "1"
    if value:
        raise KtopsError(
            "bad-use-numa",
            text(
                "USE_NUMA is {value!r}; it can be 1 (spread memory over NUMA nodes) or 0.",
                value=value,
            ),
            "unset USE_NUMA",
            exit_status=EXIT_USAGE,
        )
    return len(memory_nodes(nodes)) > 1


def numa_origin(choice: NumaChoice, environ: Mapping[str, str]) -> str:
    """Who decides what `wants_numa` returns: "--numa on", "USE_NUMA=1" or "detected"."""
    if choice != "auto":
        return f"--numa {choice}"
    value = environ.get("USE_NUMA", "")
    return f"USE_NUMA={value}" if value else DETECTED


def memory_nodes(nodes: Path = NODES) -> tuple[int, ...]:
    """The NUMA nodes that have memory; one where the kernel shows none."""
    found = [int(node.name[4:]) for node in nodes.glob("node[0-9]*") if _has_memory(node)]
    return tuple(sorted(found)) or (0,)


def _has_memory(node: Path) -> bool:
    try:
        match = re.search(r"MemTotal:\s+(\d+)", (node / "meminfo").read_text())
    except OSError:
        return False
    return match is not None and int(match[1]) > 0


def _find_tool(name: str) -> Path:
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return beside
    found = shutil.which(name)
    if found is None:
        raise KtopsError(
            "cmake-missing",
            text(
                "{name} is neither beside {python} nor on the PATH.",
                name=name,
                python=sys.executable,
            ),
            f"{sys.executable} -m pip install cmake ninja",
        )
    return Path(found)


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0].strip()


def _major_version(compiler: str) -> int:
    match = re.match(r"\d+", _first_line([compiler, "-dumpfullversion", "-dumpversion"]))
    return int(match[0]) if match else 0
