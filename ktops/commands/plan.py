"""`ktops plan`: what of a model goes where, how fast it can be, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ktops.commandline import output_of
from ktops.options import CpuInfer, CtxSize, GpuExperts, GpuMemory
from ktops.settings import Settings, load_settings
from ktops_engine.errors import EXIT_NOT_ENOUGH

if TYPE_CHECKING:
    from ktops_engine.machine import MachineFacts

EXAMPLES = (
    ("ktops plan r1-q4km", "on this machine"),
    ("ktops plan r1-q4km --compare", "on this and well-known machines"),
    ('ktops plan r1-q4km --machine "2x8460Y+,1024GiB,L40S"', "before it is bought"),
    ("ktops plan r1-q4km --machine cores=64,ram=512GiB,bandwidth=300GB/s", "by its numbers"),
    ("ktops plan r1-q4km --ctx-size 65536 --json", "for a program, with a long context"),
)

DEFAULT_MODEL = "r1-q4km"
THIS = "this"


def plan(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="A name of `ktops models`.", show_default=False),
    ] = None,
    machine: Annotated[
        list[str] | None,
        typer.Option(
            help="Another machine: parts, numbers, or a name; repeatable. 'this' is this one.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Machines side by side: those named, or well-known.")
    ] = False,
    gpu_memory: GpuMemory = None,
    gpu_experts: GpuExperts = None,
    ctx_size: CtxSize = None,
    cpu_infer: CpuInfer = None,
) -> None:
    """Show what of a model goes where in bytes, and how fast it can be.

    Machines are this one, well-known ones (article, h100-host, h20x8, desktop-4090, laptop) or
    described: "2x8460Y+,1024GiB,L40S", "cores=32,ram=512GiB,bandwidth=300GB/s,vram=24GiB".
    The status is 4 when the model does not fit on the machine.
    """
    from ktops.planning.compare_view import compare_lines
    from ktops.planning.document import Column, model_document, plan_document
    from ktops.planning.model_plan import plan_model
    from ktops.planning.view import plan_lines, speed

    flags = {"gpu_memory": gpu_memory, "gpu_experts": gpu_experts, "cpu_infer": cpu_infer}
    settings = load_settings(ctx_size=ctx_size, **flags)
    name = model or settings.default_model or DEFAULT_MODEL
    output = output_of(ctx)
    columns = []
    for label in _labels(machine, compare):
        facts, wishes = _machine(label, settings, flags)
        columns.append(Column(label, plan_model(name, wishes, facts)))
    first = columns[0].plan
    side_by_side = compare or len(columns) > 1
    output.result(
        {"model": model_document(first), "plans": [plan_document(column) for column in columns]},
        human=compare_lines(columns, output) if side_by_side else plan_lines(first, output),
        quiet=[f"{c.label}\t{speed(c.plan.planned.decode_tokens_per_s)}" for c in columns],
    )
    if not side_by_side and not first.fits:
        raise typer.Exit(EXIT_NOT_ENOUGH)


def _labels(machines: list[str] | None, compare: bool) -> list[str]:
    from ktops.planning.machines.datasheet import load_datasheet

    if machines:
        return machines
    if not compare:
        return [THIS]
    presets = load_datasheet().presets.values()
    return [*(preset.name for preset in presets if preset.compare), THIS]


def _machine(
    label: str, settings: Settings, flags: Mapping[str, object]
) -> tuple[MachineFacts | None, Settings]:
    """A machine, None for this one, and the settings that count there: of `flags`, those that are
    set without being given mean this machine alone."""
    if label == THIS:
        return None, settings
    from ktops.planning.machines.described import machine_named

    not_given: dict[str, Any] = {name: None for name, value in flags.items() if value is None}
    return machine_named(label), replace(settings, **not_given)
