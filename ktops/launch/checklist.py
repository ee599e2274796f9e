"""The doctor's subsets before other commands: run, shown in one line, and what stops a command.

A check that fails always stops. A warning stops where serving would probably go badly (`RISKS`),
and `--force` overrides that; other warnings are named and nothing more. A check that crashed says
nothing about the machine and stops nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ktops.output import Output
from ktops_engine.errors import EXIT_FAILED, EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.text import Text, joined, text

if TYPE_CHECKING:
    from ktops_doctor import Result, Target

# Ids, or their topics, whose failure means that the machine has not enough of something.
_SIZES = ("mem.total", "mem.limit", "mem.available", "cpu.cores", "gpu.vram", "disk")
# Warnings after which a server starts and then disappoints: too little of the cores' time, weights
# that take memory twice or come over a network at every start, GPU kernels that cannot be compiled.
RISKS = ("cpu.quota", "disk.type", "cc.triton")
SLOW_S = 1.0  # what takes longer says how long


@dataclass(frozen=True)
class Checked:
    """The results of one subset. `seconds` is the time it took as a whole."""

    results: tuple[Result, ...]
    seconds: float

    def of(self, *statuses: str) -> list[Result]:
        """Results with one of these statuses."""
        return [result for result in self.results if result.status in statuses]

    @property
    def risks(self) -> list[Result]:
        """Warnings that stop a command that was not forced."""
        return [result for result in self.of("warn") if result.id in RISKS]


def run_subset(ids: Iterable[str], target: Target) -> Checked:
    """Run the doctor's checks named `ids` on this machine."""
    from ktops_doctor import LiveHost, run_checks

    began = time.monotonic()
    results = tuple(run_checks(ids, LiveHost(), target))
    return Checked(results, time.monotonic() - began)


def start_subset(ids: Iterable[str], target: Target) -> Callable[[], Checked]:
    """Start `run_subset` in the background; the value, when called, waits for its end."""
    ended: SimpleQueue[Checked | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            ended.put(run_subset(ids, target))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            ended.put(error)

    # A daemon: whoever is interrupted meanwhile does not wait for a check that hangs.
    threading.Thread(target=run, name="ktops-checks", daemon=True).start()

    def wait() -> Checked:
        outcome = ended.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return wait


def show_checks(output: Output, checked: Checked) -> None:
    """One line: how many passed, and the ids of those that did not."""
    asked = [result for result in checked.results if result.status != "skip"]
    passed = [result for result in asked if result.status in ("ok", "warn")]
    parts: list[str] = [text("{passed} of {asked} ok", passed=len(passed), asked=len(asked))]
    parts += _counted(checked)
    if checked.seconds >= SLOW_S:
        parts.append(f"{checked.seconds:.1f} s")
    output.stage("check", joined(parts))


def report_checks(output: Output, checked: Checked) -> None:
    """The line of `show_checks`, and the event of a command that reports by events."""
    show_checks(output, checked)
    output.event("check", checks=check_documents(checked), seconds=round(checked.seconds, 3))


def refuse_failures(checked: Checked, refusal: Text, remarks: Iterable[str] = ()) -> None:
    """Raise KtopsError "checks-failed" when a check failed: `refusal` with every figure and fix.

    `remarks` are lines to add. The exit status is 4 where only sizes fail, else 1.
    """
    failed = checked.of("fail")
    if failed:
        too_small = all(_is_size(result.id) for result in failed)
        raise KtopsError(
            "checks-failed",
            joined([_message(refusal, failed), *remarks], "\n  "),
            joined(_fixes(failed), "\n"),
            exit_status=EXIT_NOT_ENOUGH if too_small else EXIT_FAILED,
        )


def refuse_risks(checked: Checked, refusal: Text, forced_command: str) -> None:
    """Raise KtopsError "checks-risky" when serving would go badly; `forced_command` goes on."""
    if checked.risks:
        anyway = text("{command}   (goes on all the same)", command=forced_command)
        hint = joined([*_fixes(checked.risks), anyway], "\n")
        raise KtopsError("checks-risky", _message(refusal, checked.risks), hint)


def check_documents(checked: Checked) -> list[dict[str, object]]:
    """The results for --json, in short: `ktops doctor --json` has them in full."""
    return [
        {
            "id": result.id,
            "status": str(result.status),
            "summary": result.summary,
            "fix": result.fix or None,
        }
        for result in checked.results
    ]


def _counted(checked: Checked) -> list[Text]:
    warnings, failures, crashes = checked.of("warn"), checked.of("fail"), checked.of("crash")
    parts = []
    if warnings:
        one = text("1 warning ({ids})", ids=_ids(warnings))
        many = text("{count} warnings ({ids})", count=len(warnings), ids=_ids(warnings))
        parts.append(one if len(warnings) == 1 else many)
    if failures:
        one = text("1 failure ({ids})", ids=_ids(failures))
        many = text("{count} failures ({ids})", count=len(failures), ids=_ids(failures))
        parts.append(one if len(failures) == 1 else many)
    if crashes:
        parts.append(text("not answered: {ids}", ids=_ids(crashes)))
    return parts


def _ids(results: Sequence[Result]) -> str:
    return ", ".join(result.id for result in results)


def _message(refusal: Text, results: Sequence[Result]) -> Text:
    return joined([refusal, *(joined([r.id, r.summary], "  ") for r in results)], "\n  ")


def _fixes(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.fix for result in results if result.fix))


def _is_size(check_id: str) -> bool:
    return check_id in _SIZES or check_id.partition(".")[0] in _SIZES
