"""Every check, one topic a module, in the order of the report."""

from __future__ import annotations

from ktops_doctor.check import Check
from ktops_doctor.checks import (
    cpu,
    gpu,
    memory,
    model,
    native,
    numa,
    python,
    server,
    storage,
    system,
    toolchain,
)


def all_checks() -> tuple[Check, ...]:
    """All checks; their ids never change."""
    return (
        *system.CHECKS,
        *cpu.CHECKS,
        *memory.CHECKS,
        *numa.CHECKS,
        *gpu.CHECKS,
        *toolchain.CHECKS,
        *native.CHECKS,
        *python.CHECKS,
        *storage.CHECKS,
        *model.CHECKS,
        *server.CHECKS,
    )
