"""The nouns of a diagnosis: a check, what it found, and the result that is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ktops_doctor.host import Host
from ktops_doctor.remedy import Remedy
from ktops_doctor.target import Target
from ktops_engine.text import text

DOCS_PAGE = "docs/doctor.md"
DEFAULT_TIME_LIMIT = 10.0


class Status(StrEnum):
    """`SKIP`: the question does not arise here; `CRASH`: the check itself failed or overran."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"
    CRASH = "crash"


class Section(StrEnum):
    """Headings of the report, in the order in which they are shown."""

    SYSTEM = "System"
    CPU = "CPU and ISA"
    MEMORY = "Memory and NUMA"
    GPU = "GPU and driver"
    NATIVE = "Toolchain and native library"
    PYTHON = "Python packages"
    STORAGE = "Storage"
    NETWORK = "Network and hubs"
    MODEL = "Model files"
    SERVER = "Server"


@dataclass(frozen=True)
class Finding:
    """What a check's `run` returns.

    `value` is what was found, `expected` what it is held against ("needs 382 GB"), `detail` what
    follows when the two do not meet, `fix` one line that can be pasted into a shell. `remedy` is
    the same as something the doctor can do itself, where that is safe and can be undone.
    """

    status: Status
    value: str
    expected: str = ""
    detail: str = ""
    fix: str = ""
    remedy: Remedy | None = None


def ok(value: str, expected: str = "") -> Finding:
    """The machine has what is needed."""
    return Finding(Status.OK, value, expected)


def warn(
    value: str, expected: str = "", *, detail: str, fix: str, remedy: Remedy | None = None
) -> Finding:
    """It works, but something is lost: `detail` says what."""
    return Finding(Status.WARN, value, expected, detail, fix, remedy)


def fail(
    value: str, expected: str = "", *, detail: str, fix: str, remedy: Remedy | None = None
) -> Finding:
    """The target cannot be served like this: `detail` says why."""
    return Finding(Status.FAIL, value, expected, detail, fix, remedy)


def gpu_lost(target: Target, value: str, expected: str = "", *, detail: str, fix: str) -> Finding:
    """The GPU cannot be used: a failure where the target needs one; else the CPU does its work."""
    status = Status.FAIL if target.gpu_required else Status.WARN
    return Finding(status, value, expected, detail, fix)


def skip(reason: str) -> Finding:
    """The question does not arise on this machine or for this target."""
    return Finding(Status.SKIP, reason)


@dataclass(frozen=True)
class Check:
    """One question to the machine.

    `needs` are ids of checks without whose good answer this one cannot be asked: when one of them
    is neither ok nor a warning, this check is skipped. `why` explains the check in docs/doctor.md,
    `time_limit` is in seconds: a check that takes longer is reported as crashed. A `deep` check
    takes long (it reads the disk, measures, generates): it is run only when it is asked for.
    """

    id: str
    title: str
    section: Section
    run: Callable[[Host, Target], Finding]
    why: str
    needs: tuple[str, ...] = ()
    time_limit: float = DEFAULT_TIME_LIMIT
    deep: bool = False


@dataclass(frozen=True)
class Result:
    """A finding with the check it belongs to and the seconds it took."""

    id: str
    title: str
    section: Section
    status: Status
    value: str
    expected: str = ""
    detail: str = ""
    fix: str = ""
    remedy: Remedy | None = None
    seconds: float = 0.0

    @property
    def summary(self) -> str:
        """One line without the fix: "on, should be off: the kernel moves pages ..."."""
        facts = self.value
        if self.expected:
            facts = text("{value}, {expected}", value=self.value, expected=self.expected)
        return text("{facts}: {detail}", facts=facts, detail=self.detail) if self.detail else facts

    @property
    def docs(self) -> str:
        """Where the check is explained."""
        return f"{DOCS_PAGE}#{self.id.replace('.', '')}"


def result_of(check: Check, finding: Finding, seconds: float = 0.0) -> Result:
    """`finding` under the name of its check."""
    return Result(
        id=check.id,
        title=check.title,
        section=check.section,
        status=finding.status,
        value=finding.value,
        expected=finding.expected,
        detail=finding.detail,
        fix=finding.fix,
        remedy=finding.remedy,
        seconds=seconds,
    )
