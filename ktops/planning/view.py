"""How a plan for one machine is shown to people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from ktops.output import Output
from ktops.planning.model_plan import ModelPlan, Outcome
from ktops.units import format_bytes, format_rate
from ktops_engine.plan import Part, Prediction, Resource, Share
from ktops_engine.text import Text, joined, text

if TYPE_CHECKING:
    from ktops_engine.machine import MachineFacts
    from ktops_engine.measured_speeds import Measured
    from ktops_engine.plan import Placement

PART_NAMES: Mapping[Part, Text] = {
    Part.ATTENTION: text("attention"),
    Part.ROUTER: text("norms and routers"),
    Part.SHARED_EXPERTS: text("shared experts"),
    Part.OUTPUT_HEAD: text("output head"),
    Part.DENSE_LAYERS: text("dense layers"),
    Part.TOKEN_EMBEDDING: text("token embedding"),
    Part.ROUTED_EXPERTS: text("routed experts"),
    Part.KV_CACHE: text("KV cache"),
    Part.KV_UP: text("key/value projections in float32"),
    Part.BUFFERS: text("buffers"),
    Part.HOT_EXPERTS: text("copies of most used experts"),
}
RESOURCE_NAMES: Mapping[Resource, Text] = {
    Resource.RAM_BANDWIDTH: text("RAM bandwidth"),
    Resource.CPU_COMPUTE: text("CPU compute"),
    Resource.VRAM_BANDWIDTH: text("VRAM bandwidth"),
    Resource.GPU_COMPUTE: text("GPU compute"),
    Resource.PCIE: text("PCIe"),
    Resource.HANDOFF: text("GPU-CPU handoff"),
}
FALLS_SHORT = text("measured below what this machine should give: ktops doctor --deep")
NONE = "-"


def plan_lines(plan: ModelPlan, output: Output) -> Iterator[str]:
    """A plan for one machine, for people."""
    yield text(
        "Model    {name}: {title}, {size} of weights",
        name=plan.name,
        title=plan.title,
        size=format_bytes(plan.facts.bytes.total),
    )
    yield text("Machine  {machine}", machine=machine_line(plan.machine))
    yield ""
    yield from _placement_table(plan, output)
    yield ""
    yield from _speed_lines(plan, output)
    yield from _served_lines(plan, output)
    if not plan.fits:
        yield ""
        yield text("Does not fit. What would have to change:")
    for change in plan.changes:
        yield f"  {output.say(change)}"


def machine_line(machine: MachineFacts) -> Text:
    """A machine in one line: name, cores, RAM, its bandwidth, GPUs."""
    parts: list[str] = [machine.name] if machine.name else []
    parts.append(text("{cores} cores", cores=len(machine.cpus)))
    parts.append(text("{size} RAM", size=format_bytes(machine.total_ram_bytes)))
    parts.append(_bandwidth(machine))
    parts += [f"{gpu.name} {format_bytes(gpu.total_bytes)}" for gpu in machine.gpus[:1]]
    if len(machine.gpus) > 1:
        parts[-1] = f"{len(machine.gpus)} x {parts[-1]}"
    return joined(parts)


def speed(rates: tuple[float, float] | None) -> str:
    """A range of tokens a second in as few digits as it deserves: '17-26', '6.3-7.5'."""
    if rates is None:
        return NONE
    low, high = (f"{rate:.1f}" if rate < 10 else f"{rate:.0f}" for rate in rates)
    return low if low == high else f"{low}-{high}"


def _bandwidth(machine: MachineFacts) -> Text:
    if machine.read_bandwidth is None:
        return text("bandwidth unknown")
    rate = format_rate(machine.read_bandwidth)
    if machine.bandwidth_is_measured:
        return text("{rate} measured", rate=rate)
    return text("{rate} by datasheet", rate=rate)


def _placement_table(plan: ModelPlan, output: Output) -> list[str]:
    placement = plan.planned.placement
    shares = (*placement.gpus, placement.ram)
    rows = [
        [output.say(PART_NAMES[part]), *(cell_of(share.parts.get(part, 0)) for share in shares)]
        for part in Part
        if any(share.parts.get(part) for share in shares)
    ]
    if placement.gpu_expert_layers:
        layers = sum(bool(layer.routed_experts) for layer in plan.facts.bytes.layers)
        counts = (*placement.expert_layers_by_gpu, layers - placement.gpu_expert_layers)
        name = output.say(text("layers of routed experts"))
        rows.append([name, *(str(count or NONE) for count in counts)])
    rows.append([output.say(text("total")), *(cell_of(share.total_bytes) for share in shares)])
    rows.append([output.say(text("usable")), *(cell_of(share.usable_bytes) for share in shares)])
    return output.table(rows, ["", *(_device_name(share) for share in shares)])


def _device_name(share: Share) -> str:
    return "RAM" if share.device == "ram" else f"GPU {share.device.removeprefix('gpu')}"


def cell_of(num_bytes: int) -> str:
    """A cell of a table."""
    return format_bytes(num_bytes) if num_bytes else NONE


def _speed_lines(plan: ModelPlan, output: Output) -> Iterator[str]:
    placement = plan.planned.placement
    if plan.fits:
        yield from speed_table(plan.planned, output)
        if not isinstance(plan.planned.prediction, Prediction):
            yield _unknown_line(plan.planned)
        yield text("Chunks   {tokens} tokens of a prompt at a time", tokens=placement.prefill_chunk)
        yield text(
            "Context  {tokens} tokens; up to {most} fit",
            tokens=placement.ctx_size,
            most=plan.largest_ctx,
        )
    if placement.hot_experts:
        yield text(
            "Experts  copies of the {count} most used ones in VRAM: {percent} % of reads",
            count=placement.hot_experts,
            percent=round(100 * placement.hot_share),
        )
    yield text("Threads  {threads}", threads=placement.num_threads)
    for note in placement.notes:
        yield text("Note     {note}", note=note)
    if plan.spare_gpu is not None and plan.spare_gpu.fits:
        filled = plan.spare_gpu.placement
        yield text(
            "Spare    with --gpu-memory all, VRAM holds {size} of routed experts: {rate} tok/s",
            size=format_bytes(expert_bytes(filled)),
            rate=speed(plan.spare_gpu.decode_tokens_per_s),
        )


def speed_table(outcome: Outcome, output: Output) -> list[str]:
    """Predicted and measured speeds, and a hint where they do not agree; no line where nothing is
    known of either."""
    if not outcome.speeds:
        return []
    is_measured = any(row.measured for row in outcome.speeds)
    rows = []
    for row in outcome.speeds:
        name = text("decode")
        if row.prompt_tokens:
            name = text("prompt of {tokens}", tokens=row.prompt_tokens)
        cells = [name, speed(row.predicted)]
        if is_measured:
            random = outcome.measured is not None and outcome.measured.is_random
            cells.append(_measured_cell(row.measured, is_random=random))
        cells.append(RESOURCE_NAMES[row.limited_by] if row.limited_by else NONE)
        rows.append([output.say(cell) for cell in cells])
    head = [text("tok/s"), text("predicted"), text("limited by")]
    if is_measured:
        head.insert(2, text("measured"))
    lines = [*output.table(rows, head), ""]
    if any(row.falls_short for row in outcome.speeds):
        lines.insert(-1, output.say(FALLS_SHORT))
    return lines


def _measured_cell(measured: Measured | None, *, is_random: bool) -> str:
    """A figure with what it rests on: 57.4 (480 tokens, 2026-11-22)."""
    if measured is None:
        return NONE
    parts: list[str] = [
        text("{count} tokens", count=measured.figure.num_tokens),
        datetime.fromtimestamp(measured.at).astimezone().date().isoformat(),
    ]
    if is_random:
        parts.append(text("random weights"))
    rate = one_speed(measured.figure.tokens_per_s)
    return text("{rate} ({details})", rate=rate, details=joined(parts))


def one_speed(rate: float) -> str:
    """Tokens a second in three digits or more: '9.71', '57.4', '1020'."""
    return f"{rate:.{2 if rate < 10 else 1 if rate < 100 else 0}f}"


def _unknown_line(outcome: Outcome) -> Text:
    """Why there are no speeds, and what would give them."""
    resources = getattr(outcome.prediction, "resources", ())
    missing = joined(RESOURCE_NAMES[resource] for resource in resources)
    return text(
        "Speed    unknown: nothing tells this machine's {missing}. `ktops build` lets plan measure "
        "RAM; --machine takes the numbers",
        missing=missing,
    )


def _served_lines(plan: ModelPlan, output: Output) -> Iterator[str]:
    """What the server of this version does instead, and why."""
    served = plan.served
    if served is plan.planned:
        return
    placement = served.placement
    if not served.fits:
        yield text(
            "Today    the server of this version needs {needed} of RAM, and {there} are there",
            needed=format_bytes(placement.total_bytes),
            there=format_bytes(placement.ram.usable_bytes),
        )
    elif placement.gpus:
        yield text(
            "Today    the server of this version: {ram} of RAM, {vram} of VRAM, {rate} tok/s",
            ram=format_bytes(placement.total_bytes),
            vram=format_bytes(placement.vram_bytes),
            rate=speed(served.decode_tokens_per_s),
        )
    else:
        yield text(
            "Today    the server of this version, on the CPU alone: {ram} of RAM, {rate} tok/s",
            ram=format_bytes(placement.total_bytes),
            rate=speed(served.decode_tokens_per_s),
        )
    if served.measured is not None and served.measured.decode is not None:
        cell = _measured_cell(served.measured.decode, is_random=served.measured.is_random)
        yield text("         measured: {rate} tok/s", rate=cell)
    for difference in plan.differences:
        yield f"         {output.say(difference)}"


def expert_bytes(placement: Placement) -> int:
    """Bytes of routed experts in GPU memory, copies or not."""
    return sum(share.routed_bytes + share.hot_bytes for share in placement.gpus)
