"""What this machine offers the engine: cores it may use, memory it may take. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class MachineFacts:
    """`cpus` holds one logical CPU of every physical core that this process may run on, in order;
    `available_ram_bytes` is what can still be taken, the tightest control group counted."""

    cpus: tuple[int, ...]
    total_ram_bytes: int
    available_ram_bytes: int


def detect_machine(sys_root: Path = Path("/sys"), proc_root: Path = Path("/proc")) -> MachineFacts:
    """Read the facts of the machine this process runs on."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    for limit, used in _cgroup_memory(sys_root, proc_root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return MachineFacts(
        cpus=physical_cpus(sorted(os.sched_getaffinity(0)), sys_root),
        total_ram_bytes=total,
        available_ram_bytes=available,
    )


def physical_cpus(allowed: list[int], sys_root: Path = Path("/sys")) -> tuple[int, ...]:
    """One CPU of each physical core among `allowed`; all of them where the topology is hidden."""
    chosen: dict[tuple[str, str], int] = {}
    for cpu in allowed:
        topology = sys_root / f"devices/system/cpu/cpu{cpu}/topology"
        try:
            package = (topology / "physical_package_id").read_text().strip()
            siblings = (topology / "thread_siblings_list").read_text().strip()
        except OSError:
            package, siblings = "", str(cpu)
        chosen.setdefault((package, siblings), cpu)
    return tuple(chosen.values())


def _cgroup_memory(sys_root: Path, proc_root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes of every control group above this process that sets a limit."""
    found = []
    for directory, limit_name, used_name in _cgroup_directories(sys_root, proc_root):
        try:
            limit = int((directory / limit_name).read_text())
            used = int((directory / used_name).read_text()) - _reclaimable(directory)
        except (OSError, ValueError):  # absent, or "max": no limit here
            continue
        found.append((limit, max(0, used)))
    return found


def _reclaimable(directory: Path) -> int:
    """Page cache that the kernel gives back under pressure: not really used."""
    for line in (directory / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in {"inactive_file", "total_inactive_file"}:
            return int(value)
    return 0


def _cgroup_directories(sys_root: Path, proc_root: Path) -> list[tuple[Path, str, str]]:
    try:
        lines = (proc_root / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, names = sys_root / "fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root = sys_root / "fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        directory = root / group.lstrip("/")
        while True:  # a parent's limit binds its children too
            found.append((directory, *names))
            if directory == root or root not in directory.parents:
                break
            directory = directory.parent
    return found
