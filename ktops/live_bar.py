"""Bars that redraw themselves on a terminal, with a stage's name in front and words behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ktops.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress

BAR_WIDTH = 30


def live_progress(output: Output) -> Progress:
    """Bars in the form of ktops, yet to be started. A task's description is its stage's name, its
    field `detail` what stands behind the bar. rich is imported here only."""
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("  [bold]{task.description:<7}[/]"),
        BarColumn(bar_width=BAR_WIDTH, complete_style="cyan", finished_style="cyan"),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[detail]}", markup=False),
        console=output.console(),
        transient=True,
    )


class StageBar:
    """One stage's bar. Where the output is not live, it is not `shown` and does nothing."""

    def __init__(self, output: Output, stage: str) -> None:
        self._output = output
        self._stage = stage
        self._progress: Progress | None = None

    @property
    def shown(self) -> bool:
        """Whether there is a bar to look at."""
        return self._progress is not None

    def start(self, detail: str) -> None:
        """Show the bar, if it can be shown."""
        if self._output.live:
            self._progress = live_progress(self._output)
            self._progress.add_task(self._stage, total=None, detail=self._output.say(detail))
            self._progress.start()

    def update(self, done: int, total: int, detail: str) -> None:
        """`done` of `total` (0: not known) is behind us."""
        if self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0],
                completed=done,
                total=total or None,
                detail=self._output.say(detail),
            )

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
