"""Where this process's memory lies: bytes on every NUMA node, as the kernel counts its pages."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

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
