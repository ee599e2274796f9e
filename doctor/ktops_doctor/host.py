"""The only door to the machine. Checks ask a Host; a test hands them a recorded one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from ktops_doctor.elf import ElfVersions
from ktops_engine.text import text

COMMAND_TIME_LIMIT = 8.0
REACH_TIME_LIMIT = 1.5
SILENT = text("it said nothing")


@dataclass(frozen=True)
class CommandOutput:
    """How a command ended. `status` is None when it did not start or was killed (`timed_out`)."""

    status: int | None
    stdout: str = ""
    stderr: str = ""
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.status == 0


@dataclass(frozen=True)
class ProbeOutput:
    """What a child interpreter reported before it ended. `error` is empty when it ended well."""

    facts: Mapping[str, object] = field(default_factory=dict)
    error: str = ""

    def reason(self, key: str = "error") -> str:
        """Why it failed: what it reported under `key`, else how it ended."""
        reported = self.facts.get(key)
        return str(reported) if reported else self.error or SILENT


@dataclass(frozen=True)
class Platform:
    """`system` and `machine` as uname says them, `kernel` its release, `libc` e.g. 'glibc 2.36'."""

    system: str
    machine: str
    kernel: str
    libc: str


@dataclass(frozen=True)
class PythonFacts:
    """This interpreter: its version as (major, minor, micro) and where it is installed."""

    version: tuple[int, int, int]
    executable: str
    prefix: str
    base_prefix: str


@dataclass(frozen=True)
class Disk:
    """The file system that holds a path: bytes in all, bytes this user may still write, its type.

    `path` is the nearest folder that exists."""

    path: str
    total_bytes: int
    free_bytes: int
    file_system: str
    writable: bool


@dataclass(frozen=True)
class PortState:
    """Whether a TCP port can be bound; if not, why, and which process listens there if known."""

    free: bool
    reason: str = ""
    pid: int | None = None
    process: str = ""


class Stage(StrEnum):
    """Where a connection is, or ended. `DONE`: an answer came, whatever it says."""

    NAME = "name"
    PROXY = "proxy"
    CONNECT = "connect"
    TLS = "tls"
    HTTP = "http"
    DONE = "done"


@dataclass(frozen=True)
class Reach:
    """How far a request came, why no further, and the seconds it took.

    `clock_skew` is how many seconds this machine's clock is ahead of the server's, if it said."""

    stage: Stage
    reason: str = ""
    status: int = 0
    seconds: float = 0.0
    clock_skew: float | None = None

    @property
    def answered(self) -> bool:
        return self.stage is Stage.DONE


class Host(Protocol):
    """Questions to a machine. No method raises for what is missing or forbidden on it.

    Paths are absolute. Answers are remembered: the same question is put to the machine once.
    """

    def read_text(self, path: str) -> str | None:
        """The file's text, or None when it is missing or unreadable."""

    def list_dir(self, path: str) -> tuple[str, ...]:
        """Names in a folder, sorted; empty when there is none."""

    def exists(self, path: str) -> bool:
        """Whether the path leads to something."""

    def elf(self, path: str) -> ElfVersions | None:
        """Symbol versions of a shared library, None when missing. Raises ElfError when damaged."""

    def env(self, name: str) -> str:
        """An environment variable, '' when unset."""

    def is_set(self, name: str) -> bool:
        """Whether an environment variable is set, be it to ''."""

    def which(self, program: str) -> str | None:
        """The program's path as the shell would find it."""

    def run(self, *command: str, time_limit: float = COMMAND_TIME_LIMIT) -> CommandOutput:
        """Run a command in the C locale without input."""

    def probe(
        self,
        name: str,
        *arguments: str,
        time_limit: float = COMMAND_TIME_LIMIT,
        patience: float | None = None,
    ) -> ProbeOutput:
        """Run probes/<name>.py in a child interpreter: what breaks there does not break us.

        After `patience` seconds it is ended as soon as it has said that it knows enough.
        """

    def platform(self) -> Platform:
        """Operating system, architecture, kernel, C library."""

    def python(self) -> PythonFacts:
        """The interpreter that would run the engine."""

    def package_version(self, name: str) -> str | None:
        """The installed version of a distribution, read without importing it."""

    def requirements(self, name: str) -> tuple[str, ...]:
        """What an installed distribution requires, as its metadata writes it."""

    def cpus_allowed(self) -> frozenset[int]:
        """Logical CPUs this process may run on."""

    def soft_limit(self, name: str) -> int | None:
        """A resource limit such as 'NOFILE' or 'MEMLOCK' (bytes); None when unlimited."""

    def disk(self, path: str) -> Disk | None:
        """The disk that would hold `path` (a leading ~ is the home folder)."""

    def port(self, address: str, port: int) -> PortState:
        """Whether a server could listen there."""

    def reach(self, url: str, proxy: str = "", time_limit: float = REACH_TIME_LIMIT) -> Reach:
        """How far a request to `url` comes, through `proxy` (a URL) unless ''."""
