"""Cores, nodes and control groups, read from /proc and /sys through a host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ktops_doctor.host import Host

_CPUS = "/sys/devices/system/cpu"
_NODES = "/sys/devices/system/node"
_CGROUP = "/sys/fs/cgroup"


@dataclass(frozen=True)
class Node:
    """A NUMA node: its number, its logical CPUs and its memory in bytes."""

    number: int
    cpus: frozenset[int]
    memory_bytes: int


def parse_cpu_list(text: str) -> list[int]:
    """Numbers of a kernel list: '0-2,8' -> [0, 1, 2, 8]."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if first:
            numbers.extend(range(int(first), int(last if dash else first) + 1))
    return numbers


def format_cpu_list(numbers: list[int]) -> str:
    """The reverse of `parse_cpu_list`: [0, 1, 2, 8] -> '0-2,8'."""
    parts: list[str] = []
    ordered = sorted(numbers)
    for index, number in enumerate(ordered):
        if index and number == ordered[index - 1] + 1:
            parts[-1] = f"{parts[-1].partition('-')[0]}-{number}"
        else:
            parts.append(str(number))
    return ",".join(parts)


def physical_cores(host: Host, cpus: frozenset[int]) -> int:
    """Physical cores among `cpus`: hyper-threads of one core count once."""
    cores = set()
    for cpu in cpus:
        siblings = host.read_text(f"{_CPUS}/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.strip() if siblings else str(cpu))
    return len(cores)


def nodes(host: Host) -> list[Node]:
    """NUMA nodes of the machine; empty when the kernel has no NUMA."""
    found = []
    for name in host.list_dir(_NODES):
        digits = name.removeprefix("node")
        if name.startswith("node") and digits.isdigit():
            cpus = parse_cpu_list(host.read_text(f"{_NODES}/{name}/cpulist") or "")
            memory = kilobytes(host.read_text(f"{_NODES}/{name}/meminfo") or "", "MemTotal")
            found.append(Node(int(digits), frozenset(cpus), memory or 0))
    return sorted(found, key=lambda node: node.number)


def kilobytes(meminfo: str, field: str) -> int | None:
    """A field of /proc/meminfo or of a node's meminfo, in bytes."""
    for line in meminfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.split()[-1:] == [field]:
            return int(value.split()[0]) * 1024
    return None


def process_status(host: Host, field: str) -> str:
    """A field of /proc/self/status, '' when absent."""
    for line in (host.read_text("/proc/self/status") or "").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    return ""


def cgroup_folders(host: Host, controller: str) -> Iterator[tuple[str, int]]:
    """Folders of the control groups that bind this process for `controller`, innermost first, each
    with the hierarchy's version (1 or 2). In a container the group's own path may be hidden and
    only the root of the mount be visible; both are tried."""
    for line in (host.read_text("/proc/self/cgroup") or "").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            root, version = _CGROUP, 2
        elif controller in controllers.split(","):
            root, version = f"{_CGROUP}/{controller}", 1
        else:
            continue
        parts = [part for part in group.split("/") if part]
        for depth in range(len(parts), -1, -1):
            yield "/".join([root, *parts[:depth]]), version


def memory_limit(host: Host) -> tuple[int, int] | None:
    """(limit, used) in bytes of the tightest control group, page cache that can go not counted as
    used; None when no group limits memory."""
    tightest: tuple[int, int] | None = None
    for folder, version in cgroup_folders(host, "memory"):
        names = (
            ("memory.max", "memory.current")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        limit = _number(host.read_text(f"{folder}/{names[0]}"))
        # Version 1 writes "no limit" as the largest page-aligned number.
        if limit is None or limit >= 1 << 62:
            continue
        used = _number(host.read_text(f"{folder}/{names[1]}")) or 0
        used = max(0, used - _reclaimable(host, folder))
        if tightest is None or limit - used < tightest[0] - tightest[1]:
            tightest = limit, used
    return tightest


def cpu_quota(host: Host) -> float | None:
    """CPUs' worth of time that the tightest control group grants; None when unlimited."""
    quotas = []
    for folder, version in cgroup_folders(host, "cpu"):
        if version == 2:
            quota, _, period = (host.read_text(f"{folder}/cpu.max") or "").strip().partition(" ")
        else:
            quota = (host.read_text(f"{folder}/cpu.cfs_quota_us") or "").strip()
            period = (host.read_text(f"{folder}/cpu.cfs_period_us") or "").strip()
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _reclaimable(host: Host, folder: str) -> int:
    for line in (host.read_text(f"{folder}/memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in {"inactive_file", "total_inactive_file"}:
            return int(value)
    return 0


def _number(text: str | None) -> int | None:
    stripped = (text or "").strip()
    return int(stripped) if stripped.isdigit() else None
