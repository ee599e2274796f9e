"""`ktops serve --dry-run`: the checklist with what each stage would do, and nothing done."""

from __future__ import annotations

from ktops.launch.dummy import choose_dummy
from ktops.launch.native_build import is_built
from ktops.launch.plan_line import Expectation, show_plan
from ktops.launch.serving import admit
from ktops.launch.stages import (
    Absent,
    Order,
    check_before_fetching,
    check_toolchain,
    find_model,
    plan_missing,
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
        admit(output, settings, order, found)
    if building:
        output.stage("build", text("the native kernels would be compiled (up to a minute)"))
    output.note(text("Nothing was fetched, built or started."))
    output.event("dry-run", fetch=isinstance(found, Absent), build=building)
