"""What can limit a speed, and how much of it a placement gets on a machine."""

from __future__ import annotations

from enum import StrEnum

from ktops_engine.machine import GpuFacts, MachineFacts
from ktops_engine.plan import rates
from ktops_engine.plan.shares import Placement

LOW, HIGH = 0, 1


class Resource(StrEnum):
    """What can limit the speed of a model that fits."""

    RAM_BANDWIDTH = "RAM bandwidth"
    CPU_COMPUTE = "CPU compute"
    VRAM_BANDWIDTH = "VRAM bandwidth"
    GPU_COMPUTE = "GPU compute"
    PCIE = "PCIe"
    HANDOFF = "GPU-CPU handoff"


def ram_rate(machine: MachineFacts, end: int) -> float:
    """Bytes/s of weights that the RAM delivers."""
    share = rates.MEASURED_RAM_SHARE if machine.bandwidth_is_measured else rates.DATASHEET_RAM_SHARE
    return (machine.read_bandwidth or 0.0) * share[end]


def threads_read_rate(placement: Placement, machine: MachineFacts, end: int) -> float:
    """Bytes/s of weights that the threads get through for one token."""
    return placement.num_threads * rates.CORE_READ_BYTES[_isa(machine)][end]


def cpu_flops(placement: Placement, machine: MachineFacts, end: int) -> float:
    """FLOP/s of the threads for a prompt."""
    return placement.num_threads * rates.CORE_FLOPS[_isa(machine)][end]


def vram_rate(gpu: GpuFacts, share: rates.Range, end: int) -> float:
    """Bytes/s that kernels reach of a GPU's memory, when they reach `share` of its bandwidth."""
    return (gpu.read_bandwidth or 0.0) * share[end]


def gpu_flops(gpu: GpuFacts, share: rates.Range, end: int) -> float:
    """FLOP/s of a GPU's kernels that reach `share` of its peak."""
    return (gpu.bf16_flops or 0.0) * share[end]


def _isa(machine: MachineFacts) -> str:
    return machine.isa or rates.UNKNOWN_ISA
