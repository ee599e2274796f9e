"""GET /metrics in Prometheus' text format: counters of requests, and one look at the engine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from ktops_engine import metric_names as names
from ktops_engine.server.config import ServerConfig
from ktops_engine.server.engine_metrics import EngineCollector
from ktops_engine.server.handle import ModelHandle
from ktops_engine.types import FinishReason, StepOutput

# Seconds. A long prompt on a machine without a GPU takes minutes.
WAIT_BUCKETS = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560,
)  # fmt: skip
TOKEN_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.5,
    1, 2.5, 5,
)  # fmt: skip
RATE_WINDOW_S = 10.0


class Metrics:
    """What one server has measured. Requests are watched on the event loop; any thread may read."""

    def __init__(
        self,
        handle: ModelHandle,
        config: ServerConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.rate = RecentRate(clock)
        self.registry = CollectorRegistry()
        model = config.model_id

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                name, what, ["model_name"], buckets=buckets, registry=self.registry
            ).labels(model)

        self.first_token = histogram(
            names.TIME_TO_FIRST_TOKEN, "Seconds from request to first token.", WAIT_BUCKETS
        )
        self.next_token = histogram(
            names.INTER_TOKEN_LATENCY, "Seconds between two tokens of a request.", TOKEN_BUCKETS
        )
        self.latency = histogram(
            names.REQUEST_LATENCY, "Seconds from request to last token.", WAIT_BUCKETS
        )
        self.queue_time = histogram(
            names.QUEUE_TIME, "Seconds a request waited for its first step.", WAIT_BUCKETS
        )
        finished = Counter(
            names.REQUESTS_FINISHED,
            "Requests that ended, by the reason why.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self.finished = {reason: finished.labels(model, reason.value) for reason in FinishReason}

        def counter(name: str, what: str) -> Counter:
            return Counter(name, what, ["model_name"], registry=self.registry).labels(model)

        self.cache_queries = counter(
            names.PREFIX_CACHE_QUERIES, "Prompt tokens looked up in the prefix cache."
        )
        self.cache_hits = counter(
            names.PREFIX_CACHE_HITS, "Prompt tokens that the prefix cache had."
        )
        self.registry.register(EngineCollector(handle, model, self.rate))
        ProcessCollector(registry=self.registry)

    def watch(self, num_prompt_tokens: int) -> RequestWatch:
        """Start to measure a request that is being submitted now."""
        return RequestWatch(self, num_prompt_tokens)


class RequestWatch:
    """One sequence's times. Its outputs come in order; the first word about its end counts."""

    def __init__(self, metrics: Metrics, num_prompt_tokens: int) -> None:
        self._metrics = metrics
        self._num_prompt_tokens = num_prompt_tokens
        self._submitted_at = metrics.clock()
        self._last_token_at: float | None = None
        self._ended = False

    def output(self, output: StepOutput, at: float) -> None:
        """The engine gave `output` at the metrics' clock's time `at`."""
        if output.token_id is not None:
            self._token(output, at)
        if output.finish_reason is not None:
            self.end(output.finish_reason, at)

    def _token(self, output: StepOutput, at: float) -> None:
        metrics = self._metrics
        if self._last_token_at is None:
            metrics.first_token.observe(at - self._submitted_at)
            metrics.queue_time.observe(output.queue_seconds)
            metrics.cache_queries.inc(self._num_prompt_tokens)
            metrics.cache_hits.inc(output.num_cached_tokens)
        else:
            metrics.next_token.observe(at - self._last_token_at)
        self._last_token_at = at
        metrics.rate.add(at)

    def end(self, reason: FinishReason, at: float | None = None) -> None:
        """The sequence ended. Idempotent."""
        if self._ended:
            return
        self._ended = True
        metrics = self._metrics
        metrics.finished[reason].inc()
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            metrics.latency.observe((metrics.clock() if at is None else at) - self._submitted_at)


class RecentRate:
    """Events a second over the last `RATE_WINDOW_S` seconds. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._times: deque[float] = deque()

    def add(self, at: float) -> None:
        """One event at the clock's time `at`."""
        with self._lock:
            self._times.append(at)
            self._forget(at)

    def __call__(self) -> float:
        """Events a second up to now."""
        with self._lock:
            self._forget(self._clock())
            return len(self._times) / RATE_WINDOW_S

    def _forget(self, now: float) -> None:
        while self._times and self._times[0] < now - RATE_WINDOW_S:
            self._times.popleft()


def metrics_router(metrics: Metrics) -> APIRouter:
    """The route of the metrics. Needs the API key, where there is one."""
    router = APIRouter()

    @router.get("/metrics")
    def show_metrics(request: Request) -> Response:  # on a worker thread: it reads /proc
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"Content-Type": content_type})

    return router
