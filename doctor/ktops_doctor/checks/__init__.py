"""Every check, one topic a module, in the order of the report."""

from __future__ import annotations

from ktops_doctor.check import Check
from ktops_doctor.checks import (
    cpu,
    deep,
    gpu,
    memory,
    model,
    native,
    network,
    numa,
    python,
    server,
    storage,
    system,
    toolchain,
    triton,
)


def all_checks() -> tuple[Check, ...]:
    """All checks; their ids never change."""
    return (
        *system.CHECKS,
        *cpu.CHECKS,
        *memory.CHECKS,
        *numa.CHECKS,
        deep.BANDWIDTH,
        *gpu.CHECKS,
        deep.COPY,
        triton.KERNEL,
        *toolchain.CHECKS,
        triton.COMPILER,
        *native.CHECKS,
        deep.GOLDEN,
        *python.CHECKS,
        triton.TRITON,
        *storage.CHECKS,
        deep.RATE,
        *network.CHECKS,
        *model.CHECKS,
        deep.HASHES,
        *server.CHECKS,
    )
