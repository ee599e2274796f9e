"""The machine this process runs on. The only code of the doctor that touches it."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import sys
import tomllib
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from ktops_doctor import elf, ports
from ktops_doctor.children import run_command, run_probe
from ktops_doctor.host import (
    COMMAND_TIME_LIMIT,
    REACH_TIME_LIMIT,
    CommandOutput,
    Disk,
    Platform,
    PortState,
    ProbeOutput,
    PythonFacts,
    Reach,
)

_T = TypeVar("_T")


class LiveHost:
    """Answers a `Host`'s questions from the running machine; see `Host` for what each one means."""

    def __init__(self) -> None:
        self._once = _Once()

    def read_text(self, path: str) -> str | None:
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            return None

    def list_dir(self, path: str) -> tuple[str, ...]:
        try:
            return tuple(sorted(entry.name for entry in Path(path).iterdir()))
        except (OSError, ValueError):
            return ()

    def exists(self, path: str) -> bool:
        try:
            return Path(path).exists()
        except (OSError, ValueError):
            return False

    def elf(self, path: str) -> elf.ElfVersions | None:
        def read() -> elf.ElfVersions | None:
            try:
                return elf.read_versions(Path(path))
            except OSError:
                return None

        return self._once.get(("elf", path), read)

    def env(self, name: str) -> str:
        return os.environ.get(name, "")

    def is_set(self, name: str) -> bool:
        return name in os.environ

    def which(self, program: str) -> str | None:
        return shutil.which(program)

    def run(self, *command: str, time_limit: float = COMMAND_TIME_LIMIT) -> CommandOutput:
        return self._once.get(("run", command), lambda: run_command(command, time_limit))

    def probe(
        self,
        name: str,
        *arguments: str,
        time_limit: float = COMMAND_TIME_LIMIT,
        patience: float | None = None,
    ) -> ProbeOutput:
        def run() -> ProbeOutput:
            return run_probe(name, arguments, time_limit=time_limit, patience=patience)

        return self._once.get(("probe", name, arguments), run)

    def platform(self) -> Platform:
        uname = os.uname()
        return Platform(uname.sysname, uname.machine, uname.release, _libc())

    def python(self) -> PythonFacts:
        return PythonFacts(sys.version_info[:3], sys.executable, sys.prefix, sys.base_prefix)

    def package_version(self, name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except Exception:  # noqa: BLE001 - broken metadata of any kind means: not usable
            return None

    def requirements(self, name: str) -> tuple[str, ...]:
        try:
            return tuple(importlib.metadata.requires(name) or ())
        except Exception:  # noqa: BLE001 - as above
            return _requirements_of_checkout(name)

    def cpus_allowed(self) -> frozenset[int]:
        return frozenset(os.sched_getaffinity(0))

    def soft_limit(self, name: str) -> int | None:
        soft, _ = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        return None if soft == resource.RLIM_INFINITY else soft

    def disk(self, path: str) -> Disk | None:
        folder = Path(path).expanduser().absolute()
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        try:
            usage = os.statvfs(folder)
        except OSError:
            return None
        return Disk(
            path=str(folder),
            total_bytes=usage.f_blocks * usage.f_frsize,
            free_bytes=usage.f_bavail * usage.f_frsize,
            file_system=_file_system(str(folder.resolve()), self.read_text("/proc/mounts") or ""),
            writable=os.access(folder, os.W_OK | os.X_OK),
        )

    def port(self, address: str, port: int) -> PortState:
        return self._once.get(("port", address, port), lambda: ports.port_state(address, port))

    def reach(self, url: str, proxy: str = "", time_limit: float = REACH_TIME_LIMIT) -> Reach:
        from ktops_doctor import network  # ssl and http take their time to import

        return self._once.get(("reach", url, proxy), lambda: network.reach(url, proxy, time_limit))


def _requirements_of_checkout(name: str) -> tuple[str, ...]:
    """What pyproject.toml says, where this runs from a checkout that nobody installed."""
    try:
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        return tuple(project["dependencies"]) if project["name"] == name else ()
    except (OSError, ValueError, KeyError):
        return ()


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):  # another C library does not know the name
        return ""


class _Once:
    """Values computed once a key, also when several checks ask for one at the same time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._futures: dict[Hashable, Future[Any]] = {}

    def get(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        with self._lock:
            future: Future[_T] | None = self._futures.get(key)
            first = future is None
            if future is None:
                future = self._futures[key] = Future()
        if first:
            try:
                future.set_result(compute())
            except BaseException as error:  # noqa: BLE001 - handed to every caller by result()
                future.set_exception(error)
        return future.result()


def _file_system(path: str, mounts: str) -> str:
    """The type of the file system at `path`: the longest mount point that leads to it wins."""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind
