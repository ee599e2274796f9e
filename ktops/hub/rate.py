"""A ceiling on the bytes a second of a whole download."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

BURST_S = 0.25  # of the rate may go through at once, so that small pieces need no waiting
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B(?:/s)?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_rate(words: str) -> float:
    """Bytes a second of "200MB/s" (10^6) or "50MiB/s" (2^20). Raises KtopsError "invalid-rate"."""
    match = _RATE.fullmatch(words.strip())
    rate = 0.0
    if match:
        number, prefix, binary = match.groups()
        rate = float(number) * (1024.0 if binary else 1000.0) ** _POWERS[prefix.upper()]
    if rate < 1:
        raise KtopsError(
            "invalid-rate",
            text("{words!r} is no rate in bytes a second", words=words),
            "--max-rate 200MB/s",
            exit_status=EXIT_USAGE,
        )
    return rate


class RateLimit:
    """Lets bytes through at `bytes_per_second`, all threads together (a token bucket).

    `take` returns at once while the bucket holds what is asked for; a larger piece goes into debt,
    which the next ones wait for. `wait(seconds)` is how it waits; it may end early.
    """

    def __init__(
        self, bytes_per_second: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = bytes_per_second
        self._burst = bytes_per_second * BURST_S
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = self._burst
        self._filled_at = clock()

    def take(self, count: int, wait: Callable[[float], object] = time.sleep) -> None:
        """Account for `count` bytes, then wait until they may be on their way."""
        with self._lock:
            now = self._clock()
            self._tokens += (now - self._filled_at) * self._rate
            self._tokens = min(self._tokens, self._burst) - count
            self._filled_at = now
            debt_s = -self._tokens / self._rate
        if debt_s > 0:
            wait(debt_s)
