"""Diagnosis of a machine: what it needs to serve a model, what it lacks, and the fix for each.

Standard library only, and of the engine nothing but the form of its sentences is imported in this
process: the doctor finishes when torch, CUDA, numpy, the native library or the engine is broken.
"""

from __future__ import annotations

from ktops_doctor.check import Check, Finding, Result, Section, Status
from ktops_doctor.checks import all_checks
from ktops_doctor.host import Host
from ktops_doctor.live_host import LiveHost
from ktops_doctor.remedy import Remedy, apply
from ktops_doctor.run import UnknownCheckError, run_checks
from ktops_doctor.subsets import BUILD_CHECKS, GPU_CHECKS, SERVE_CHECKS
from ktops_doctor.target import Target

__all__ = [
    "BUILD_CHECKS",
    "GPU_CHECKS",
    "SERVE_CHECKS",
    "Check",
    "Finding",
    "Host",
    "LiveHost",
    "Remedy",
    "Result",
    "Section",
    "Status",
    "Target",
    "UnknownCheckError",
    "all_checks",
    "apply",
    "run_checks",
]
