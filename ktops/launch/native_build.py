"""Building the native kernels as a stage of a longer command: a bar or a line, and the time."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from ktops.launch.watchdog import Watchdog
from ktops.live_bar import StageBar
from ktops.output import Output
from ktops_engine.text import text

if TYPE_CHECKING:
    from ktops_engine.native.cache import BuildInfo

_STEP = re.compile(r"\[(\d+)/(\d+)\]\s*(.*)")  # ninja: [3/20] Building CXX object ...


def is_built() -> bool:
    """Whether the kernels are there and belong to the sources and the compiler."""
    from ktops_engine.native.build import find_current

    return find_current() is not None


def build_stage(output: Output) -> BuildInfo:
    """Compile the kernels, show how far it is. Raises KtopsError as `build_native`."""
    from ktops_engine.native.build import build_native

    output.stage("build", text("the native kernels, once for this machine (up to a minute)"))
    output.event("build", state="started")
    began = time.monotonic()
    with _Steps(output) as steps:
        info = build_native(on_line=steps.line)
    seconds = time.monotonic() - began
    output.stage(
        "build",
        text(
            "{library} by {compiler} in {seconds} s",
            library=info.path.name,
            compiler=info.compiler,
            seconds=f"{seconds:.0f}",
        ),
    )
    output.event(
        "build", state="done", path=str(info.path), numa=info.numa, seconds=round(seconds, 3)
    )
    return info


class _Steps:
    """Ninja's steps as a bar on a terminal; a watchdog names the file that takes long."""

    def __init__(self, output: Output) -> None:
        self._bar = StageBar(output, "build")
        self._watchdog = Watchdog(output, "build", text("compiling"))

    def __enter__(self) -> _Steps:
        self._bar.start("cmake")
        self._watchdog.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._watchdog.stop()
        self._bar.stop()

    def line(self, line: str) -> None:
        """Hear a line of CMake or ninja."""
        step = _STEP.match(line)
        self._watchdog.beat(text("compiling ({step})", step=line.strip()) if step else None)
        if step:
            done, total, doing = step.groups()
            self._bar.update(int(done), int(total), doing.rpartition("/")[2])
