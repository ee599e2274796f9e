"""Times of what runs on a GPU: medians of replays of a graph, over more than its cache holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

CACHE_BYTES = 50 << 20  # L2 of an H100; other GPUs of its kind have less
BEYOND_CACHE = 4 * CACHE_BYTES  # what the calls of a graph read together, at least
REPLAYS = 15

Call = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """One line of the table. `num_bytes`: what has to be read; `flops`: what has to be computed;
    0 where it says nothing. `note`: what else is to be known."""

    section: str
    name: str
    tokens: int | None
    seconds: float
    num_bytes: float = 0
    flops: float = 0
    note: str = ""

    def as_json(self, ceiling: float) -> dict[str, object]:
        """With rates, and their share of `ceiling` bytes a second."""
        rate = self.num_bytes / self.seconds
        return asdict(self) | {
            "us": self.seconds * 1e6,
            "gb_s": rate / 1e9 or None,
            "share": rate / ceiling or None,
            "tflop_s": self.flops / self.seconds / 1e12 or None,
        }


@dataclass(frozen=True)
class Case:
    """Something to time. `prepare(n)` makes calls that together read at least `n` bytes of weights,
    each its own."""

    section: str
    name: str
    tokens: int
    prepare: Callable[[int], list[Call]]
    num_bytes: float = 0
    flops: float = 0

    def compile(self) -> None:
        """One call, so that Triton's cache on disk has its kernels."""
        self.prepare(0)[0]()
        torch.cuda.synchronize()

    def measure(self) -> Figure:
        """Seconds of a call."""
        seconds = graph_seconds(self.prepare(BEYOND_CACHE))
        return Figure(self.section, self.name, self.tokens, seconds, self.num_bytes, self.flops)


def graph_seconds(calls: Sequence[Call]) -> float:
    """Seconds of each of `calls`, captured one after another."""
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    graph.replay()
    times = [event_seconds(graph.replay) for _ in range(REPLAYS)]
    del kept
    return statistics.median(times) / len(calls)


def event_seconds(work: Call, meanwhile: Call = lambda: None) -> float:
    """Seconds between events before and after `work`; the host does `meanwhile` before it waits."""
    began, ended = (_event() for _ in range(2))
    began.record()
    work()
    ended.record()
    meanwhile()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def num_copies(num_bytes: int, wanted: int) -> int:
    """How many of `num_bytes` each have `wanted` bytes together; one at least."""
    return max(1, -(-wanted // num_bytes))
