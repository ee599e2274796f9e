"""Names the stage that hangs: one line now and then while nothing moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ktops.output import Output
from ktops.units import format_duration
from ktops_engine.text import text

INTERVAL_S = 30.0


class Watchdog:
    """Says every `interval_s` without a `beat` that `stage` still goes on, and with what.

    A context manager; `stop` ends it early.
    """

    def __init__(
        self,
        output: Output,
        stage: str,
        doing: str,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self._stage = stage
        self._doing = doing
        self._interval_s = interval_s
        self._clock = clock
        self._last_beat = clock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ktops-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._last_beat = self._clock()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def beat(self, doing: str | None = None) -> None:
        """Something moved; `doing` is what goes on from now."""
        self._last_beat = self._clock()
        if doing is not None:
            self._doing = doing

    def stop(self) -> None:
        """Say nothing any more."""
        self._stopped.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            still_s = self._clock() - self._last_beat
            if still_s < self._interval_s:
                continue
            said = text(
                "still {doing}: nothing has moved for {time}",
                doing=self._doing,
                time=format_duration(still_s),
            )
            self._output.stage(self._stage, said)
            self._output.event(
                "waiting", stage=self._stage, doing=str(self._doing), seconds=round(still_s, 3)
            )
