"""Where this process's memory lies: bytes on every NUMA node, as the kernel counts its pages."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ktops_engine.native.load import Matrix, NativeBuffer, Pool

NUMA_MAPS = Path("/proc/self/numa_maps")
# The kernel walks the page tables of all weights for one answer, seconds where their pages are
# small; and they hardly ever move.
REFRESH_S = 30.0
MAX_SHARE = 0.01  # of the time may go into this

_NODE_PAGES = re.compile(r" N(\d+)=(\d+)(?= )")
_PAGE_SIZE = re.compile(r" kernelpagesize_kB=(\d+)$")


def parse_numa_maps(text: str) -> dict[int, int]:
    """Node -> bytes of /proc/PID/numa_maps: one line a mapping, `N0=pages` and the page's size.

    Format: Linux, Documentation/filesystems/proc.rst.
    """
    nodes: dict[int, int] = {}
    for line in text.splitlines():
        size = _PAGE_SIZE.search(line)
        if size is None:  # nothing of this mapping was touched
            continue
        for node, pages in _NODE_PAGES.findall(line):
            nodes[int(node)] = nodes.get(int(node), 0) + int(pages) * int(size[1]) * 1024
    return dict(sorted(nodes.items()))


@dataclass(frozen=True)
class NodeShare:
    """Bytes of weights that belong on a node, and those of them that lie there; None where the
    kernel does not tell."""

    node: int
    wanted_bytes: int
    there_bytes: int | None


def add_shares(*shares: NodeShare) -> NodeShare:
    """What several pieces of memory have on one node, together."""
    there = [share.there_bytes for share in shares if share.there_bytes is not None]
    return NodeShare(
        node=shares[0].node,
        wanted_bytes=sum(share.wanted_bytes for share in shares),
        there_bytes=sum(there) if len(there) == len(shares) else None,
    )


def count_shares(
    pool: Pool, buffer: NativeBuffer, matrices: Iterable[Matrix], maps: Path = NUMA_MAPS
) -> tuple[NodeShare, ...]:
    """Where the pages of `matrices` in `buffer` are; empty when they belong to no node.

    Asked by the move_pages system call. Where that is forbidden the kernel's count of the mapping
    is taken, which cannot tell one wanted page from another.
    """
    wanted, there, refusal = pool.count_placed(buffer, matrices)
    if refusal:
        found = _mapping(maps, buffer.address)
        if found is None:
            return tuple(NodeShare(*pair, None) for pair in zip(pool.nodes, wanted, strict=True))
        there = [
            min(found.get(node, 0), num_bytes)
            for node, num_bytes in zip(pool.nodes, wanted, strict=True)
        ]
    return tuple(map(NodeShare, pool.nodes, wanted, there))


def _mapping(maps: Path, address: int) -> dict[int, int] | None:
    """Node -> bytes of the mapping that begins at `address`; None where that is not told."""
    try:
        text = maps.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line for line in text.splitlines() if line.startswith(f"{address:08x} ")]
    return parse_numa_maps(lines[0]) if lines else None


class NodeMemory:
    """Bytes of this process on each node, measured again at most every `REFRESH_S` seconds, and
    more seldom where it takes long.

    Empty where the kernel has no NUMA or hides it. May be asked from any thread.
    """

    def __init__(self, path: Path = NUMA_MAPS, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._due_at = clock()
        self._nodes: Mapping[int, int] = {}

    def __call__(self) -> Mapping[int, int]:
        with self._lock:
            began = self._clock()
            if began >= self._due_at:
                self._nodes = self._measure()
                took = self._clock() - began
                self._due_at = began + max(REFRESH_S, took / MAX_SHARE)
            return self._nodes

    def _measure(self) -> Mapping[int, int]:
        try:
            return parse_numa_maps(self._path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return {}
