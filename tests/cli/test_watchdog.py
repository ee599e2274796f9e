"""A stage that hangs is named."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field

import pytest

from ktops.launch.progress import LoadView
from ktops.launch.watchdog import Watchdog
from ktops.output import Mode, Output
from ktops_engine.text import text
from ktops_engine.types import LoadProgress

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Heard(Output):
    """An output that tells when a stage was said."""

    said: threading.Event = field(default_factory=threading.Event)
    lines: list[tuple[str, str]] = field(default_factory=list)

    def stage(self, name: str, sentence: str) -> None:
        self.lines.append((name, sentence))
        self.said.set()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_without_a_beat_is_named_with_its_time():
    output, clock = Heard(), Clock()
    with Watchdog(output, "load", text("reading"), interval_s=0.001, clock=clock):
        clock.now = 65.0
        assert output.said.wait(PATIENCE_S)
    assert output.lines[0] == ("load", "still reading: nothing has moved for 1:05")


def test_a_stage_that_moves_is_left_in_peace():
    output, clock = Heard(), Clock()
    watchdog = Watchdog(output, "load", text("reading"), interval_s=0.001, clock=clock)
    with watchdog:
        for _ in range(20):
            clock.now += 0.0005
            watchdog.beat(text("warming up"))
            time.sleep(0.002)  # time for a look, which would find a clock far ahead
    assert output.lines == []


def test_programs_get_an_event(capsys):
    clock = Clock()
    output = Heard(mode=Mode.JSON)
    with Watchdog(output, "build", text("compiling"), interval_s=0.001, clock=clock):
        clock.now = 30.0
        assert output.said.wait(PATIENCE_S)
    event = json.loads(capsys.readouterr().out.splitlines()[0])
    assert event == {
        "schema_version": 1, "event": "waiting", "stage": "build", "doing": "compiling",
        "seconds": 30.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("done", "doing"), [(1 << 30, "read 1 GiB of 4 GiB"), (4 << 30, "setting up the model")]
)
def test_a_load_that_hangs_says_where(done, doing):
    output, clock = Heard(), Clock()
    with LoadView(output, clock, patience_s=0.001) as view:
        view.update(LoadProgress("read", done, 4 << 30))
        clock.now = 31.0
        assert output.said.wait(PATIENCE_S)
    assert output.lines[0] == ("load", f"still {doing}: nothing has moved for 0:31")
