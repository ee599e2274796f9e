"""Python packages that the doctor may install: small ones, and those that can be compiled here."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from ktops_doctor.fixes import pip_command
from ktops_doctor.gpus import MIN_CUDA, smi_report, toolkit_release
from ktops_doctor.host import Host
from ktops_doctor.remedy import Remedy
from ktops_doctor.units import version
from ktops_engine.text import text

_FLASH_ATTN = "flash-attn"


def flash_attn_missing(host: Host) -> bool:
    """Whether flash_attn is surely not installed: looked up without importing anything."""
    return host.probe("libraries").facts.get("flash_attn_found") is False


def flash_attn_remedy(host: Host) -> Remedy | None:
    """Install flash_attn. None unless torch is a CUDA build that the driver runs, and a toolkit of
    the same major version can compile what has no wheel."""
    built = version(str(host.probe("libraries").facts.get("torch_cuda") or ""))
    report = smi_report(host)
    if not built or report is None or not report.gpus or built[:1] > version(report.cuda)[:1]:
        return None
    toolkit = version(toolkit_release(host))
    if toolkit < MIN_CUDA or toolkit[:1] != built[:1]:
        return None
    return Remedy(
        text("install flash_attn (compiles for a while where there is no wheel)"),
        (pip_command(host, "install", _FLASH_ATTN, "--no-build-isolation"),),
        undo=shlex.join(pip_command(host, "uninstall", "-y", _FLASH_ATTN)),
    )


def packages_remedy(host: Host, wanted: Mapping[str, str]) -> Remedy:
    """Install requirements by name ({'numpy': 'numpy>=1.26'}); undone to what was there before."""
    before = {name: host.package_version(name) for name in wanted}
    new = [name for name, number in before.items() if number is None]
    undo = []
    if new:
        undo.append(pip_command(host, "uninstall", "-y", *new))
    if old := [f"{name}=={number}" for name, number in before.items() if number is not None]:
        undo.append(pip_command(host, "install", *old))
    return Remedy(
        text("install {packages}", packages=", ".join(wanted)),
        (pip_command(host, "install", *wanted.values()),),
        undo=" && ".join(map(shlex.join, undo)),
    )


def reinstall_remedy(host: Host, names: Iterable[str]) -> Remedy | None:
    """The same versions once more, nothing else touched. None when a version is not known."""
    pinned = []
    for name in names:
        number = host.package_version(name)
        if number is None:
            return None
        pinned.append(f"{name}=={number}")
    return Remedy(
        text("install {packages} once more", packages=", ".join(pinned)),
        (pip_command(host, "install", "--force-reinstall", "--no-deps", *pinned),),
    )
