"""How plans for several machines are shown to people, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from ktops.output import Output
from ktops.planning.document import Column
from ktops.planning.model_plan import ModelPlan
from ktops.planning.view import NONE, RESOURCE_NAMES, cell_of, expert_bytes, machine_line, speed
from ktops.units import format_bytes
from ktops_engine.plan import Prediction
from ktops_engine.text import Text, text

RAM_CAPACITY = text("RAM capacity")
LESS_TODAY = text(
    "Where the last row differs, the server of this version uses less of the machine: the plan for "
    "that machine alone says why."
)


def compare_lines(columns: Sequence[Column], output: Output) -> list[str]:
    """Plans of one model for several machines, a column each."""
    plan = columns[0].plan
    rows = [
        [output.say(title), *(output.say(cell(column.plan)) for column in columns)]
        for title, cell in _COMPARE_ROWS
    ]
    head = text("{name}: {title}", name=plan.name, title=plan.title)
    lines = [head, "", *output.table(rows, ["", *(column.label for column in columns)]), ""]
    lines += [
        f"{column.label}: {output.say(machine_line(column.plan.machine))}" for column in columns
    ]
    for column in columns:
        said = (*column.plan.planned.placement.notes, *column.plan.changes)
        lines += [f"{column.label}: {output.say(line)}" for line in said]
    if any(column.plan.served is not column.plan.planned for column in columns):
        lines += ["", LESS_TODAY]
    return lines


def _limit(plan: ModelPlan) -> Text:
    if not plan.fits:
        return RAM_CAPACITY
    prediction = plan.planned.prediction
    if isinstance(prediction, Prediction):
        return RESOURCE_NAMES[prediction.limited_by]
    return text("unknown")


def _prefill(plan: ModelPlan) -> str:
    prediction = plan.planned.prediction
    known = plan.fits and isinstance(prediction, Prediction)
    return speed(getattr(prediction, "prefill_tokens_per_s", None) if known else None)


def _missing(plan: ModelPlan) -> str:
    lack = plan.planned.lack
    return NONE if lack is None else format_bytes(lack.missing_bytes)


def _gpu_bytes(plan: ModelPlan, *, experts: bool) -> str:
    placement = plan.planned.placement
    return cell_of(expert_bytes(placement) if experts else placement.every_token_vram_bytes)


_COMPARE_ROWS = (
    (text("RAM needed"), lambda plan: cell_of(plan.planned.placement.total_bytes)),
    (text("RAM usable"), lambda plan: cell_of(plan.planned.placement.ram.usable_bytes)),
    (text("RAM missing"), _missing),
    (text("VRAM without experts"), lambda plan: _gpu_bytes(plan, experts=False)),
    (text("VRAM for experts"), lambda plan: _gpu_bytes(plan, experts=True)),
    (text("decode tok/s"), lambda plan: speed(plan.planned.decode_tokens_per_s)),
    (text("prefill tok/s"), _prefill),
    (text("limited by"), _limit),
    (text("context that fits"), lambda plan: str(plan.largest_ctx or NONE)),
    (text("today, decode tok/s"), lambda plan: speed(plan.served.decode_tokens_per_s)),
)
