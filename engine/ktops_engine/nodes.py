"""NUMA nodes: whose memory each CPU reads, and whether weights are shared out over them.

Rows belong to nodes that have both memory and threads. A CPU whose own node has no memory that this
process may use counts for the nearest one that has; a node without CPUs gets no rows, and serves
when the others are full.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Literal

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

NumaMode = Literal["auto", "on", "off"]
NUMA_MODES: tuple[NumaMode, ...] = ("auto", "on", "off")

UNREACHABLE = 255  # in the kernel's distances
SYS, PROC = Path("/sys"), Path("/proc")


@dataclass(frozen=True)
class _Node:
    id: int
    cpus: frozenset[int]
    has_memory: bool
    distances: dict[int, int]


def nodes_of_cpus(
    cpus: Sequence[int], sys_root: Path = SYS, proc_root: Path = PROC
) -> tuple[int, ...]:
    """The node whose memory each of `cpus` is nearest to, among those this process may use; 0 for
    all of them where the kernel has no NUMA or hides it."""
    nodes = _nodes(sys_root)
    allowed = _allowed_nodes(proc_root)
    usable = [n.id for n in nodes if n.has_memory and (allowed is None or n.id in allowed)]
    if not usable:
        return (0,) * len(cpus)
    nearest = {cpu: _nearest(node, usable) for node in nodes for cpu in node.cpus}
    return tuple(nearest.get(cpu, usable[0]) for cpu in cpus)


def _nearest(node: _Node, others: Sequence[int]) -> int:
    """Of `others` the one at the smallest distance, then with the smallest number; itself if it is
    among them."""
    if node.id in others:
        return node.id
    return min(others, key=lambda other: (node.distances.get(other, UNREACHABLE), other))


def spread(cpus: Sequence[int], nodes: Sequence[int]) -> tuple[int, ...]:
    """`cpus` in such an order that any number of the first has about the same share of each node;
    those of a node keep theirs."""
    by_node: dict[int, list[int]] = {}
    for cpu, node in zip(cpus, nodes, strict=True):
        by_node.setdefault(node, []).append(cpu)
    turns = zip_longest(*(by_node[node] for node in sorted(by_node)))
    return tuple(cpu for cpu in chain.from_iterable(turns) if cpu is not None)


def thread_nodes(
    mode: NumaMode,
    cpus: Sequence[int],
    *,
    is_built: bool,
    sys_root: Path = SYS,
    proc_root: Path = PROC,
) -> tuple[int, ...] | None:
    """The nodes that the threads on `cpus` take their rows from; None when rows belong to no node:
    that is wished, or there is one node, or the library `is_built` without NUMA.

    Raises KtopsError "numa-not-built" (status 2) when that contradicts the wish.
    """
    if mode == "off":
        return None
    nodes = nodes_of_cpus(cpus, sys_root, proc_root)
    if len(set(nodes)) == 1:
        return None
    if is_built:
        return nodes
    if mode == "auto":
        return None
    raise KtopsError(
        "numa-not-built",
        text("--numa on: the native kernels were built without NUMA, and this machine has it"),
        "ktops build --numa on --force",
        exit_status=EXIT_USAGE,
    )


def _nodes(sys_root: Path) -> list[_Node]:
    """Every node, by number. Format: Linux, Documentation/ABI/stable/sysfs-devices-node."""
    folder = sys_root / "devices/system/node"
    ids = sorted(int(found.name[4:]) for found in folder.glob("node[0-9]*"))
    nodes = []
    for node in ids:
        files = folder / f"node{node}"
        memory = re.search(r"MemTotal:\s+(\d+)", _read(files / "meminfo"))
        distances = map(int, _read(files / "distance").split())
        nodes.append(
            _Node(
                id=node,
                cpus=_ids(_read(files / "cpulist")),
                has_memory=memory is not None and int(memory[1]) > 0,
                distances=dict(zip(ids, distances, strict=False)),  # of those that are online
            )
        )
    return nodes


def _allowed_nodes(proc_root: Path) -> frozenset[int] | None:
    """Nodes whose memory the cpuset of this process allows; None when that is not told."""
    match = re.search(r"^Mems_allowed_list:\s*(\S+)", _read(proc_root / "self/status"), re.M)
    return _ids(match[1]) if match else None


def _ids(listed: str) -> frozenset[int]:
    """Numbers as the kernel lists them: "0-3,8"."""
    found: set[int] = set()
    for part in listed.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
