"""`ktops serve --dry-run`: the checklist with what each stage would do, and nothing done."""

from __future__ import annotations

from ktops.launch.checklist import report_checks, run_subset
from ktops.launch.dummy import choose_dummy
from ktops.launch.native_build import is_built
from ktops.launch.plan_stage import (
    Expectation,
    checks_of,
    look,
    show_plan,
    show_site,
    target_of,
)
from ktops.launch.stages import (
    Absent,
    Order,
    check_before_fetching,
    check_toolchain,
    find_model,
    plan_missing,
    refuse_doubts,
    refuse_unservable,
)
from ktops.output import Output
from ktops.settings import Settings
from ktops_engine.text import text


def preview(output: Output, settings: Settings, order: Order) -> None:
    """Say what serving would fetch, build and place; fail as serving would."""
    found = find_model(output, settings, order)
    if isinstance(found, Absent) and order.dummy is not None:
        found = choose_dummy(output, found)
    building = not is_built()
    if isinstance(found, Absent):
        plan = check_before_fetching(output, settings, order, found, building=building)
        plan_missing(output, settings, found)
        if plan is not None:
            served = plan.served
            expected = Expectation.of(served.decode_tokens_per_s, served.measured)
            show_plan(output, served.placement, expected)
    else:
        if building:
            check_toolchain(output, settings)
        site = look(settings, found, order.dummy)
        checked = run_subset(checks_of(site.placement), target_of(site, settings))
        report_checks(output, checked)
        refuse_unservable(checked, site.name, site.placement.notes)
        show_site(output, site)
        refuse_doubts(checked, site.placement, order, site.name)
    if building:
        output.stage("build", text("the native kernels would be compiled (up to a minute)"))
    output.note(text("Nothing was fetched, built or started."))
    output.event("dry-run", fetch=isinstance(found, Absent), build=building)
