"""The engine's and the process's part of /metrics, looked up at the moment somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ktops_engine import metric_names as names
from ktops_engine.node_memory import NodeMemory
from ktops_engine.server.handle import ModelHandle
from ktops_engine.stats import EngineStats, ExpertTraffic, StepCounts


class EngineCollector(Collector):
    """Reads `EngineStats` once a scrape; everything is 0 while the engine loads."""

    def __init__(
        self, handle: ModelHandle, model_name: str, tokens_per_second: Callable[[], float]
    ) -> None:
        self._handle = handle
        self._model_name = model_name
        self._tokens_per_second = tokens_per_second
        self._node_memory = NodeMemory()

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield from self._now(stats)
        yield from self._since_start(stats)
        nodes = GaugeMetricFamily(
            names.NODE_MEMORY, "Bytes of this process on a NUMA node.", labels=["node"]
        )
        for node, num_bytes in self._node_memory().items():
            nodes.add_metric([str(node)], num_bytes)
        yield nodes
        yield GaugeMetricFamily(names.VRAM, "Bytes this process holds on GPUs.", value=vram_bytes())

    def _stats(self) -> EngineStats:
        engine = self._handle.loaded_engine
        if engine is None:
            return EngineStats(0, 0, 0, 0, StepCounts(), ExpertTraffic())
        return engine.stats()

    def _now(self, stats: EngineStats) -> Iterator[Metric]:
        state = GaugeMetricFamily(names.STATE, "1 for the state it is in.", labels=["state"])
        state.add_metric([self._state()], 1)
        yield state
        yield self._gauge(names.REQUESTS_RUNNING, "Requests being computed.", stats.num_running)
        yield self._gauge(names.REQUESTS_WAITING, "Requests in the queue.", stats.num_waiting)
        yield self._gauge(
            names.KV_CACHE_USAGE, "Share of the KV cache in use, 1 is all.", stats.kv_cache_usage
        )
        yield self._gauge(
            names.TOKENS_PER_SECOND,
            "Tokens generated a second, over the last ten seconds.",
            self._tokens_per_second(),
        )

    def _since_start(self, stats: EngineStats) -> Iterator[Metric]:
        steps, experts = stats.steps, stats.experts
        yield self._counter(names.PROMPT_TOKENS, "Prompt tokens computed.", steps.prompt_tokens)
        yield self._counter(names.GENERATION_TOKENS, "Tokens generated.", steps.generation_tokens)
        seconds = CounterMetricFamily(
            names.STEP_SECONDS,
            "Seconds the engine computed; a step with a piece of a prompt is prefill.",
            labels=["model_name", "phase"],
        )
        seconds.add_metric([self._model_name, "prefill"], steps.prefill_seconds)
        seconds.add_metric([self._model_name, "decode"], steps.decode_seconds)
        yield seconds
        yield self._counter(
            names.EXPERT_BYTES, "Bytes of routed experts read from RAM.", experts.num_bytes
        )
        yield self._counter(
            names.EXPERT_SECONDS, "Seconds the CPU computed routed experts.", experts.seconds
        )

    def _state(self) -> str:
        engine = self._handle.loaded_engine
        return "dead" if engine is not None and not engine.is_alive else self._handle.state

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, what, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, name: str, what: str, value: float) -> Metric:
        family = CounterMetricFamily(name, what, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family


def vram_bytes() -> int:
    """Bytes that this process's torch holds on all GPUs; 0 when it never used one."""
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return 0
    return sum(torch.cuda.memory_reserved(i) for i in range(torch.cuda.device_count()))
