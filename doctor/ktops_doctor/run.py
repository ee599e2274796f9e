"""Run checks side by side: one that raises or overruns never stops the others."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from queue import Empty, SimpleQueue
from threading import Thread

from ktops_doctor.check import Check, Finding, Result, Status, result_of, skip
from ktops_doctor.fixes import remark
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_engine.text import text

_REPORT = remark("ktops env", text("and report it together with this line"))
_GOOD = frozenset({Status.OK, Status.WARN})


class UnknownCheckError(ValueError):
    """No check has this id; `id` is what was asked for."""

    def __init__(self, check_id: str) -> None:
        super().__init__(f"no check is named {check_id!r}")
        self.id = check_id


def run_checks(
    ids: Iterable[str] | None,
    host: Host,
    target: Target,
    *,
    checks: Sequence[Check] | None = None,
) -> list[Result]:
    """Results of the checks named `ids` (None: all but those that take long), in the order of the
    report.

    What they need is run too, but not reported. Never raises for what a check does; raises
    UnknownCheckError for an id that does not exist.
    """
    if checks is None:
        from ktops_doctor.checks import all_checks

        checks = all_checks()
    known = {check.id: check for check in checks}
    wanted = [check.id for check in checks if not check.deep] if ids is None else list(ids)
    for check_id in wanted:
        if check_id not in known:
            raise UnknownCheckError(check_id)
    results = _Round(host, target, _with_needs(wanted, known)).run()
    return [results[check_id] for check_id in known if check_id in set(wanted)]


def _with_needs(wanted: Sequence[str], known: dict[str, Check]) -> list[Check]:
    needed: set[str] = set()
    pending = list(wanted)
    while pending:
        check_id = pending.pop()
        if check_id not in needed:
            needed.add(check_id)
            pending.extend(known[check_id].needs)
    return [check for check in known.values() if check.id in needed]


@dataclass
class _Round:
    """One pass over the checks: each has a thread of its own, started when its needs are met. What
    takes long comes last, one after another."""

    host: Host
    target: Target
    checks: list[Check]
    results: dict[str, Result] = field(default_factory=dict)
    deadlines: dict[str, float] = field(default_factory=dict)
    done: SimpleQueue[Result] = field(default_factory=SimpleQueue)

    def run(self) -> dict[str, Result]:
        self._start_ready()
        while self.deadlines:
            patience = max(0.0, min(self.deadlines.values()) - time.monotonic())
            try:
                self._finish(self.done.get(timeout=patience))
            except Empty:
                self._give_up_overdue()
            self._start_ready()
        return self.results

    def _start_ready(self) -> None:
        """Start what can be asked now; settle what never can be. Settling may free others."""
        settled = True
        while settled:
            settled = False
            for check in sorted(self.checks, key=lambda check: check.deep):
                if check.id in self.results or check.id in self.deadlines:
                    continue
                answers = [self.results.get(need) for need in check.needs]
                if None in answers:
                    continue
                blocked = next((a for a in answers if a and a.status not in _GOOD), None)
                if blocked is None:
                    if self._may_start(check):
                        self._start(check)
                else:
                    self.results[check.id] = result_of(check, skip(_blocked_by(blocked)))
                    settled = True

    def _may_start(self, check: Check) -> bool:
        """Checks that take long have the machine to themselves: others would spoil what they
        measure. All others are under way or done by then."""
        return not self.deadlines if check.deep else not self._deep_is_running

    @property
    def _deep_is_running(self) -> bool:
        return any(check.deep and check.id in self.deadlines for check in self.checks)

    def _start(self, check: Check) -> None:
        self.deadlines[check.id] = time.monotonic() + check.time_limit
        # A daemon: a check that hangs for ever must not keep the process alive.
        Thread(target=self._ask, args=(check,), name=f"check {check.id}", daemon=True).start()

    def _ask(self, check: Check) -> None:
        self.done.put(ask(check, self.host, self.target))

    def _finish(self, result: Result) -> None:
        if self.deadlines.pop(result.id, None) is not None:
            self.results[result.id] = result

    def _give_up_overdue(self) -> None:
        now = time.monotonic()
        for check in self.checks:
            if self.deadlines.get(check.id, now + 1) <= now:
                del self.deadlines[check.id]
                detail = text("no answer within {seconds} s", seconds=f"{check.time_limit:g}")
                value = text("the check did not finish")
                finding = Finding(Status.CRASH, value, detail=detail, fix=_REPORT)
                self.results[check.id] = result_of(check, finding, check.time_limit)


def ask(check: Check, host: Host, target: Target) -> Result:
    """Run one check here and now; whatever it raises becomes a crash."""
    began = time.monotonic()
    try:
        finding = check.run(host, target)
    except Exception as error:  # noqa: BLE001 - a broken check is reported like a finding
        finding = Finding(
            Status.CRASH,
            text("the check itself failed"),
            detail=f"{type(error).__name__}: {error} ({_place(error)})",
            fix=_REPORT,
        )
    return result_of(check, finding, time.monotonic() - began)


def _place(error: Exception) -> str:
    """The innermost line of the doctor's own code, or of what it called."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{PurePath(frame.filename).name}, line {frame.lineno}"


def _blocked_by(result: Result) -> str:
    """Why a check that needs `result` is skipped: a skipped need hands its own reason on."""
    if result.status is Status.SKIP:
        return result.value
    return text("waits for {check}", check=result.id)
