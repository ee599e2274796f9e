"""The view of a download: a live bar on a terminal, a line now and then elsewhere, or events."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from ktops.output import Output
from ktops.units import format_bytes, format_duration, format_rate

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ktops.hub.planning import Item

LINE_INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.1
RATE_WINDOW_S = 15.0
BAR_WIDTH = 30


class DownloadView:
    """Counts bytes from any thread and shows them. A context manager."""

    def __init__(
        self,
        output: Output,
        total_bytes: int,
        here_bytes: int,
        *,
        stage: str = "fetch",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self._stage = stage
        self._total = total_bytes
        self._here = here_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._started = self._last_shown = clock()
        self._samples = deque([(self._started, 0)])
        self._fetched = 0
        self._verified = 0
        self._interval = LIVE_INTERVAL_S if output.live else LINE_INTERVAL_S
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> DownloadView:
        if self._output.live:
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn(f"  [bold]{self._stage:<8}[/]"),
                BarColumn(bar_width=BAR_WIDTH, complete_style="cyan", finished_style="cyan"),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[detail]}"),
                console=self._output.console(),
                transient=True,
            )
            self._task = self._bar.add_task(
                self._stage, total=self._total or None, completed=self._here, detail="starting"
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def fetched_bytes(self) -> int:
        """Bytes that came from the hub and were kept."""
        return self._fetched

    @property
    def verified_bytes(self) -> int:
        """Bytes of files already here that were read to verify them."""
        return self._verified

    @property
    def elapsed_s(self) -> float:
        """Seconds since the view was made."""
        return self._clock() - self._started

    def add(self, count: int) -> None:
        """`count` bytes arrived; a negative count takes back what has to be fetched again."""
        with self._lock:
            if count >= 0:
                self._fetched += count
            else:  # first what this run fetched, then what an earlier one left
                taken_back = min(-count, self._fetched)
                self._fetched -= taken_back
                self._here -= -count - taken_back
            self._show()

    def add_verified(self, count: int) -> None:
        """`count` bytes of a file that was here already were read."""
        with self._lock:
            self._verified += count
            self._show()

    def file_done(self, item: Item) -> None:
        """One file is whole."""
        with self._lock:
            self._output.event("file", name=item.name, bytes=item.file.size)

    def note(self, text: str) -> None:
        """Something out of the ordinary that mends itself."""
        with self._lock:
            self._output.warn(text)

    def _show(self) -> None:
        now = self._clock()
        if now - self._last_shown < self._interval:
            return
        self._last_shown = now
        rate = self._rate(now)
        done = self._here + self._fetched
        detail = f"{format_bytes(done)} of {format_bytes(self._total)}"
        if rate:
            left = format_duration((self._total - done) / rate)
            detail += f"  {format_rate(rate)}  {left} left"
        elif self._verified:
            detail += f"  verified {format_bytes(self._verified)}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, detail=detail)
            return
        if self._output.is_json:
            self._output.event(
                "progress",
                stage=self._stage,
                done_bytes=done,
                total_bytes=self._total,
                bytes_per_second=round(rate),
                verified_bytes=self._verified,
            )
            return
        percent = 100 * done // self._total if self._total else 100
        self._output.stage(self._stage, f"{percent} %  {detail}")

    def _rate(self, now: float) -> float:
        """Bytes a second over the last seconds, so that a change of the network shows."""
        self._samples.append((now, self._fetched))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        return max(0.0, (self._fetched - before) / (now - since)) if now > since else 0.0
