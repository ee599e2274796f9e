"""Memory: how much there is, how much this process may take, and how the kernel treats it."""

from __future__ import annotations

import math

from ktops_doctor.check import Check, Finding, Section, fail, ok, skip, warn
from ktops_doctor.expectations import needs, should_be
from ktops_doctor.fixes import in_container, on_container_host, remark, sudo, write_file
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.topology import kilobytes, memory_limit
from ktops_doctor.units import GIB, binary, decimal
from ktops_engine.text import Text, text

_MEMINFO = "/proc/meminfo"
_THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_SWAPPED_BYTES = GIB  # less than this was swapped long ago and does not matter
_LARGE_BYTES = 8 * GIB  # below it a model neither needs huge pages nor meets swap


def _needs(target: Target) -> Text:
    return needs(decimal(target.ram_bytes))


def _field(host: Host, name: str) -> int:
    return kilobytes(host.read_text(_MEMINFO) or "", name) or 0


def _total(host: Host, target: Target) -> Finding:
    total = _field(host, "MemTotal")
    if total >= target.ram_bytes:
        return ok(binary(total), _needs(target))
    return fail(
        binary(total),
        _needs(target),
        detail=text(
            "the weights do not fit, and read from disk for every token they are far too slow"
        ),
        fix=remark("ktops models", text("lists smaller models and what each needs")),
    )


def _limit(host: Host, target: Target) -> Finding:
    found = memory_limit(host)
    if found is None:
        return ok(text("no control group limits it"))
    limit, _ = found
    if limit >= _field(host, "MemTotal"):
        return ok(text("the control group allows all there is"))
    value = text("the control group allows {size}", size=binary(limit))
    if limit >= target.ram_bytes:
        return ok(value, _needs(target))
    size = math.ceil(target.ram_bytes / GIB)
    return fail(
        value,
        _needs(target),
        detail=text("the process would be killed while it loads"),
        fix=on_container_host(f"docker update --memory {size}g --memory-swap {size}g CONTAINER")
        if in_container(host)
        else sudo(host, f"systemctl set-property {_slice(host)} MemoryMax={size}G"),
    )


def _available(host: Host, target: Target) -> Finding:
    available = _field(host, "MemAvailable")
    found = memory_limit(host)
    if found is not None:
        available = min(available, max(0, found[0] - found[1]))
    if available >= target.ram_bytes:
        return ok(binary(available), _needs(target))
    return fail(
        binary(available),
        _needs(target),
        detail=text("other processes hold the rest"),
        fix=remark(
            "ps -eo pid,rss,comm --sort=-rss | head",
            text("shows who; a running ktops counts too"),
        ),
    )


def _swap(host: Host, target: Target) -> Finding:
    total, free = _field(host, "SwapTotal"), _field(host, "SwapFree")
    if not total:
        return ok(text("none"))
    value = text("{used} of {total} used", used=binary(total - free), total=binary(total))
    if total - free <= _SWAPPED_BYTES or target.ram_bytes < _LARGE_BYTES:
        return ok(value)
    return warn(
        value,
        detail=text("memory ran short; weights that were swapped out come back at disk speed"),
        fix=remark(
            sudo(host, "sh -c 'swapoff -a && swapon -a'"), text("brings it back into memory")
        ),
    )


def _huge_pages(host: Host, target: Target) -> Finding:
    setting = host.read_text(_THP)
    if setting is None:
        return skip(text("this kernel has no transparent huge pages"))
    chosen = setting[setting.find("[") + 1 : setting.find("]")]
    if chosen in {"always", "madvise"} or target.ram_bytes < _LARGE_BYTES:
        return ok(chosen)
    return warn(
        chosen,
        should_be("madvise"),
        detail=text("with pages of 4 KiB the cores spend their time looking up addresses"),
        fix=write_file(host, "madvise", _THP),
    )


def _slice(host: Host) -> str:
    """The innermost systemd unit of this process's control group."""
    lines = (host.read_text("/proc/self/cgroup") or "").splitlines()
    parts = [part for line in lines for part in line.rpartition(":")[2].split("/")]
    units = [part for part in parts if part.endswith((".slice", ".service", ".scope"))]
    return units[-1] if units else "user.slice"


CHECKS = (
    Check(
        id="mem.total",
        title=text("Memory of the machine"),
        section=Section.MEMORY,
        run=_total,
        why="All routed experts stay in RAM. A model that does not fit is read from disk for every "
        "token, at the speed of the disk.",
    ),
    Check(
        id="mem.limit",
        title=text("Memory limit of the control group"),
        section=Section.MEMORY,
        run=_limit,
        why="A container or a systemd slice may be allowed less memory than the machine has. The "
        "kernel kills the process at the limit. Control groups of version 1 and 2 are read, with "
        "all their parents.",
    ),
    Check(
        id="mem.available",
        title=text("Memory that is free now"),
        section=Section.MEMORY,
        run=_available,
        needs=("mem.total", "mem.limit"),
        why="What other processes hold cannot be taken. Page cache counts as free.",
    ),
    Check(
        id="mem.swap",
        title=text("Swap in use"),
        section=Section.MEMORY,
        run=_swap,
        why="Weights that were moved to swap come back at disk speed, in the middle of an answer.",
    ),
    Check(
        id="mem.thp",
        title=text("Huge pages"),
        section=Section.MEMORY,
        run=_huge_pages,
        why="Experts are read in streams of many gigabytes a second; with 2 MiB pages the address "
        "translation keeps up. ktops asks for them, the system must allow it.",
    ),
)
