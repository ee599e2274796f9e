"""Notices a step that does not end: a thread of the kernel pool is held, and the others wait."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ktops_engine.text import Text, text

# No step takes so long: 512 tokens of a prompt would come at less than one a second.
LIMIT_S = 600.0

logger = logging.getLogger(__name__)


class StepWatch:
    """Knows how long the step that runs has taken; a thread of its own logs, once a step, that it
    takes too long. What holds it may let go: then all goes on."""

    def __init__(
        self, *, limit_s: float = LIMIT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._began: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ktops-step-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step, on the engine's thread."""
        self._began = self._clock()
        try:
            yield
        finally:
            self._began = None

    @property
    def stuck_reason(self) -> Text | None:
        """What to say of a step that does not end; None while all is well. From any thread."""
        began = self._began
        if began is None or self._clock() - began < self._limit_s:
            return None
        return text(
            "a step has been running for {seconds:.0f} s and does not end: a thread of process "
            "{pid} may be held, by a debugger or by what else has its CPU; "
            "see: grep State /proc/{pid}/task/*/status",
            seconds=self._clock() - began,
            pid=os.getpid(),
        )

    def close(self) -> None:
        """End the watch. May be called again."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        said = None
        while not self._closed.wait(self._limit_s / 20):
            began, reason = self._began, self.stuck_reason
            if reason is not None and began != said:
                logger.error(
                    "%s; if it stays so: kill -9 %d, then start again", reason, os.getpid()
                )
                said = began
