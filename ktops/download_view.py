"""The view of a download: live bars on a terminal, a line now and then elsewhere, or events."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ktops.live_bar import live_progress
from ktops.output import Output
from ktops.units import format_bytes, format_duration, format_rate
from ktops_engine.text import Text, joined, text

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ktops.hub.planning import Item

LINE_INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.1
RATE_WINDOW_S = 15.0


class DownloadView:
    """Counts bytes from any thread and shows them, in all and for each file on its way.

    A context manager. A file is on its way from its first byte until `file_done`.
    """

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
        self._ended: float | None = None
        self._samples = deque([(self._started, 0)])
        self._fetched = 0
        self._verified = 0
        self._files: dict[str, _File] = {}
        self._interval = LIVE_INTERVAL_S if output.live else LINE_INTERVAL_S
        self._bars: _Bars | None = None

    def __enter__(self) -> DownloadView:
        if self._output.live:
            self._bars = _Bars(self._output, self._stage, self._total, self._here)
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = self._clock()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

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
        """Seconds from when the view was made to its end, or until now."""
        return (self._ended if self._ended is not None else self._clock()) - self._started

    def add(self, item: Item, count: int) -> None:
        """`count` bytes of `item` arrived; a negative count takes back what has to come again."""
        with self._lock:
            if item.name not in self._files:
                self._files[item.name] = _File(item.here_bytes, item.file.size)
            self._files[item.name].here += count
            if count >= 0:
                self._fetched += count
            else:  # first what this run fetched, then what an earlier one left
                taken_back = min(-count, self._fetched)
                self._fetched -= taken_back
                self._here -= -count - taken_back
            self._show()

    def add_read(self, count: int) -> None:
        """`count` bytes were read, of a view that counts reading and no files."""
        with self._lock:
            self._fetched += count
            self._show()

    def add_verified(self, count: int) -> None:
        """`count` bytes of a file that was here already were read."""
        with self._lock:
            self._verified += count
            self._show()

    def file_done(self, item: Item) -> None:
        """One file is whole."""
        with self._lock:
            self._files.pop(item.name, None)
            self._output.event("file", name=item.name, bytes=item.file.size)

    def note(self, sentence: str) -> None:
        """Something out of the ordinary that mends itself."""
        with self._lock:
            self._output.warn(sentence)

    def _show(self) -> None:
        now = self._clock()
        if now - self._last_shown < self._interval:
            return
        self._last_shown = now
        rate = self._rate(now)
        done = self._here + self._fetched
        detail = self._detail(done, rate)
        if self._bars is not None:
            self._bars.show(done, detail, self._files)
        elif self._output.is_json:
            self._output.event(
                "progress",
                stage=self._stage,
                done_bytes=done,
                total_bytes=self._total,
                bytes_per_second=round(rate),
                verified_bytes=self._verified,
                files=[
                    {"name": name, "here_bytes": file.here, "bytes": file.size}
                    for name, file in self._files.items()
                ],
            )
        else:
            percent = 100 * done // self._total if self._total else 100
            self._output.stage(self._stage, joined([f"{percent} %", detail], "  "))

    def _detail(self, done: int, rate: float) -> Text:
        parts = [
            text("{done} of {total}", done=format_bytes(done), total=format_bytes(self._total))
        ]
        if rate:
            left = format_duration((self._total - done) / rate)
            parts.append(text("{rate}  {duration} left", rate=format_rate(rate), duration=left))
        elif self._verified:
            parts.append(text("verified {bytes}", bytes=format_bytes(self._verified)))
        return joined(parts, "  ")

    def _rate(self, now: float) -> float:
        """Bytes a second over the last seconds, so that a change of the network shows."""
        self._samples.append((now, self._fetched))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        return max(0.0, (self._fetched - before) / (now - since)) if now > since else 0.0


class _File:
    """Bytes of one file on its way: here, and in all."""

    __slots__ = ("here", "size")

    def __init__(self, here: int, size: int) -> None:
        self.here = here
        self.size = size


class _Bars:
    """Live bars: one for the whole, below it one for each file on its way."""

    def __init__(self, output: Output, stage: str, total: int, here: int) -> None:
        self._output = output
        self._tasks: dict[str, TaskID] = {}
        self._progress = live_progress(output)
        self._whole = self._progress.add_task(
            stage, total=total or None, completed=here, detail=output.say(text("starting"))
        )
        self._progress.start()

    def show(self, done: int, detail: str, files: dict[str, _File]) -> None:
        """Redraw: files that are not in `files` any more lose their bar."""
        self._progress.update(self._whole, completed=done, detail=self._output.say(detail))
        for name in [name for name in self._tasks if name not in files]:
            self._progress.remove_task(self._tasks.pop(name))
        for name, file in files.items():
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task("", total=file.size, detail="")
            label = f"{name.rpartition('/')[2]}  {format_bytes(file.size)}"
            self._progress.update(self._tasks[name], completed=file.here, detail=label)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()
