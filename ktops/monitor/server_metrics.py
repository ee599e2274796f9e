"""What a running server says of itself at GET /metrics, fetched and taken apart."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ktops.server_client import EXAMPLE_URL, ServerClient
from ktops_engine import metric_names as names
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

if TYPE_CHECKING:
    import httpx
    from prometheus_client import Metric
    from prometheus_client.samples import Sample as MetricSample

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Histogram:
    """Seconds that were observed: `counts[i]` of them were at most `bounds[i]`, the last of which
    is infinite."""

    bounds: tuple[float, ...] = (math.inf,)
    counts: tuple[float, ...] = (0.0,)

    @property
    def total(self) -> int:
        """How many were observed."""
        return int(self.counts[-1])

    def since(self, earlier: Histogram) -> Histogram:
        """What was observed after `earlier`; all of it when the server began anew since then."""
        if earlier.bounds != self.bounds or earlier.counts[-1] > self.counts[-1]:
            return self
        counts = tuple(b - a for a, b in zip(earlier.counts, self.counts, strict=True))
        return Histogram(self.bounds, counts)

    def quantile(self, share: float) -> float | None:
        """The value that `share` of all are below, None without any; evenly spread inside a bucket
        and never beyond the last finite bound, as Prometheus' histogram_quantile has it."""
        if not self.total:
            return None
        rank = share * self.counts[-1]
        low, below = 0.0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count >= rank and count > below:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (rank - below) / (count - below)
            low, below = bound, count
        return low


@dataclass(frozen=True)
class Sample:
    """One scrape: `at` is a monotonic time in seconds; counts are since the server's start."""

    at: float
    model: str
    state: str
    num_running: int
    num_waiting: int
    kv_cache_usage: float
    prompt_tokens: float
    generation_tokens: float
    expert_bytes: float
    expert_seconds: float
    ram_bytes: int
    vram_bytes: int
    node_bytes: Mapping[int, int]
    finished: Mapping[str, int]
    first_token: Histogram = field(default_factory=Histogram)
    next_token: Histogram = field(default_factory=Histogram)


class MetricsClient(ServerClient):
    """Asks one server. Raises KtopsError "invalid-url"."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        super().__init__(url, api_key, command="ktops top", read_timeout_s=TIMEOUT_S)

    def sample(self) -> Sample:
        """Scrape once.

        Raises KtopsError: server-unreachable, invalid-api-key, not-a-ktops-server.
        """
        import httpx
        from prometheus_client.parser import text_string_to_metric_families

        try:
            response = self._http.get("/metrics")
        except httpx.TransportError as error:
            raise _unreachable(self.url, error) from error
        _check(response, self.url)
        try:
            return parse_sample(text_string_to_metric_families(response.text), time.monotonic())
        except (ValueError, KeyError, IndexError) as error:
            raise _not_ktops(self.url) from error


def parse_sample(families: Iterable[Metric], at: float) -> Sample:
    """A scrape's families as a `Sample`. Raises KeyError, ValueError or IndexError when they are
    not those of a ktops server."""
    found = {family.name: family.samples for family in families}

    def value(name: str) -> float:
        return float(found[name][0].value)

    running = found[names.REQUESTS_RUNNING][0]
    return Sample(
        at=at,
        model=running.labels["model_name"],
        state=next(s.labels["state"] for s in found[names.STATE]),
        num_running=int(running.value),
        num_waiting=int(value(names.REQUESTS_WAITING)),
        kv_cache_usage=value(names.KV_CACHE_USAGE),
        prompt_tokens=value(names.PROMPT_TOKENS),
        generation_tokens=value(names.GENERATION_TOKENS),
        expert_bytes=value(names.EXPERT_BYTES),
        expert_seconds=value(names.EXPERT_SECONDS),
        ram_bytes=int(value(names.RESIDENT_MEMORY)),
        vram_bytes=int(value(names.VRAM)),
        node_bytes={int(s.labels["node"]): int(s.value) for s in found.get(names.NODE_MEMORY, ())},
        finished={
            s.labels["finished_reason"]: int(s.value)
            for s in found[names.REQUESTS_FINISHED]
            if s.name.endswith("_total")
        },
        first_token=_histogram(found[names.TIME_TO_FIRST_TOKEN]),
        next_token=_histogram(found[names.INTER_TOKEN_LATENCY]),
    )


def _histogram(samples: Iterable[MetricSample]) -> Histogram:
    buckets = sorted(
        (float(s.labels["le"]), float(s.value)) for s in samples if s.name.endswith("_bucket")
    )
    return Histogram(tuple(le for le, _ in buckets), tuple(count for _, count in buckets))


def _check(response: httpx.Response, url: str) -> None:
    if response.status_code == 401:
        raise KtopsError(
            "invalid-api-key",
            text("the server at {url} shows its metrics only with its API key", url=url),
            text("ktops top --api-key KEY   (or set KTOPS_API_KEY)"),
        )
    if not response.is_success:
        raise _not_ktops(url)


def _unreachable(url: str, error: Exception) -> KtopsError:
    return KtopsError(
        "server-unreachable",
        text(
            "no server answers at {url}: {reason}",
            url=url,
            reason=str(error) or type(error).__name__,
        ),
        text("ktops serve   (in another terminal), or --url for a server elsewhere"),
    )


def _not_ktops(url: str) -> KtopsError:
    return KtopsError(
        "not-a-ktops-server",
        text("{url} answers, but not with the metrics of a ktops server", url=url),
        text("ktops top --url {url}   (the address that ktops serve printed)", url=EXAMPLE_URL),
    )
