"""What the view of a download counts and says, on a clock of the test's own."""

from __future__ import annotations

import json

import pytest

from ktops.download_view import DownloadView
from ktops.hub.planning import Item, Step
from ktops.hub.remote import Listing, RemoteFile
from ktops.output import Mode, Output

LISTING = Listing("owner/name", "main", ())
SHARD = Item(LISTING, RemoteFile("a/shard.gguf", 10**9, None), "a/shard.gguf", Step.FETCH, 0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_line_every_ten_seconds_tells_rate_and_time_left(clock, capsys):
    with DownloadView(Output(), 10_000_000_000, 2_000_000_000, clock=clock) as view:
        for _ in range(20):
            clock.now += 1
            view.add(SHARD, 100_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "  fetch   30 %  2.8 GiB of 9.3 GiB  100 MB/s  1:10 left",
        "  fetch   40 %  3.7 GiB of 9.3 GiB  100 MB/s  1:00 left",
    ]


def test_the_rate_is_that_of_the_last_seconds(clock, capsys):
    with DownloadView(Output(mode=Mode.JSON), 10**10, 0, clock=clock) as view:
        for rate in [100_000_000] * 40 + [1_000_000] * 40:
            clock.now += 1
            view.add(SHARD, rate)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[3]["bytes_per_second"] == 100_000_000
    assert events[-1]["bytes_per_second"] == 1_000_000


def test_what_is_fetched_again_is_not_counted_twice(clock):
    view = DownloadView(Output(mode=Mode.QUIET), 1000, 300, clock=clock)
    view.add(SHARD, 200)
    view.add(SHARD, -400)  # 200 of this run, 200 of an earlier one
    view.add(SHARD, 900)
    assert view.fetched_bytes == 900


def test_an_empty_download_divides_by_nothing(clock, capsys):
    with DownloadView(Output(), 0, 0, clock=clock) as view:
        clock.now = 20
        view.add(SHARD, 0)
    assert "100 %" in capsys.readouterr().err
