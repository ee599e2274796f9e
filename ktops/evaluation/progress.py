"""How far an evaluation is: a live bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from ktops.live_bar import StageBar
from ktops.output import Output
from ktops.units import format_duration
from ktops_engine.text import Text, joined, text

if TYPE_CHECKING:
    from ktops_engine.evaluate.run import EvalProgress

LINE_INTERVAL_S = 10.0
STAGE = "eval"


class EvalView:
    """Shows EvalProgress as it comes. A context manager; says in the end how fast it was."""

    def __init__(self, output: Output, clock: Callable[[], float] = time.monotonic) -> None:
        self._output = output
        self._clock = clock
        self._began = self._last_line = clock()
        self._done = 0
        self._bar = StageBar(output, STAGE)

    def __enter__(self) -> EvalView:
        self._began = self._last_line = self._clock()
        self._bar.start("")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if error is None:
            elapsed_s = self._clock() - self._began
            parts = (
                text("{count} tokens in {seconds} s", count=self._done, seconds=f"{elapsed_s:.1f}"),
                _rate(self._done, elapsed_s),
            )
            self._output.stage(STAGE, joined(parts))

    def update(self, progress: EvalProgress) -> None:
        """Show `progress`: at once on a terminal, else every few seconds."""
        now = self._clock()
        self._done = progress.done_tokens
        detail = _detail(progress, now - self._began)
        if self._bar.shown:
            self._bar.update(progress.done_tokens, progress.total_tokens, detail)
        elif now - self._last_line >= LINE_INTERVAL_S:
            self._last_line = now
            percent = f"{100 * progress.done_tokens // progress.total_tokens} %"
            self._output.stage(STAGE, joined([percent, detail], "  "))


def _detail(progress: EvalProgress, elapsed_s: float) -> Text:
    done, total = progress.done_tokens, progress.total_tokens
    left_s = elapsed_s / done * (total - done)
    return joined(
        [
            text("{done} of {total} tokens", done=done, total=total),
            _rate(done, elapsed_s),
            text("{time} left", time=format_duration(left_s)),
            text("perplexity so far {value}", value=f"{math.exp(min(progress.mean_nll, 700)):.4g}"),
        ],
        "  ",
    )


def _rate(tokens: int, elapsed_s: float) -> str:
    return f"{tokens / elapsed_s:.0f} tok/s" if elapsed_s > 0 else "- tok/s"
