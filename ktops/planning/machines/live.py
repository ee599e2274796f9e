"""This machine, with what only measuring or a datasheet can tell of it."""

from __future__ import annotations

from dataclasses import replace

from ktops.planning.machines.datasheet import load_datasheet
from ktops_engine.errors import KtopsError
from ktops_engine.machine import GpuFacts, MachineFacts


def this_machine() -> MachineFacts:
    """The machine this process runs on, its GPUs and the bandwidth of its RAM.

    The bandwidth is measured where the native library is built (under a second, once), else taken
    from the datasheet of its processors, else None.
    """
    from ktops_engine.gpus import engine_machine
    from ktops_engine.threads import remembered_thread_rates

    machine = with_gpu_rates(engine_machine())
    machine = replace(machine, thread_rates=remembered_thread_rates(machine))
    measured = _measured(machine)
    if measured is not None:
        return replace(machine, read_bandwidth=measured, bandwidth_is_measured=True)
    return replace(machine, read_bandwidth=_of_datasheet(machine))


def with_gpu_rates(machine: MachineFacts) -> MachineFacts:
    """`machine` with what datasheets say of its GPUs."""
    return replace(machine, gpus=tuple(_with_rates(gpu) for gpu in machine.gpus))


def _measured(machine: MachineFacts) -> float | None:
    from ktops_engine.bandwidth import read_bandwidth

    try:
        return read_bandwidth(machine)
    except (KtopsError, OSError):  # a broken library is the doctor's to name
        return None


def _of_datasheet(machine: MachineFacts) -> float | None:
    """What the channels of all sockets give, when all their cores are ours: a part of a machine has
    neighbours on the same channels."""
    cpu = load_datasheet().cpu(machine.name)
    if cpu is None or len(machine.cpus) % cpu.cores:
        return None
    return cpu.read_bandwidth * (len(machine.cpus) // cpu.cores)


def _with_rates(gpu: GpuFacts) -> GpuFacts:
    sheet = load_datasheet().gpu(gpu.name)
    if sheet is None:
        return gpu
    return replace(
        gpu,
        read_bandwidth=sheet.read_bandwidth,
        bf16_flops=sheet.bf16_flops,
        pcie_bandwidth=gpu.pcie_bandwidth or sheet.pcie_bandwidth,
    )
