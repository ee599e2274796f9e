"""Builds the C++ kernels once for each set of sources, compiler and options, and remembers them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ktops_engine.errors import KtopsError
from ktops_engine.native import cache
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.sources import find_sources, hash_sources
from ktops_engine.native.structs import ABI_VERSION
from ktops_engine.native.toolchain import (
    Compiler,
    NumaChoice,
    Toolchain,
    find_compiler,
    find_toolchain,
    wants_numa,
)

__all__ = ["BuildInfo", "NumaChoice", "build_native", "find_current"]

_SHOWN_LOG_LINES = 15
# Flags meant for other programs; ours are in CMakeLists.txt and must be all there is.
_IGNORED_VARIABLES = ("CXX", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")

OnLine = Callable[[str], None]


def build_native(
    numa: NumaChoice = "auto", force: bool = False, on_line: OnLine | None = None
) -> BuildInfo:
    """Builds libktops.so into the cache, or returns the one that is there already.

    `numa`: spread memory over NUMA nodes; "auto" asks USE_NUMA (1 or 0), then the machine.
    `force` builds again. `on_line` gets each line that CMake and ninja print. Safe to run several
    times at once: the others wait for the first.

    Raises KtopsError: compiler-missing, compiler-too-old, cmake-missing, cache-not-writable,
    build-failed, sources-missing, bad-use-numa.
    """
    say = on_line or (lambda line: None)
    sources = find_sources()
    sources_hash = hash_sources(sources)
    with_numa = wants_numa(numa, os.environ)
    toolchain = find_toolchain()
    root = cache.cache_folder(os.environ)
    folder = root / _key(sources_hash, toolchain.compiler, with_numa)
    if not force and (found := cache.read_build(folder)):
        cache.mark_used(folder)
        return found
    with cache.locked(root, lambda: say("waiting for another build to finish")):
        if not force and (found := cache.read_build(folder)):
            cache.mark_used(folder)
            return found
        with _scratch_folder(root) as scratch:
            log = _compile(toolchain, sources, Path(scratch), with_numa, say)
            cache.store_build(
                folder,
                log.parent,
                {
                    "numa": with_numa,
                    "compiler": toolchain.compiler.version,
                    "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "sources_hash": sources_hash,
                    "abi": ABI_VERSION,
                },
            )
    built = cache.read_build(folder)
    if built is None:
        raise KtopsError(
            "build-failed",
            f"The library was built, but {folder} does not hold it any more.",
            "ktops build --force",
        )
    return built


def find_current() -> BuildInfo | None:
    """The library that belongs to the installed sources, None when it is missing or stale.

    Of one built with and one without NUMA support, USE_NUMA decides, else the one asked for last.
    With no compiler to compare with, any build of the same sources will do.
    """
    sources_hash = hash_sources(find_sources())
    root = cache.cache_folder(os.environ)
    try:
        compiler = find_compiler()
    except KtopsError:
        folders = [path.parent for path in root.glob(f"*/{cache.RECORD}")]
    else:
        folders = [root / _key(sources_hash, compiler, numa) for numa in (False, True)]
    wanted = {"0": False, "1": True}.get(os.environ.get("USE_NUMA", ""))
    for folder in sorted(folders, key=cache.last_used, reverse=True):
        found = cache.read_build(folder)
        if found and found.sources_hash == sources_hash and wanted in (None, found.numa):
            return found
    return None


def _key(sources_hash: str, compiler: Compiler, numa: bool) -> str:
    parts = (sources_hash, str(compiler.path), compiler.version, str(numa), str(ABI_VERSION))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _scratch_folder(root: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="building-", dir=root, ignore_cleanup_errors=True)


def _compile(
    toolchain: Toolchain, sources: Path, scratch: Path, numa: bool, on_line: OnLine
) -> Path:
    """Leaves the library and its log in `scratch`; returns the log."""
    configure = [
        str(toolchain.cmake),
        *("-S", str(sources), "-B", str(scratch), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={toolchain.ninja}",
        f"-DCMAKE_CXX_COMPILER={toolchain.compiler.path}",
        f"-DKTOPS_NUMA={'ON' if numa else 'OFF'}",
    ]
    log = scratch / cache.LOG
    lines: list[str] = []
    for command in (configure, [str(toolchain.cmake), "--build", str(scratch)]):
        status = _run(command, lines, on_line)
        if status != 0:
            raise _build_error(lines, status, scratch.parent)
    try:
        log.write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise _build_error([*lines, str(error)], 1, scratch.parent) from error
    return log


def _run(command: list[str], lines: list[str], on_line: OnLine) -> int:
    env = {name: value for name, value in os.environ.items() if name not in _IGNORED_VARIABLES}
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=env,
        )
    except OSError as error:
        lines.append(f"{command[0]}: {error.strerror}")
        return 127
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            on_line(lines[-1])
    return process.returncode


def _build_error(lines: list[str], status: int, root: Path) -> KtopsError:
    text = "\n".join(lines)
    cause, hint = _probable_cause(text, root)
    log = root / "last-failure.log"
    try:
        log.write_text(text + "\n")
        where = f"The whole log is in {log}."
    except OSError:
        where = "The log could not be saved."
    tail = "\n".join(lines[-_SHOWN_LOG_LINES:])
    return KtopsError(
        "build-failed",
        f"Building the kernels failed (status {status}). {cause} {where}\n{tail}",
        hint,
    )


def _probable_cause(text: str, root: Path) -> tuple[str, str]:
    causes = (
        (r"No space left on device|Disk quota exceeded", "The disk is full.", f"df -h {root}"),
        (
            r"Killed signal|Killed \(program|virtual memory exhausted|cannot allocate memory",
            "The compiler ran out of memory.",
            "free -h",
        ),
        (
            r"fatal error: \S+: No such file|cannot find -lc|crt1\.o|is not able to compile",
            "The headers or libraries of the compiler are incomplete.",
            "sudo apt-get install --reinstall g++ libc6-dev",
        ),
        (
            r"unrecognized command[- ]line option|unrecognized argument",
            "The compiler does not know an option; it may be too old.",
            "g++ --version",
        ),
    )
    for pattern, cause, hint in causes:
        if re.search(pattern, text, re.IGNORECASE):
            return cause, hint
    return "The end of the log tells why.", "ktops build --force"
