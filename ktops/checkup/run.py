"""One run of the doctor: choose the checks, ask them, show the report, mend what can be mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ktops.checkup import repairs as mending
from ktops.checkup.report import (
    Report,
    blocking,
    closing,
    document,
    lines,
    print_checks,
    result_lines,
)
from ktops.checkup.request import Request, selected
from ktops.checkup.targets import target_for
from ktops.checkup.verdict import ask_plan
from ktops.hub.catalogue import DEMO
from ktops.output import Mode, Output
from ktops.settings import Settings
from ktops_doctor import Check, Host, Result, Target, all_checks, run_checks
from ktops_engine.errors import EXIT_FAILED

DEFAULT_TARGET = "r1-q4km"
RAM_CHECKS = frozenset({"mem.total", "mem.limit", "mem.available", "numa.mems"})


def check_up(
    request: Request,
    output: Output,
    load: Callable[[], Settings],
    new_host: Callable[[], Host],
) -> int:
    """Do what is asked and return the exit status: 0 no failure, 1 failures, 3 a check crashed.

    `load` reads the settings, `new_host` is the machine as it is now. Raises KtopsError for an id
    or a model that does not exist.
    """
    request.validate()
    checks = selected(all_checks(), request)
    if request.list_checks:
        print_checks(output, checks)
        return 0
    settings = load()
    target = target_for(request.model or settings.default_model or DEFAULT_TARGET, settings)
    report = _examine(request, target, settings, checks, new_host())
    if not request.fix:
        output.result(document(report), human=lines(report, output), quiet=report.failing)
        return report.exit_status
    return _mend(request, output, settings, checks, report, new_host)


def _examine(
    request: Request, target: Target, settings: Settings, checks: Sequence[Check], host: Host
) -> Report:
    """Run the checks; when all were asked for, also say what the demo lacks and what the machine
    can do. RAM is held against the plan's bytes where there is a plan. The host remembers its
    answers, so a second round costs nothing."""
    ids = [check.id for check in checks]
    of_ram = [check_id for check_id in ids if check_id in RAM_CHECKS]
    plan = ask_plan(host, target, deep=request.deep) if request.whole or of_ram else None
    results = run_checks(ids, host, target)
    verdict = plan() if plan else None
    if verdict is not None and verdict.ram_bytes is not None:
        target = replace(target, ram_bytes=verdict.ram_bytes)
        planned = {result.id: result for result in run_checks(of_ram, host, target)}
        results = [planned.get(result.id, result) for result in results]
    blocked: dict[str, list[str]] = {}
    if request.whole:
        blocked[target.name] = blocking(results)
        if target.name != DEMO:
            quick = [check.id for check in checks if not check.deep]
            demo = target_for(DEMO, settings)
            blocked[DEMO] = blocking(run_checks(quick, host, demo))
    shown = verdict if request.whole else None
    return Report(target, tuple(results), blocked, request.strict, shown)


def _mend(
    request: Request,
    output: Output,
    settings: Settings,
    checks: Sequence[Check],
    before: Report,
    new_host: Callable[[], Host],
) -> int:
    """Show the report and the repairs; with consent, do them and show what they changed."""
    if output.mode is Mode.HUMAN:
        output.result({}, human=lines(before, output))
    repairs = mending.repairs_for(before.results)
    left = mending.left_over(before.results)
    mending.show(repairs, output)
    after = before
    if repairs and not request.dry_run:
        if mending.agreed(output, yes=request.yes):
            repairs = mending.carry_out(repairs, output)
            after = _again(request, settings, checks, before, new_host())
            left = mending.left_over(after.results)
        else:
            repairs = [replace(repair, state=mending.State.DECLINED) for repair in repairs]
    mending.show_left_over(left, output)
    changed = _changed(before, after, repairs)
    output.result(
        {**document(after), **mending.document(repairs, left)},
        human=[*result_lines(changed, output), "", output.say(closing(after))] if changed else [],
        quiet=after.failing,
    )
    failed = any(repair.state is mending.State.FAILED for repair in repairs)
    return after.exit_status or (EXIT_FAILED if failed else 0)


def _again(
    request: Request, settings: Settings, checks: Sequence[Check], before: Report, host: Host
) -> Report:
    """The report after the repairs. What takes long is not asked twice."""
    kept = {check.id for check in checks if check.deep}
    quick = [check for check in checks if check.id not in kept]
    after = _examine(replace(request, deep=False), before.target, settings, quick, host)
    old = {result.id: result for result in before.results if result.id in kept}
    new = old | {result.id: result for result in after.results}
    return replace(after, results=tuple(new[check.id] for check in checks))


def _changed(before: Report, after: Report, repairs: Sequence[mending.Repair]) -> list[Result]:
    """Results of the checks that were mended, and of all that came out differently."""
    if after is before:
        return []
    mended = {check_id for repair in repairs for check_id in repair.check_ids}
    old = {result.id: result.status for result in before.results}
    return [r for r in after.results if r.id in mended or old.get(r.id) is not r.status]
