"""The folder where built libraries are kept: `native/<key>/{libktops.so,build.json,build.log}`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ktops_engine.errors import KtopsError
from ktops_engine.text import text

LIBRARY = "libktops.so"
RECORD = "build.json"
LOG = "build.log"
DETECTED = "detected"
SCRATCH = "building-"  # what the names of folders of builds in progress start with


@dataclass(frozen=True)
class BuildInfo:
    """A built library. `built_at` is ISO 8601 in UTC; `log` is what CMake and ninja printed.

    `numa_origin` is who decided about `numa`: a flag, a variable, or "detected". `num_nodes` counts
    the NUMA nodes with memory that the machine had, `isa` names the instruction sets that were
    compiled, `flags` maps each of them, and "all", to the compiler's options.
    """

    path: Path
    numa: bool
    compiler: str
    built_at: str
    sources_hash: str
    log: Path
    numa_origin: str
    num_nodes: int
    isa: tuple[str, ...]
    flags: Mapping[str, str]


def cache_folder(environ: Mapping[str, str]) -> Path:
    """$KTOPS_CACHE, else $XDG_CACHE_HOME/ktops, else ~/.cache/ktops; `native` below it."""
    if chosen := environ.get("KTOPS_CACHE"):
        return Path(chosen).expanduser() / "native"
    xdg = environ.get("XDG_CACHE_HOME", "")
    base = Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache"
    return base / "ktops" / "native"


def read_build(folder: Path) -> BuildInfo | None:
    """The build in `folder`, None when there is none or it is incomplete."""
    library = folder / LIBRARY
    try:
        record = json.loads((folder / RECORD).read_text())
        if not library.is_file() or library.stat().st_size != record["library_bytes"]:
            return None
        return BuildInfo(
            path=library,
            numa=bool(record["numa"]),
            compiler=str(record["compiler"]),
            built_at=str(record["built_at"]),
            sources_hash=str(record["sources_hash"]),
            log=folder / LOG,
            numa_origin=str(record["numa_origin"]),
            num_nodes=int(record["num_nodes"]),
            isa=tuple(map(str, record["isa"])),
            flags={str(unit): str(flags) for unit, flags in record["flags"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest_build(root: Path) -> BuildInfo | None:
    """The build in the cache that was asked for last, stale or not."""
    folders = [path.parent for path in root.glob(f"*/{RECORD}")]
    found = (read_build(folder) for folder in sorted(folders, key=last_used, reverse=True))
    return next((build for build in found if build is not None), None)


def store_build(folder: Path, built: Path, info: Mapping[str, object]) -> None:
    """Moves `built` (library, log) into `folder`, each file at once; the record comes last, so
    that a reader sees the old build, no build, or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    record = dict(info) | {"library_bytes": (built / LIBRARY).stat().st_size}
    (built / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    (folder / RECORD).unlink(missing_ok=True)
    for name in (LOG, LIBRARY, RECORD):
        (built / name).replace(folder / name)


def mark_used(folder: Path) -> None:
    """Makes this build the one asked for last."""
    with contextlib.suppress(OSError):  # a read-only cache keeps its order
        os.utime(folder / RECORD)


def last_used(folder: Path) -> float:
    """When the build in `folder` was last asked for, 0 when it is not there."""
    try:
        return (folder / RECORD).stat().st_mtime
    except OSError:
        return 0.0


@contextlib.contextmanager
def locked(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Creates `folder` and holds its lock, calling `on_wait` once when another process has it.

    Under the lock, what killed builds have left is removed. Raises KtopsError: cache-not-writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("w")
    except OSError as error:
        raise not_writable(folder, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        for leftover in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def not_writable(folder: Path, error: OSError) -> KtopsError:
    """The error for a cache that cannot be written, with the way out."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return KtopsError(
            "cache-not-writable",
            text("The kernels are built in {folder}, and that disk is full.", folder=folder),
            f"df -h {shlex.quote(str(folder))}",
        )
    return KtopsError(
        "cache-not-writable",
        text(
            "The kernels are built in {folder}, which cannot be written: {reason}.",
            folder=folder,
            reason=error.strerror,
        ),
        'KTOPS_CACHE="$HOME/ktops-cache" ktops build',
    )
