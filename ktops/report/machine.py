"""What a machine is, for a report: processor, memory, GPUs and tools, asked through a Host.

Everything is read from /proc, /sys and the tools themselves; what is missing is None or empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktops_doctor.gpus import pci_gpus, smi_output, smi_report
from ktops_doctor.topology import (
    cpu_quota,
    format_cpu_list,
    kilobytes,
    memory_limit,
    nodes,
    parse_cpu_list,
    physical_cores,
)
from ktops_engine.native.toolchain import NEWEST_GCC_TRIED, OLDEST_GCC

if TYPE_CHECKING:
    from ktops_doctor import Host

_CPUS = "/sys/devices/system/cpu"
_TRANSPARENT_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
# Of the hundred and more flags of a processor, those that kernels of this kind are written for.
_FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq",
    "avx512vl", "avx512_vnni", "avx512_vbmi", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8",
    "amx_bf16", "amx_fp16", "asimd", "asimddp", "i8mm", "bf16", "sve", "hypervisor",
)  # fmt: skip
_COMPILERS = ("g++", *(f"g++-{major}" for major in range(NEWEST_GCC_TRIED, OLDEST_GCC - 1, -1)))
_TOOLS = (*_COMPILERS, "as", "cmake", "ninja", "nvcc")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cpu_facts(host: Host) -> dict[str, object]:
    """Model, counts, caches and flags of the processors."""
    info = host.read_text("/proc/cpuinfo") or ""
    online = parse_cpu_list(host.read_text(f"{_CPUS}/online") or "")
    allowed = host.cpus_allowed()
    cpus = frozenset(online) or allowed
    flags = (_field(info, "flags") or _field(info, "Features") or "").split()
    return {
        "model": _field(info, "model name"),
        "sockets": _sockets(host, cpus, info),
        "cores": physical_cores(host, cpus),
        "threads": len(cpus),
        "usable_cores": physical_cores(host, allowed),
        "usable_threads": len(allowed),
        "quota_cpus": cpu_quota(host),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "caches": _caches(host, cpus),
    }


def numa_facts(host: Host) -> list[dict[str, object]]:
    """The NUMA nodes; none where the kernel has no NUMA."""
    return [
        {
            "node": node.number,
            "cpus": format_cpu_list(sorted(node.cpus)),
            "memory_bytes": node.memory_bytes,
        }
        for node in nodes(host)
    ]


def memory_facts(host: Host) -> dict[str, object]:
    """Memory of the machine, the limit of the control group, huge pages and swap, in bytes."""
    info = host.read_text("/proc/meminfo") or ""
    limit = memory_limit(host)
    chosen = host.read_text(_TRANSPARENT_HUGE_PAGES) or ""
    return {
        "total_bytes": kilobytes(info, "MemTotal"),
        "available_bytes": kilobytes(info, "MemAvailable"),
        "limit_bytes": limit[0] if limit else None,
        "limit_used_bytes": limit[1] if limit else None,
        "swap_bytes": kilobytes(info, "SwapTotal"),
        "swap_free_bytes": kilobytes(info, "SwapFree"),
        "huge_pages": _number(_field(info, "HugePages_Total")),
        "huge_page_bytes": kilobytes(info, "Hugepagesize"),
        "transparent_huge_pages": chosen[chosen.find("[") + 1 : chosen.find("]")] or None,
    }


def gpu_facts(host: Host) -> dict[str, object]:
    """GPUs as nvidia-smi describes them, or why it does not."""
    report = smi_report(host)
    return {
        "driver": (report.driver or None) if report else None,
        "cuda": (report.cuda or None) if report else None,
        "problem": None if report else _gpu_problem(host),
        "devices": [
            {
                "name": gpu.name,
                "vram_bytes": gpu.total_bytes,
                "vram_free_bytes": gpu.free_bytes,
                "pcie_generation": gpu.max_generation or None,
                "pcie_lanes": gpu.lanes or None,
                "pcie_max_lanes": gpu.max_lanes or None,
            }
            for gpu in (report.gpus if report else ())
        ],
    }


def tool_facts(host: Host) -> dict[str, str | None]:
    """The first line that each build tool says of its version, None when it is not there.

    A tool beside the interpreter comes first, as the build takes it. Compilers with a version in
    their name are listed when they are there.
    """
    own = host.python().executable.rpartition("/")[0]
    found: dict[str, str | None] = {}
    for name in _TOOLS:
        path = f"{own}/{name}" if host.exists(f"{own}/{name}") else host.which(name)
        if path is not None:
            found[name] = _version_line(host, path)
        elif "-" not in name:
            found[name] = None
    return found


def _version_line(host: Host, path: str) -> str:
    output = host.run(path, "--version")
    said = (output.stdout or output.stderr).strip().splitlines()
    if not output.ok:
        return f"does not work: {said[0] if said else 'it says nothing'}"
    # nvcc ends with its version, the others begin with it.
    line = next((line for line in said if "release" in line), said[0] if said else "")
    return f"{line} ({path})"


def _gpu_problem(host: Host) -> str | None:
    if host.which("nvidia-smi") is None:
        count = len(pci_gpus(host))
        return f"{count} on the PCI bus, but nvidia-smi is not installed" if count else None
    output = smi_output(host)
    if output.timed_out:
        return "nvidia-smi does not answer"
    if output.ok:
        return "nvidia-smi names no GPU"
    said = " ".join((output.stdout + " " + output.stderr).split())
    return f"nvidia-smi failed: {said[:200]}"


def _sockets(host: Host, cpus: frozenset[int], info: str) -> int | None:
    packages = {
        (host.read_text(f"{_CPUS}/cpu{cpu}/topology/physical_package_id") or "").strip()
        for cpu in cpus
    } - {""}
    packages = packages or {
        line.partition(":")[2].strip()
        for line in info.splitlines()
        if line.startswith("physical id")
    }
    return len(packages) or None


def _caches(host: Host, cpus: frozenset[int]) -> list[dict[str, object]]:
    """Every kind of cache, its size in bytes and how many there are."""
    kinds: dict[tuple[str, int], set[str]] = {}
    for cpu in cpus:
        folder = f"{_CPUS}/cpu{cpu}/cache"
        for index in host.list_dir(folder):
            level, kind, size, shared = (
                (host.read_text(f"{folder}/{index}/{name}") or "").strip()
                for name in ("level", "type", "size", "shared_cpu_list")
            )
            if level and size[:-1].isdigit() and size[-1:] in _UNITS:
                letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
                num_bytes = int(size[:-1]) * _UNITS[size[-1:]]
                kinds.setdefault((f"L{level}{letter}", num_bytes), set()).add(shared or str(cpu))
    return [
        {"name": name, "bytes": num_bytes, "count": len(shared)}
        for (name, num_bytes), shared in sorted(kinds.items())
    ]


def _field(text: str, name: str) -> str | None:
    """The first value of a `name : value` line."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
