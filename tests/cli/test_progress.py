"""Loading is a bar on a terminal and a few plain lines elsewhere."""

from __future__ import annotations

import json

import pytest

from ktops.launch.progress import LoadView
from ktops.output import Mode, Output
from ktops.units import format_bytes, format_bytes_decimal, format_duration, format_rate
from ktops_engine.types import WARM_UP, LoadProgress

GIB = 1 << 30


class Clock:
    """Time that moves when a test says so, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def load(output: Output, seconds_a_step: float) -> None:
    clock = Clock()
    with LoadView(output, clock) as view:
        for done in range(5):
            view.update(LoadProgress("read", done * GIB, 4 * GIB))
            clock.now += seconds_a_step
        view.finish()


def test_a_pipe_gets_a_line_every_ten_seconds_and_a_sum(capsys):
    load(Output(), seconds_a_step=6)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "  load    50 %  read 2 GiB of 4 GiB  179 MB/s  0:12 left",
        "  load    100 %  read 4 GiB of 4 GiB  179 MB/s",
        "  load    4 GiB in 30.0 s, 143.2 MB/s",
    ]


def test_random_weights_are_filled_in_not_read(capsys):
    clock = Clock()
    with LoadView(Output(), clock) as view:
        for done in range(3):
            view.update(LoadProgress("fill", done * GIB, 2 * GIB))
            clock.now += 12
    assert "  load    50 %  filled 1 GiB of 2 GiB  89.5 MB/s  0:12 left" in capsys.readouterr().err


def test_compiling_the_gpu_kernels_is_said_at_once(capsys):
    clock = Clock()
    with LoadView(Output(), clock) as view:
        view.update(LoadProgress("read", 2 * GIB, 2 * GIB))
        for _ in range(2):
            clock.now += 1
            view.update(LoadProgress(WARM_UP, 0, 0))
    assert capsys.readouterr().err.splitlines() == [
        "  load    compiling the GPU kernels (about half a minute the first time)"
    ]


def test_a_fast_load_is_one_line(capsys):
    load(Output(), seconds_a_step=0.1)
    assert capsys.readouterr().err == "  load    4 GiB in 0.5 s\n"


def test_quiet_says_nothing(capsys):
    load(Output(mode=Mode.QUIET), seconds_a_step=60)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_json_gets_events(capsys):
    load(Output(mode=Mode.JSON), seconds_a_step=30)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "load"
    assert events[0]["stage"] == "read"
    assert events[-1] == {
        "schema_version": 1,
        "event": "loaded",
        "bytes": 4 * GIB,
        "seconds": 150.0,
    }


def test_a_terminal_gets_a_bar(monkeypatch, capfd):
    monkeypatch.setattr("ktops.output.is_live", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "100")
    load(Output(no_color=True), seconds_a_step=1)
    error = capfd.readouterr().err
    assert "━" in error
    assert "\x1b[?25h" in error  # the cursor is back
    assert error.endswith("  load    4 GiB in 5.0 s, 859 MB/s\n")


def test_a_failed_load_leaves_no_bar_behind(monkeypatch):
    monkeypatch.setattr("ktops.output.is_live", lambda stream: True)

    def fail(view):
        with view:
            view.update(LoadProgress("read", 1, 2))
            raise ZeroDivisionError

    view = LoadView(Output(no_color=True))
    with pytest.raises(ZeroDivisionError):
        fail(view)
    assert not view._bar.shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(0), "0 B"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(404_425_000_000), "376.7 GiB"),
        (format_bytes(2 << 40), "2 TiB"),
        (format_bytes_decimal(382e9), "382 GB"),
        (format_rate(6.12e9), "6.1 GB/s"),
        (format_duration(18.4), "0:18"),
        (format_duration(3700), "1:01:40"),
        (format_duration(-1), "0:00"),
    ],
)
def test_units_read_as_people_write_them(text, expected):
    assert text == expected
