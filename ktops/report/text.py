"""The report of `ktops env` as two columns of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from ktops.settings import ORIGIN_DEFAULT
from ktops.units import format_bytes

Report = Mapping[str, Any]

_WRAP_COLUMNS = 66


def report_lines(report: Report) -> list[str]:
    """`name  value` lines; what has several parts takes a line for each."""
    parts = {
        "ktops": [report["ktops"]],
        "python": [_python(report["python"])],
        "os": [_os(report["os"])],
        "cpu": _cpu(report["cpu"]),
        "numa": [_node(node) for node in report["numa_nodes"]],
        "memory": _memory(report["memory"]),
        "gpu": _gpu(report["gpu"]),
        "tools": [f"{name}: {said}" for name, said in report["tools"].items() if said],
        "packages": _packages(report["packages"]),
        "native": _native(report["native"]),
        "settings": _settings(report["settings"]),
        "environment": [f"{name}={value}" for name, value in report["environment"].items()],
    }
    width = max(map(len, parts)) + 2
    return [
        f"{name if index == 0 else '':<{width}}{item}".rstrip()
        for name, items in parts.items()
        for index, item in enumerate(list(items) or ["none"])
    ]


def _python(python: Report) -> str:
    return f"{python['version']} ({python['implementation']}), {python['executable']}"


def _os(system: Report) -> str:
    libc = f", {system['libc']}" if system["libc"] else ""
    return f"{system['name']}, kernel {system['kernel']}, {system['architecture']}{libc}"


def _cpu(cpu: Report) -> Iterator[str]:
    yield cpu["model"] or "unknown model"
    sockets = "? sockets" if cpu["sockets"] is None else _count(cpu["sockets"], "socket")
    counts = f"{_count(cpu['cores'], 'core')}, {_count(cpu['threads'], 'thread')}"
    usable = f"{_count(cpu['usable_cores'], 'core')}, {_count(cpu['usable_threads'], 'thread')}"
    yield f"{sockets}, {counts}; this process may use {usable}"
    if cpu["quota_cpus"] is not None:
        yield f"the control group grants {cpu['quota_cpus']:g} CPUs' worth of time"
    if cpu["caches"]:
        yield ", ".join(_cache(cache) for cache in cpu["caches"])
    if cpu["flags"]:
        yield " ".join(cpu["flags"])


def _cache(cache: Report) -> str:
    return f"{cache['name']} {cache['count']} x {format_bytes(cache['bytes'])}"


def _node(node: Report) -> str:
    return f"node {node['node']}: CPUs {node['cpus']}, {format_bytes(node['memory_bytes'])}"


def _memory(memory: Report) -> Iterator[str]:
    total, available = _size(memory["total_bytes"]), _size(memory["available_bytes"])
    yield f"{total}, {available} available"
    if memory["limit_bytes"] is not None:
        limit, used = _size(memory["limit_bytes"]), _size(memory["limit_used_bytes"])
        yield f"the control group allows {limit}, {used} used"
    if memory["swap_bytes"]:
        yield f"swap {_size(memory['swap_bytes'])}, {_size(memory['swap_free_bytes'])} free"
    pages = f"{memory['huge_pages'] or 0} of {_size(memory['huge_page_bytes'])}"
    yield f"huge pages {pages}, transparent: {memory['transparent_huge_pages'] or '?'}"


def _gpu(gpu: Report) -> Iterator[str]:
    for device in gpu["devices"]:
        free, total = _size(device["vram_free_bytes"]), _size(device["vram_bytes"])
        generation = device["pcie_generation"] or "?"
        lanes = f"{device['pcie_lanes'] or '?'} of {device['pcie_max_lanes'] or '?'} lanes"
        yield f"{device['name']}, {free} of {total} free, PCIe {generation}, {lanes}"
    if gpu["driver"]:
        yield f"driver {gpu['driver']}, CUDA {gpu['cuda'] or '?'}"
    if gpu["problem"]:
        yield gpu["problem"]


def _packages(packages: Report) -> list[str]:
    found = [f"{name} {number}" for name, number in packages.items() if number]
    return textwrap.wrap(", ".join(found), _WRAP_COLUMNS, break_on_hyphens=False)


def _native(native: Report) -> Iterator[str]:
    state = "missing or stale" if native["state"] == "missing" else native["state"]
    yield state + (f": {native['problem']}" if native["problem"] else "")
    if native["path"]:
        numa = "on" if native["numa"] else "off"
        yield native["path"]
        yield f"{native['compiler']}, NUMA {numa}, built {native['built_at']}"
    if native["isa"]:
        yield f"runs on {native['isa']}; this machine can run {' '.join(native['isa_available'])}"


def _settings(settings: Report) -> list[str]:
    if settings["problem"]:
        return [f"broken: {settings['problem']}"]
    lines = [
        f"{name} = {found['value']}  ({found['origin']})"
        for name, found in settings["values"].items()
        if found["origin"] != ORIGIN_DEFAULT
    ]
    return lines or ["all defaults"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else format_bytes(num_bytes)
