"""What `ktops top` makes of a server's figures: rates, percentiles, and how they are shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ktops.language import Language
from ktops.monitor.readings import WINDOW_S, Reading, Readings
from ktops.monitor.server_metrics import Histogram, Sample
from ktops.monitor.view import Lines, LivePanel, choose_view, lines
from ktops.output import Mode, Output

GIB = 1 << 30
BOUNDS = (0.1, 1.0, math.inf)


def sample(at: float, **changes: object) -> Sample:
    return replace(
        Sample(
            at=at,
            model="r1",
            state="ready",
            num_running=1,
            num_waiting=2,
            kv_cache_usage=0.25,
            prompt_tokens=100,
            generation_tokens=50,
            expert_bytes=8e9,
            expert_seconds=1.0,
            ram_bytes=4 * GIB,
            vram_bytes=0,
            node_bytes={0: 3 * GIB, 1: GIB},
            finished={"stop": 3, "length": 1, "abort": 0, "error": 2},
            first_token=Histogram(BOUNDS, (2, 4, 4)),
            next_token=Histogram(BOUNDS, (10, 10, 10)),
        ),
        **changes,
    )


def reading() -> Reading:
    later = sample(12.0, generation_tokens=75, prompt_tokens=300, expert_bytes=48e9,
                   expert_seconds=1.2, next_token=Histogram(BOUNDS, (35, 35, 35)))  # fmt: skip
    return Readings(sample(10.0)).add(later)


def test_rates_are_what_grew_over_the_time_between_two_looks():
    found = reading()
    assert found.generation_tokens_per_s == 12.5
    assert found.prompt_tokens_per_s == 100
    assert found.expert_bytes_per_s == pytest.approx(200e9)
    assert found.node_bytes_per_s(0) == pytest.approx(150e9)
    assert found.node_bytes_per_s(1) == pytest.approx(50e9)


def test_an_idle_server_divides_by_nothing():
    found = Readings(sample(10.0)).add(sample(10.0))
    assert found.generation_tokens_per_s == 0
    assert found.expert_bytes_per_s is None
    assert found.node_bytes_per_s(0) is None


def test_a_server_that_began_anew_has_no_negative_rates():
    found = Readings(sample(10.0)).add(
        sample(12.0, generation_tokens=8, expert_bytes=0, expert_seconds=0)
    )
    assert found.generation_tokens_per_s == 4
    assert found.expert_bytes_per_s is None


def test_percentiles_are_of_the_watched_time_and_of_all_before_there_is_any():
    found = reading()
    assert (found.time_per_output_token.count, found.time_per_output_token.over_s) == (25, 2.0)
    assert (found.time_to_first_token.count, found.time_to_first_token.over_s) == (4, None)


def test_what_is_older_than_the_window_is_forgotten():
    readings = Readings(sample(0.0, next_token=Histogram(BOUNDS, (0, 0, 0))))
    for step in range(1, 9):
        count = 10 * step
        found = readings.add(
            sample(step * WINDOW_S / 4, next_token=Histogram(BOUNDS, (count, count, count)))
        )
    assert found.time_per_output_token.count == 40
    assert found.time_per_output_token.over_s == WINDOW_S


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((0, 0, 0), 0.5, None),
        ((10, 10, 10), 0.5, 0.05),
        ((0, 10, 10), 0.5, 0.55),
        ((5, 10, 10), 0.9, 0.82),
        ((0, 0, 10), 0.5, 1.0),  # beyond the last bound nothing is known
        ((0, 0, 1), 0.0, 1.0),
    ],
)
def test_a_quantile_is_spread_evenly_in_its_bucket(counts, share, expected):
    found = Histogram(BOUNDS, counts).quantile(share)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_reading_is_a_panel_of_rows():
    assert lines(reading(), "http://x:1", Output()) == [
        "  Server    r1 at http://x:1, ready",
        "  Speed     12.5 tok/s   prompts 100.0 tok/s",
        "  Requests  1 running   2 waiting   4 finished   2 failed",
        "  TTFT      p50 100 ms   p90 820 ms   p99 982 ms   since the start",
        "  TPOT      p50 50 ms   p90 90 ms   p99 99 ms   last 2 s",
        "  Experts   200 GB/s",
        "  KV cache  25 %",
        "  RAM       4 GiB",
        "  Node 0    3 GiB   150 GB/s",
        "  Node 1    1 GiB   50 GB/s",
        "  VRAM      0 B",
    ]


def test_the_panel_speaks_chinese_and_aligns_wide_characters():
    first, second, *_ = lines(reading(), "http://x:1", Output(language=Language.ZH))
    assert first.startswith("  服务")
    assert second.split() == ["速度", "12.5", "tok/s", "预填充", "100.0", "tok/s"]


def test_elsewhere_a_reading_is_one_line(capsys):
    with Lines(Output(), lambda: "12:00:00") as view:
        view.show(reading())
    assert capsys.readouterr().out == (
        "12:00:00  12.5 tok/s  prompts 100.0 tok/s  experts 200 GB/s  1 running  2 waiting"
        "  TTFT 100 ms  TPOT 50 ms  KV 25 %  RAM 4 GiB  VRAM 0 B"
        "  node 0 150 GB/s  node 1 50 GB/s\n"
    )


def test_json_and_quiet_have_their_lines(capsys):
    Lines(Output(mode=Mode.JSON)).show(reading())
    Lines(Output(mode=Mode.QUIET)).show(reading())
    document, number = capsys.readouterr().out.splitlines()
    event = json.loads(document)
    assert event["event"] == "sample"
    assert event["nodes"][0] == {
        "node": 0,
        "memory_bytes": 3 * GIB,
        "expert_bytes_per_s": 150_000_000_000,
    }
    assert number == "12.5"


def test_a_terminal_gets_a_panel_that_redraws_itself(monkeypatch, capfd):
    monkeypatch.setattr("ktops.output.is_live", lambda stream: True)
    monkeypatch.setattr("ktops.monitor.view.is_live", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "100")
    view = choose_view(Output(no_color=True), "http://x:1")
    assert isinstance(view, LivePanel)
    with view:
        view.show(reading())
        view.show(reading())
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "12.5 tok/s" in captured.err
    assert "\x1b[1A" in captured.err  # the second is drawn over the first
    assert "\x1b[?25h" in captured.err  # the cursor is back


@pytest.mark.parametrize(("stdout", "stderr"), [(False, True), (True, False), (False, False)])
def test_a_pipe_on_either_stream_gets_lines(monkeypatch, stdout, stderr):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: stdout))
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: stderr))
    assert isinstance(choose_view(Output(), "http://x:1"), Lines)


@pytest.mark.parametrize(
    ("variable", "value", "kind"),
    [("TERM", "dumb", Lines), ("CI", "true", Lines), ("NO_COLOR", "1", LivePanel)],
)
def test_the_environment_may_forbid_the_display(monkeypatch, variable, value, kind):
    for stream in ("sys.stdout", "sys.stderr"):
        monkeypatch.setattr(stream, SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv(variable, value)
    assert isinstance(choose_view(Output(), "http://x:1"), kind)


@pytest.mark.parametrize("mode", [Mode.JSON, Mode.QUIET])
def test_programs_get_no_display_even_on_a_terminal(monkeypatch, mode):
    for stream in ("sys.stdout", "sys.stderr"):
        monkeypatch.setattr(stream, SimpleNamespace(isatty=lambda: True))
    assert isinstance(choose_view(Output(mode=mode), "http://x:1"), Lines)
