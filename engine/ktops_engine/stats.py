"""What an engine counts while it works: numbers that cost nothing to keep, for whoever watches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ExpertTraffic:
    """Bytes of expert weights that were read from RAM, and the seconds it took."""

    num_bytes: int = 0
    seconds: float = 0.0

    def add(self, num_bytes: int, seconds: float) -> None:
        """Count one read."""
        self.num_bytes += num_bytes
        self.seconds += seconds

    def __add__(self, other: ExpertTraffic) -> ExpertTraffic:
        return ExpertTraffic(self.num_bytes + other.num_bytes, self.seconds + other.seconds)


@dataclass
class StepCounts:
    """Tokens the steps computed and drew, and the seconds they took, since the engine started.

    A step that computes a part of a prompt counts as prefill, also when it decodes beside it.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True)
class EngineStats:
    """One look at an engine: what it does now, and what it has done since it started."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    steps: StepCounts
    experts: ExpertTraffic

    @property
    def kv_cache_usage(self) -> float:
        """The share of the cache's blocks that requests hold, 0 to 1."""
        return 1 - self.num_free_blocks / self.num_blocks if self.num_blocks else 0.0
