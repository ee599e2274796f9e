"""The view of a model being loaded: a live bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktops.launch.watchdog import INTERVAL_S, Watchdog
from ktops.live_bar import StageBar
from ktops.output import Output
from ktops.units import format_bytes, format_duration, format_rate
from ktops_engine.text import Text, joined, text
from ktops_engine.types import WARM_UP

if TYPE_CHECKING:
    from ktops_engine.types import LoadProgress

LINE_INTERVAL_S = 10.0
SLOW_S = 1.0  # from here on a rate says something
COMPILING = text("compiling the GPU kernels (about half a minute the first time)")
PLACE, READ, FILL = "place", "read", "fill"  # the engine's names of the stages that take long


@dataclass(frozen=True)
class _Line:
    """A stage as text: how much is done, how fast, how long it will take."""

    stage: str
    done_bytes: int
    total_bytes: int
    elapsed_s: float

    @property
    def percent(self) -> int:
        return 100 * self.done_bytes // self.total_bytes

    @property
    def bytes_per_second(self) -> float:
        return self.done_bytes / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def detail(self) -> Text:
        if self.stage == WARM_UP:
            return COMPILING
        if not self.total_bytes:
            return joined([self.stage])
        done, total = format_bytes(self.done_bytes), format_bytes(self.total_bytes)
        parts: list[str] = [_amount(self.stage, done, total)]
        rate = self.bytes_per_second
        if rate:
            parts.append(format_rate(rate))
            if self.done_bytes < self.total_bytes:
                left_s = (self.total_bytes - self.done_bytes) / rate
                parts.append(text("{time} left", time=format_duration(left_s)))
        return joined(parts, "  ")


def _amount(stage: str, done: str, total: str) -> Text:
    if stage == PLACE:
        return text("placed {done} of {total}", done=done, total=total)
    if stage == READ:
        return text("read {done} of {total}", done=done, total=total)
    if stage == FILL:
        return text("filled {done} of {total}", done=done, total=total)
    return text("{stage} {done} of {total}", stage=stage, done=done, total=total)


class LoadView:
    """Shows LoadProgress as it comes, from any thread. A context manager; `finish` sums it up.

    When nothing moves for `patience_s`, a line names what it is waiting for.
    """

    def __init__(
        self,
        output: Output,
        clock: Callable[[], float] = time.monotonic,
        *,
        patience_s: float = INTERVAL_S,
    ) -> None:
        self._output = output
        self._clock = clock
        self._lock = threading.Lock()
        self._watchdog = Watchdog(
            output, "load", text("starting the engine"), interval_s=patience_s, clock=clock
        )
        self._started = self._stage_started = self._last_line = clock()
        self._stage = ""
        self._read_bytes = 0
        self._bar = StageBar(output, "load")

    def __enter__(self) -> LoadView:
        self._started = self._last_line = self._clock()
        self._bar.start(text("starting the engine"))
        self._watchdog.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def update(self, progress: LoadProgress) -> None:
        """Show `progress`: at once on a terminal, else every few seconds and at a stage's end."""
        with self._lock:
            now = self._clock()
            is_new = progress.stage != self._stage
            if is_new:
                self._stage, self._stage_started = progress.stage, now
            self._read_bytes = max(self._read_bytes, progress.done_bytes)
            is_whole = 0 < progress.total_bytes <= progress.done_bytes
            line = _Line(
                progress.stage,
                progress.done_bytes,
                progress.total_bytes,
                now - self._stage_started,
            )
            self._watchdog.beat(text("setting up the model") if is_whole else line.detail)
            if self._bar.shown:
                self._bar.update(progress.done_bytes, progress.total_bytes, line.detail)
            elif (is_new and line.stage == WARM_UP) or now - self._last_line >= LINE_INTERVAL_S:
                self._last_line = now
                percent = [f"{line.percent} %"] if line.total_bytes else []
                self._output.stage("load", joined([*percent, line.detail], "  "))
            else:
                return
            self._output.event(
                "load",
                stage=line.stage,
                done_bytes=line.done_bytes,
                total_bytes=line.total_bytes,
                bytes_per_second=round(line.bytes_per_second),
            )

    def finish(self) -> None:
        """End the display with one line: how much was loaded, in what time."""
        self._close()
        elapsed_s = self._clock() - self._started
        parts: list[str] = [
            text(
                "{size} in {seconds} s",
                size=format_bytes(self._read_bytes),
                seconds=f"{elapsed_s:.1f}",
            )
        ]
        if elapsed_s >= SLOW_S:
            parts.append(format_rate(self._read_bytes / elapsed_s))
        self._output.stage("load", joined(parts))
        self._output.event("loaded", bytes=self._read_bytes, seconds=round(elapsed_s, 3))

    def _close(self) -> None:
        self._watchdog.stop()
        with self._lock:
            self._bar.stop()
