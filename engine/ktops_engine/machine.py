"""What this machine offers the engine: cores it may use, memory it may take. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from ktops_engine.nodes import nodes_of_cpus, spread
from ktops_engine.text import Text

ISAS = ("scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx")  # plainest first


@dataclass(frozen=True)
class GpuFacts:
    """One GPU; `uuid` is the driver's name of it, "" when unknown. Rates are None where nobody
    knows them: `read_bandwidth` of its memory and `pcie_bandwidth` from RAM in bytes/s,
    `bf16_flops` of dense matrix products in FLOP/s."""

    name: str
    total_bytes: int
    free_bytes: int
    read_bandwidth: float | None = None
    pcie_bandwidth: float | None = None
    bf16_flops: float | None = None
    uuid: str = ""


@dataclass(frozen=True)
class MachineFacts:
    """`cpus` holds one logical CPU of every physical core that this process may run on, in turns of
    the NUMA nodes, so that the first few are spread over them; `available_ram_bytes` is what can
    still be taken, the tightest control group counted.

    `read_bandwidth` of the RAM is in bytes/s, None when unknown; `bandwidth_is_measured` tells it
    from a datasheet's. `isa` is the instruction set the kernels would use, "" when unknown.
    `thread_rates` are (threads, calls/s of an expert layer), fewest threads first, where measured.
    `gpu_obstacle` says why the engine cannot compute on the GPUs, None when it can.
    """

    cpus: tuple[int, ...]
    total_ram_bytes: int
    available_ram_bytes: int
    gpus: tuple[GpuFacts, ...] = ()
    num_nodes: int = 1
    read_bandwidth: float | None = None
    bandwidth_is_measured: bool = False
    isa: str = ""
    name: str = ""
    thread_rates: tuple[tuple[int, float], ...] = ()
    gpu_obstacle: Text | None = None


def detect_machine(
    sys_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
    environ: Mapping[str, str] = os.environ,
) -> MachineFacts:
    """Read what the kernel knows of the machine this process runs on: neither GPUs nor bandwidth,
    which take longer to find out (`ktops_engine.gpus`, `ktops_engine.bandwidth`)."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    for limit, used in _cgroup_memory(sys_root, proc_root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    cpus = physical_cpus(sorted(os.sched_getaffinity(0)), sys_root)
    return MachineFacts(
        cpus=spread(cpus, nodes_of_cpus(cpus, sys_root, proc_root)),
        total_ram_bytes=total,
        available_ram_bytes=available,
        num_nodes=max(1, len(list((sys_root / "devices/system/node").glob("node[0-9]*")))),
        isa=_capped(_isa(proc_root), environ.get("KTOPS_ISA", "")),
        name=_cpu_name(proc_root),
    )


def _isa(proc_root: Path) -> str:
    """The best instruction set of the first CPU, by the names of the kernels."""
    flags = set(_cpuinfo(proc_root, "flags").split())
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags:
        if "amx_tile" in flags and "amx_bf16" in flags:
            return "amx"
        if "avx512_vnni" not in flags:
            return "avx512"
        # Intel's cores have slow bfloat16 dot products.
        amd = _cpuinfo(proc_root, "vendor_id") == "AuthenticAMD"
        return "avx512bf16" if amd and "avx512_bf16" in flags else "avx512vnni"
    return "avx2" if {"avx2", "fma", "f16c"} <= flags else "scalar" if flags else ""


def _capped(isa: str, cap: str) -> str:
    """`isa`, no better than `cap`; loading the kernels refuses a cap of another name."""
    return min(isa, cap, key=ISAS.index) if {isa, cap} <= {*ISAS} else isa


def _cpu_name(proc_root: Path) -> str:
    return " ".join(_cpuinfo(proc_root, "model name").split())


def _cpuinfo(proc_root: Path, wanted: str) -> str:
    try:
        lines = (proc_root / "cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        field, _, value = line.partition(":")
        if field.strip() == wanted:
            return value.strip()
    return ""


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
