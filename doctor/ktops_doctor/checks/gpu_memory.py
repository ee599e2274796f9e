"""Memory of the GPU that the server uses: which one that is, and has it the room?"""

from __future__ import annotations

from collections.abc import Sequence

from ktops_doctor.check import Check, Finding, Section, gpu_lost, ok, skip
from ktops_doctor.expectations import needs
from ktops_doctor.fixes import remark
from ktops_doctor.gpus import ALL_HIDDEN, SHOW_GPUS, Gpu, smi_report, visible_devices
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.units import decimal, gib
from ktops_engine.text import text
from ktops_engine.visible_gpus import visible_gpus


def _vram(host: Host, target: Target) -> Finding:
    report = smi_report(host)
    if report is None:
        return skip(text("no NVIDIA GPU"))
    variable = visible_devices(host)
    identities = [(str(gpu.index), gpu.uuid) for gpu in report.gpus]
    visible = [report.gpus[place] for place in visible_gpus(variable, identities)]
    if not visible:
        return gpu_lost(
            target,
            text("CUDA_VISIBLE_DEVICES={value} names no GPU of this machine", value=variable)
            if variable
            else ALL_HIDDEN,
            detail=text("the GPU stays idle"),
            fix=SHOW_GPUS,
        )
    first = visible[0]
    value = text(
        "{gpu}, {free} of {total} GiB free",
        gpu=f"GPU {first.index} {first.name}" if len(report.gpus) > 1 else first.name,
        free=gib(first.free_bytes),
        total=gib(first.total_bytes),
    )
    if not target.vram_bytes:
        return ok(value)
    expected = needs(decimal(target.vram_bytes))
    if first.free_bytes >= target.vram_bytes:
        return ok(value, expected)
    detail, fix = _lack(visible, target.vram_bytes)
    return gpu_lost(target, value, expected, detail=detail, fix=fix)


def _lack(visible: Sequence[Gpu], needed_bytes: int) -> tuple[str, str]:
    """Why the first of the `visible` GPUs has fewer bytes free than are needed, and what helps:
    another GPU, the end of other processes, or a smaller model."""
    first = visible[0]
    roomiest = max(visible, key=lambda gpu: gpu.free_bytes)
    if roomiest.free_bytes >= needed_bytes:
        order = [roomiest, *(gpu for gpu in visible if gpu is not roomiest)]
        return text("the server uses the first GPU for what every token uses"), remark(
            f"export CUDA_VISIBLE_DEVICES={','.join(str(gpu.index) for gpu in order)}",
            text(
                "GPU {index} has {free} GiB free",
                index=roomiest.index,
                free=gib(roomiest.free_bytes),
            ),
        )
    if first.total_bytes >= needed_bytes:
        return (
            text("other processes hold the rest"),
            "nvidia-smi --query-compute-apps=pid,used_memory,name --format=csv",
        )
    return (
        text("attention, shared experts and cache do not fit"),
        remark("ktops models", text("lists smaller models and what each needs")),
    )


VRAM = Check(
    id="gpu.vram",
    title=text("Free GPU memory"),
    section=Section.GPU,
    run=_vram,
    needs=("gpu.driver",),
    why="The first GPU that CUDA_VISIBLE_DEVICES names is looked at, by nvidia-smi's "
    "numbers: the server uses it; further ones can only hold experts. Set and empty, the variable "
    "hides every GPU. Without room for all "
    "that every token uses, the server computes the layers that do not fit on the CPU.",
)
