"""The ceiling on a download's rate, counted in bytes on a clock of the test's own."""

from __future__ import annotations

import threading

import pytest

from ktops.hub.partial import PartialFile
from ktops.hub.rate import RateLimit, parse_rate
from ktops.hub.remote import RemoteFile
from ktops_engine.errors import KtopsError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("200MB/s", 200e6),
        ("50MiB/s", 50 * 2**20),
        ("1.5GB/s", 1.5e9),
        ("64 KiB", 65536),
        ("800b", 800),
        ("2gib/s", 2**31),
    ],
)
def test_a_rate_has_a_number_and_a_unit(words, rate):
    assert parse_rate(words) == rate


@pytest.mark.parametrize("words", ["", "fast", "100", "0MB/s", "-1MB/s", "10Mbit/s", "1e6B/s"])
def test_anything_else_is_refused_with_an_example(words):
    with pytest.raises(KtopsError) as caught:
        parse_rate(words)
    assert caught.value.code == "invalid-rate"
    assert caught.value.exit_status == 2
    assert "--max-rate 200MB/s" in caught.value.hint


@pytest.mark.parametrize("piece", [1_000, 250_000, 10_000_000])
def test_pieces_of_any_size_come_at_the_rate(piece):
    clock = Clock()
    limit = RateLimit(1_000_000, clock=clock)
    for _ in range(40_000_000 // piece):
        limit.take(piece, clock.wait)
    assert clock.now == pytest.approx(40, abs=0.3)


def test_what_was_not_used_is_not_saved_up():
    clock = Clock()
    limit = RateLimit(1_000_000, clock=clock)
    clock.now = 1000  # a pause saves no more than a quarter of a second
    for _ in range(10):
        limit.take(1_000_000, clock.wait)
    assert clock.now == pytest.approx(1009.75)


def test_all_workers_share_one_limit(tmp_path):
    clock = Clock()
    limit = RateLimit(1_000_000, clock=clock)

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock.wait(timeout or 0)
            return False

    files = [
        PartialFile(
            tmp_path / f"{number}.incomplete",
            RemoteFile(str(number), 5_000_000, None),
            on_bytes=lambda count: None,
            stop=Stop(),
            limit=limit,
        )
        for number in range(4)
    ]
    for _ in range(5):
        for file in files:
            file.write(bytes(1_000_000))
    assert clock.now == pytest.approx(20, abs=0.3)
    for file in files:
        file.__exit__(None, None, None)


def test_the_command_hands_the_rate_to_the_download(ktops, hub, monkeypatch):
    taken = []
    monkeypatch.setattr(
        RateLimit, "take", lambda self, count, wait: taken.append((self._rate, count))
    )
    assert ktops("download", "r1-q4km", "--source", "hf", "--max-rate", "300kB/s").status == 0
    assert {rate for rate, _ in taken} == {300_000}
    total = sum(len(body) for path, body in hub.repos["unsloth/DeepSeek-R1-GGUF"].items()
                if "R1-Q4_K_M" in path)  # fmt: skip
    assert sum(count for _, count in taken) > total  # the weights, and the configuration


def test_a_bad_rate_is_refused_before_anything_else(ktops, hub):
    ran = ktops("download", "r1-q4km", "--max-rate", "100Mbit/s")
    assert ran.status == 2
    assert "is no rate in bytes a second" in ran.stderr
    assert hub.listings == []
