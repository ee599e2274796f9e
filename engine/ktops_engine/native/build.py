"""Builds the C++ kernels once for each set of sources, compiler and options, and remembers them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ktops_engine.errors import KtopsError
from ktops_engine.native import cache
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.causes import probable_cause
from ktops_engine.native.flags import compiled_flags
from ktops_engine.native.sources import find_sources, hash_sources
from ktops_engine.native.structs import ABI_VERSION
from ktops_engine.native.toolchain import (
    Compiler,
    NumaChoice,
    Toolchain,
    find_compiler,
    find_toolchain,
    memory_nodes,
    numa_origin,
    wants_numa,
)
from ktops_engine.text import text

__all__ = ["BuildInfo", "NumaChoice", "build_native", "find_current"]

_SHOWN_LOG_LINES = 15
_FAILURE_LOG = "last-failure.log"
# Flags meant for other programs; ours are in CMakeLists.txt and must be all there is.
_IGNORED_VARIABLES = ("CXX", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")

OnLine = Callable[[str], None]


@dataclass(frozen=True)
class _Order:
    """What is to be built, from where, with what."""

    sources: Path
    sources_hash: str
    toolchain: Toolchain
    numa: bool
    numa_origin: str

    @property
    def key(self) -> str:
        return _key(self.sources_hash, self.toolchain.compiler, self.numa)


def build_native(
    numa: NumaChoice = "auto", force: bool = False, on_line: OnLine | None = None
) -> BuildInfo:
    """Builds libktops.so into the cache, or returns the one that is there already.

    `numa`: spread memory over NUMA nodes; "auto" asks USE_NUMA (1 or 0), then the machine.
    `force` builds again. `on_line` gets each line that CMake and ninja print. Safe to run several
    times at once: the others wait for the first. Interrupted, it ends the compiler and leaves
    nothing; killed, the next build removes what it left.

    Raises KtopsError: compiler-missing, compiler-too-old, cmake-missing, cache-not-writable,
    build-failed, sources-missing, bad-use-numa.
    """
    say = on_line or (lambda line: None)
    sources = find_sources()
    with_numa = wants_numa(numa, os.environ)
    origin = numa_origin(numa, os.environ)
    order = _Order(sources, hash_sources(sources), find_toolchain(), with_numa, origin)
    root = cache.cache_folder(os.environ)
    folder = root / order.key
    if not force and (found := cache.read_build(folder)):
        cache.mark_used(folder)
        return found
    with cache.locked(root, lambda: say("waiting for another build to finish")):
        if not force and (found := cache.read_build(folder)):
            cache.mark_used(folder)
            return found
        try:
            with _scratch_folder(root) as scratch:
                _compile(order, Path(scratch), say)
                cache.store_build(folder, Path(scratch), _record(order, Path(scratch)))
        except OSError as error:
            raise cache.not_writable(root, error) from error
    built = cache.read_build(folder)
    if built is None:
        raise KtopsError(
            "build-failed",
            text("The library was built, but {folder} does not hold it any more.", folder=folder),
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
    return tempfile.TemporaryDirectory(prefix=cache.SCRATCH, dir=root, ignore_cleanup_errors=True)


def _record(order: _Order, scratch: Path) -> dict[str, object]:
    """What build.json says of a build that lies in `scratch`."""
    isa, flags = compiled_flags(scratch)
    return {
        "numa": order.numa,
        "numa_origin": order.numa_origin,
        "num_nodes": len(memory_nodes()),
        "isa": isa,
        "flags": flags,
        "compiler": order.toolchain.compiler.version,
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources_hash": order.sources_hash,
        "abi": ABI_VERSION,
    }


def _compile(order: _Order, scratch: Path, on_line: OnLine) -> None:
    """Leaves the library and its log in `scratch`. Raises OSError when the log cannot be kept."""
    cmake = str(order.toolchain.cmake)
    configure = [
        cmake,
        *("-S", str(order.sources), "-B", str(scratch), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={order.toolchain.ninja}",
        f"-DCMAKE_CXX_COMPILER={order.toolchain.compiler.path}",
        f"-DKTOPS_NUMA={'ON' if order.numa else 'OFF'}",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
    ]
    lines: list[str] = []
    for command in (configure, [cmake, "--build", str(scratch)]):
        status = _run(command, lines, on_line)
        if status != 0:
            raise _build_error(lines, status, scratch.parent)
    (scratch / cache.LOG).write_text("\n".join(lines) + "\n")


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
            start_new_session=True,
        )
    except OSError as error:
        lines.append(f"{command[0]}: {error.strerror}")
        return 127
    with process, _ended_on_error(process):
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            on_line(lines[-1])
    return process.returncode


@contextlib.contextmanager
def _ended_on_error(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ends `process` and all that it started when the body is left by an exception (Ctrl-C,
    SIGTERM): in a process group of its own, no signal of the terminal reaches it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


def _build_error(lines: list[str], status: int, root: Path) -> KtopsError:
    log_text = "\n".join(lines)
    cause, hint = probable_cause(log_text, status, root)
    log = root / _FAILURE_LOG
    try:
        log.write_text(log_text + "\n")
        where = text("The whole log is in {log}.", log=log)
    except OSError:
        where = text("The log could not be saved.")
    return KtopsError(
        "build-failed",
        text(
            "Building the kernels failed (status {status}). {cause} {where}\n{tail}",
            status=status,
            cause=cause,
            where=where,
            tail="\n".join(lines[-_SHOWN_LOG_LINES:]),
        ),
        hint,
    )
