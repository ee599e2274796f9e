"""`ktops download` with the real client of ModelScope, and the choice between the two hubs."""

from __future__ import annotations

import pytest

from ktops.hub import download as downloading
from ktops.hub import modelscope

WEIGHTS = "unsloth/DeepSeek-R1-GGUF"
THIRD = "DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-00003-of-00009.gguf"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(modelscope, "RETRY_WAIT_S", 0.0)


@pytest.fixture
def scope(ktops):
    return lambda *args: ktops("download", "r1-q4km", "--source", "modelscope", "--json", *args)


def test_the_same_files_come_from_modelscope_and_a_second_run_fetches_nothing(
    scope, hub, models_dir, shards, monkeypatch
):
    ran = scope()
    assert ran.status == 0, ran.stderr
    assert ran.events[0]["hub"] == "ModelScope"
    for name, body in shards.items():
        assert (models_dir / "r1-q4km" / name).read_bytes() == body
    assert hub.fetched() == sorted([*shards, "config.json", "tokenizer.json"])
    hub.data.clear()
    monkeypatch.setattr(downloading, "digest_file", None)
    assert scope().events[-1]["fetched_bytes"] == 0
    assert hub.data == []


def test_a_cut_connection_is_resumed(scope, hub, models_dir, large_shard):
    hub.repos[WEIGHTS][THIRD] = large_shard
    hub.add_fault(THIRD, "cut", 15_000_000)
    ran = scope()
    assert ran.status == 0, ran.stdout
    starts = [request.start for request in hub.data if request.path == THIRD]
    assert len(starts) == 2
    assert 13_000_000 < starts[1] <= 15_000_000
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == large_shard


def test_a_hub_that_ignores_the_range_is_started_over(scope, hub, models_dir, large_shard):
    hub.repos[WEIGHTS][THIRD] = large_shard
    hub.add_fault(THIRD, "cut", 15_000_000)
    hub.add_fault(THIRD, "ignore-range")
    ran = scope()
    assert ran.events[-1]["fetched_bytes"] == ran.events[-1]["bytes"]
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == large_shard


def test_wrong_bytes_are_fetched_once_more_then_refused(scope, hub):
    hub.add_fault(THIRD, "corrupt", 20_000, times=2)
    assert scope().events[-1]["error"]["code"] == "checksum-mismatch"
    hub.add_fault(THIRD, "corrupt", 20_000)
    assert scope().status == 0


def test_too_many_requests_are_waited_for(scope, hub):
    hub.add_fault(THIRD, "status", 429, Retry_After="0")
    assert scope().status == 0


@pytest.mark.parametrize(
    ("status", "code"), [(403, "hub-denied"), (404, "hub-not-found"), (401, "hub-denied")]
)
def test_a_refusal_is_explained(scope, hub, status, code):
    hub.add_fault("files", "status", status)
    ran = scope()
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"] == code
    assert ran.events[-1]["error"]["hint"]


def test_a_failing_file_ends_the_download(scope, hub):
    hub.add_fault(THIRD, "status", 500, times=20)
    assert scope().events[-1]["error"]["code"] == "hub-failed"


def test_modelscope_is_taken_when_hugging_face_cannot_be_reached(ktops, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    ran = ktops("download", "r1-q4km", "--json")
    assert ran.status == 0, ran.stdout
    assert "taking ModelScope" in ran.stderr
    assert ran.events[0]["hub"] == "ModelScope"


def test_when_both_fail_both_are_named(ktops, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    hub.repos.clear()
    error = ktops("download", "r1-q4km", "--json").events[-1]["error"]
    assert error["code"] == "hub-unreachable"
    assert "ModelScope" in error["message"]


def test_what_one_hub_began_the_other_completes(ktops, scope, hub, models_dir, large_shard):
    hub.repos[WEIGHTS][THIRD] = large_shard
    hub.add_fault(THIRD, "cut", 15_000_000)
    hub.add_fault(THIRD, "status", 500)
    assert ktops("download", "r1-q4km", "--source", "hf").status == 1
    hub.data.clear()
    assert scope().status == 0
    assert [(r.path, r.start) for r in hub.data if r.start] == [(THIRD, 10 << 20)]
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == large_shard


def test_an_ms_name_needs_no_source(ktops, hub):
    ran = ktops("download", f"ms:{WEIGHTS}", "--include", "*R1-Q4*", "--json")
    assert ran.status == 0
    assert ran.events[0]["hub"] == "ModelScope"
