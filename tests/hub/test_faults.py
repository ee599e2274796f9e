"""What both hubs may answer instead of a file or a list: an error with a hint, nothing lost."""

from __future__ import annotations

import pytest

WEIGHTS = "unsloth/DeepSeek-R1-GGUF"
FIRST = "DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-00001-of-00009.gguf"
THIRD = FIRST.replace("00001", "00003")
LISTING = {"hf": "revision", "modelscope": "files"}
CODES = {401: "hub-denied", 403: "hub-denied", 404: "hub-not-found", 500: "hub-failed"}

pytestmark = pytest.mark.parametrize("source", ["hf", "modelscope"])


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("ktops.hub.modelscope.RETRY_WAIT_S", 0.0)


@pytest.fixture
def fetch(ktops, source):
    return lambda *args: ktops("download", "r1-q4km", "--source", source, "--json", *args)


@pytest.mark.parametrize("status", CODES)
def test_a_refused_file_ends_the_download_and_the_next_one_goes_on(
    fetch, hub, models_dir, shards, status
):
    hub.add_fault(THIRD, "status", status, times=20)
    ran = fetch("--workers", "1")
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"] == CODES[status]
    assert ran.events[-1]["error"]["hint"]
    assert (models_dir / "r1-q4km" / FIRST).is_file()
    hub.faults.clear()
    hub.data.clear()
    assert fetch().status == 0
    assert FIRST not in hub.fetched()
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == shards[THIRD]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_listing_writes_nothing(fetch, hub, source, models_dir, status):
    hub.add_fault(LISTING[source], "status", status, times=20)
    ran = fetch()
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"] == CODES[status]
    assert ran.events[-1]["error"]["hint"]
    assert not models_dir.exists()


@pytest.mark.parametrize("kind", ["page", "json"])
def test_what_answers_in_the_place_of_a_hub_is_said_so(fetch, hub, source, kind):
    hub.add_fault(LISTING[source], kind, times=20)
    ran = fetch()
    assert ran.status == 1
    error = ran.events[-1]["error"]
    if (source, kind) == ("modelscope", "json"):  # its client takes that for an empty list
        assert error["code"] == "no-such-files"
    else:
        assert error["code"] in ("hub-failed", "hub-unreachable")
        assert error["hint"].startswith("curl ")


def test_a_hub_that_is_busy_is_asked_again_after_the_time_it_names(fetch, hub):
    hub.add_fault(THIRD, "status", 429, Retry_After="1")
    assert fetch().status == 0
    assert [data.status for data in hub.data if data.path == THIRD] == [429, 200]


def test_a_hub_that_stays_busy_is_said_so(fetch, hub, source, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add_fault(THIRD, "status", 429, times=100, Retry_After="1")
    ran = fetch()
    assert ran.events[-1]["error"]["code"] == "hub-rate-limited"
    assert "wait a few minutes" in ran.events[-1]["error"]["hint"]


def test_patterns_that_match_nothing_are_an_error(fetch, hub):
    ran = fetch("--include", "*Q3_K*")
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"] == "no-such-files"


def test_an_empty_repository_is_an_error(fetch, hub):
    hub.repos[WEIGHTS] = {}
    ran = fetch()
    assert ran.events[-1]["error"]["code"] == "no-such-files"
    assert "holds no files" in ran.events[-1]["error"]["message"]


def test_a_repository_that_lacks_a_shard_is_found_before_the_first_byte(fetch, hub):
    hub.repos[WEIGHTS].pop(THIRD)
    error = fetch().events[-1]["error"]
    assert error["code"] == "missing-shards"
    assert "8 of the 9 shards" in error["message"]
    assert hub.data == []
