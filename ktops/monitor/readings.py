"""From two looks at a server to what happened between them: rates, percentiles, shares."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from ktops.monitor.server_metrics import Histogram, Sample

WINDOW_S = 300.0  # percentiles are of the requests of this time, where there were any
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Latency:
    """Percentiles in seconds of `count` observations; `over_s` None: since the server's start."""

    percentiles: Mapping[int, float]
    count: int
    over_s: float | None


@dataclass(frozen=True)
class Reading:
    """What a server did between two samples. Rates are a second; bandwidth is that of the time in
    which experts were computed, None when none were."""

    sample: Sample
    interval_s: float
    generation_tokens_per_s: float
    prompt_tokens_per_s: float
    expert_bytes_per_s: float | None
    time_to_first_token: Latency
    time_per_output_token: Latency

    def node_bytes_per_s(self, node: int) -> float | None:
        """The share of the expert reads that fell to a node: as its share of the memory, for the
        kernels read all experts alike."""
        total = sum(self.sample.node_bytes.values())
        if self.expert_bytes_per_s is None or not total:
            return None
        return self.expert_bytes_per_s * self.sample.node_bytes[node] / total

    def document(self) -> dict[str, object]:
        """The reading for a program."""
        sample = self.sample
        return {
            "model": sample.model,
            "state": sample.state,
            "interval_s": round(self.interval_s, 3),
            "generation_tokens_per_s": round(self.generation_tokens_per_s, 3),
            "prompt_tokens_per_s": round(self.prompt_tokens_per_s, 3),
            "expert_bytes_per_s": _whole(self.expert_bytes_per_s),
            "requests": {
                "running": sample.num_running,
                "waiting": sample.num_waiting,
                "finished": dict(sample.finished),
            },
            "time_to_first_token": _latency_document(self.time_to_first_token),
            "time_per_output_token": _latency_document(self.time_per_output_token),
            "kv_cache_usage": round(sample.kv_cache_usage, 4),
            "ram_bytes": sample.ram_bytes,
            "vram_bytes": sample.vram_bytes,
            "nodes": [
                {
                    "node": node,
                    "memory_bytes": num_bytes,
                    "expert_bytes_per_s": _whole(self.node_bytes_per_s(node)),
                }
                for node, num_bytes in sample.node_bytes.items()
            ],
        }


class Readings:
    """Turns samples that come one after the other into readings."""

    def __init__(self, first: Sample) -> None:
        self._samples = deque([first])

    def add(self, sample: Sample) -> Reading:
        """What happened since the sample before."""
        before = self._samples[-1]
        self._samples.append(sample)
        while len(self._samples) > 2 and sample.at - self._samples[1].at >= WINDOW_S:
            self._samples.popleft()
        seconds = max(sample.at - before.at, 1e-6)
        expert_seconds = _growth(before.expert_seconds, sample.expert_seconds)
        expert_bytes = _growth(before.expert_bytes, sample.expert_bytes)
        return Reading(
            sample=sample,
            interval_s=seconds,
            generation_tokens_per_s=_growth(before.generation_tokens, sample.generation_tokens)
            / seconds,
            prompt_tokens_per_s=_growth(before.prompt_tokens, sample.prompt_tokens) / seconds,
            expert_bytes_per_s=expert_bytes / expert_seconds if expert_seconds > 0 else None,
            time_to_first_token=self._latency(sample.first_token, self._samples[0].first_token),
            time_per_output_token=self._latency(sample.next_token, self._samples[0].next_token),
        )

    def _latency(self, now: Histogram, then: Histogram) -> Latency:
        recent = now.since(then)
        if recent.total and recent is not now:
            return _latency(recent, self._samples[-1].at - self._samples[0].at)
        return _latency(now, None)


def _latency(histogram: Histogram, over_s: float | None) -> Latency:
    found = {share: histogram.quantile(share / 100) for share in PERCENTILES}
    known = {share: value for share, value in found.items() if value is not None}
    return Latency(known, histogram.total, over_s)


def _latency_document(latency: Latency) -> dict[str, object]:
    return {
        "count": latency.count,
        "over_s": None if latency.over_s is None else round(latency.over_s, 3),
        **{
            f"p{share}_s": None if value is None else round(value, 6)
            for share, value in ((share, latency.percentiles.get(share)) for share in PERCENTILES)
        },
    }


def _growth(before: float, now: float) -> float:
    """By how much a counter grew; one that fell began anew, with the server."""
    return now - before if now >= before else now


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
