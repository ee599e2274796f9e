"""Diagnosis of a machine: what it needs to serve a model, what it lacks, and the fix for each.

Standard library only, and nothing of the engine is imported in this process: the doctor finishes
when torch, CUDA, numpy, the native library or the engine itself is broken.
"""

from __future__ import annotations

from ktops_doctor.check import Check, Finding, Result, Section, Status
from ktops_doctor.checks import all_checks
from ktops_doctor.host import Host
from ktops_doctor.live_host import LiveHost
from ktops_doctor.run import UnknownCheckError, run_checks
from ktops_doctor.target import Target

__all__ = [
    "Check",
    "Finding",
    "Host",
    "LiveHost",
    "Result",
    "Section",
    "Status",
    "Target",
    "UnknownCheckError",
    "all_checks",
    "run_checks",
]
