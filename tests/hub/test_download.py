"""`ktops download` with the real client of Hugging Face against a local hub."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from stalled_download import partials, stalled_download

from ktops.hub import download as downloading
from ktops.hub import planning
from ktops.hub.catalogue import find_entry
from ktops.hub.store import State, inspect_model

THIRD = "DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-00003-of-00009.gguf"
WEIGHTS = "unsloth/DeepSeek-R1-GGUF"
HF = ("--source", "hf")
CHUNK = 10 << 20  # what the client writes at once
FIRST = THIRD.replace("00003", "00001")


def test_weights_and_configuration_come_together(ktops, hub, models_dir, shards):
    ran = ktops("download", "r1-q4km", *HF)
    assert ran.status == 0, ran.stderr
    folder = models_dir / "r1-q4km"
    for name, body in shards.items():
        assert (folder / name).read_bytes() == body
    assert hub.fetched() == sorted([*shards, "config.json", "tokenizer.json"])
    assert sorted(path.name for path in (folder / "config").iterdir()) == [
        "config.json",
        "tokenizer.json",
    ]
    assert inspect_model(find_entry("r1-q4km"), models_dir).state is State.COMPLETE
    assert "r1-q4km is complete" in ran.stdout
    assert "ktops serve r1-q4km" in ran.stdout
    assert partials(folder) == []


def test_a_second_run_fetches_nothing_and_reads_nothing(ktops, hub, models_dir, monkeypatch):
    assert ktops("download", "r1-q4km", *HF).status == 0
    hub.data.clear()
    monkeypatch.setattr(downloading, "digest_file", None)  # calling it would be an error
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.status == 0
    assert hub.data == []
    assert ran.events[-1]["event"] == "complete"
    assert ran.events[-1]["fetched_bytes"] == ran.events[-1]["verified_bytes"] == 0


def test_events_name_the_plan_each_file_and_the_end(ktops, hub, shards):
    events = ktops("download", "r1-q4km", *HF, "--json").events
    assert events[0]["event"] == "plan"
    assert sum(event["event"] == "file" for event in events) == len(shards) + 2
    assert events[-1]["bytes"] == events[0]["total_bytes"] == events[-1]["fetched_bytes"]
    assert {event["schema_version"] for event in events} == {1}


def test_a_dry_run_lists_exact_bytes_and_writes_nothing(ktops, hub, models_dir, shards):
    ran = ktops("download", "r1-q4km", *HF, "--dry-run")
    assert ran.status == 0
    assert THIRD in ran.stdout
    total = sum(map(len, shards.values())) + sum(
        len(hub.repos["deepseek-ai/DeepSeek-R1"][name])
        for name in ("config.json", "tokenizer.json")
    )
    assert f"({total} bytes)" in ran.stdout
    assert hub.data == []
    assert not models_dir.exists()


def test_quiet_prints_the_folder_alone(ktops, hub, models_dir):
    ran = ktops("download", "r1-q4km", *HF, "-q")
    assert (ran.stdout, ran.stderr) == (f"{models_dir / 'r1-q4km'}\n", "")


def test_a_disk_that_is_too_small_stops_before_the_first_byte(ktops, hub, models_dir, monkeypatch):
    monkeypatch.setattr(planning, "_free_bytes", lambda place: 1000)
    ran = ktops("download", "r1-q4km", *HF)
    assert ran.status == 4
    assert "are missing" in ran.stderr
    assert "  Fix: df -h " in ran.stderr
    assert hub.data == []
    assert not models_dir.exists()


def test_a_dry_run_that_does_not_fit_says_so_in_one_document(ktops, hub, monkeypatch):
    monkeypatch.setattr(planning, "_free_bytes", lambda place: 1000)
    ran = ktops("download", "r1-q4km", *HF, "--dry-run", "--json")
    assert ran.status == 4
    assert json.loads(ran.stdout)["fits"] is False
    ran = ktops("download", "r1-q4km", *HF, "--dry-run")
    assert ran.status == 4
    assert THIRD in ran.stdout
    assert "are missing" in ran.stderr


def test_wrong_bytes_of_the_right_length_are_fetched_once_more(ktops, hub, models_dir, shards):
    hub.add_fault(THIRD, "corrupt", 20_000)
    ran = ktops("download", "r1-q4km", *HF)
    assert ran.status == 0
    assert "arrived spoilt" in ran.stderr
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == shards[THIRD]


def test_wrong_bytes_twice_are_an_error_and_are_not_kept(ktops, hub, models_dir):
    hub.add_fault(THIRD, "corrupt", 20_000, times=2)
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"] == "checksum-mismatch"
    assert not (models_dir / "r1-q4km" / THIRD).exists()
    assert ktops("download", "r1-q4km", *HF).status == 0


def test_wrong_bytes_of_a_small_file_are_found_too(ktops, hub):
    hub.add_fault("config.json", "corrupt", 3, times=2)
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.events[-1]["error"]["code"] == "checksum-mismatch"


def test_a_cut_connection_is_resumed_where_it_broke(ktops, hub, models_dir, large_shard):
    hub.repos[WEIGHTS][THIRD] = large_shard
    hub.add_fault(THIRD, "cut", 15_000_000)
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.status == 0
    assert [r.start for r in hub.data if r.path == THIRD] == [0, CHUNK]
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == large_shard
    assert ran.events[-1]["fetched_bytes"] == ran.events[-1]["bytes"]


def test_a_hub_that_ignores_the_range_is_started_over(ktops, hub, models_dir, large_shard):
    hub.repos[WEIGHTS][THIRD] = large_shard
    hub.add_fault(THIRD, "cut", 15_000_000)
    hub.add_fault(THIRD, "ignore-range")
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.status == 0
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == large_shard
    assert ran.events[-1]["fetched_bytes"] == ran.events[-1]["bytes"]


@pytest.mark.parametrize(("source", "chunk"), [("hf", CHUNK), ("modelscope", 14 << 20)])
def test_a_killed_download_goes_on_from_its_last_byte(
    ktops, hub, models_dir, large_shard, source, chunk
):
    hub.repos[WEIGHTS][THIRD] = large_shard
    folder = models_dir / "r1-q4km"
    for expected in (chunk, 2 * chunk):  # killed twice
        hub.add_fault(THIRD, "stall", 15_000_000)
        kill_when_stalled(folder, expected, source)
    assert inspect_model(find_entry("r1-q4km"), models_dir).state is State.INCOMPLETE
    hub.data.clear()
    assert ktops("download", "r1-q4km", "--source", source).status == 0
    assert [(request.path, request.start) for request in hub.data] == [(THIRD, 2 * chunk)]
    assert (folder / THIRD).read_bytes() == large_shard


def test_a_file_over_the_limit_of_one_request_comes_in_pieces(
    ktops, hub, models_dir, shards, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 30_000)
    assert ktops("download", "r1-q4km", *HF).status == 0
    ranges = [(r.start, r.end) for r in hub.data if r.path == THIRD]
    size = len(shards[THIRD])
    assert ranges == [(0, 30_000), (30_000, 60_000), (60_000, size)]
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == shards[THIRD]


def test_a_piece_that_breaks_off_is_resumed(ktops, hub, models_dir, large_shard, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 25_000_000)
    hub.repos[WEIGHTS][THIRD] = large_shard
    hub.add_fault(THIRD, "cut", 15_000_000)
    assert ktops("download", "r1-q4km", *HF).status == 0
    ranges = [(r.start, r.end) for r in hub.data if r.path == THIRD]
    assert ranges == [(0, 25_000_000), (CHUNK, 25_000_000), (25_000_000, len(large_shard))]
    assert (models_dir / "r1-q4km" / THIRD).read_bytes() == large_shard


def test_a_file_that_the_hub_finds_too_large_is_refused_with_other_ways(ktops, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 60_000)
    hub.add_fault(THIRD, "status", 400)
    error = ktops("download", "r1-q4km", *HF, "--json").events[-1]["error"]
    assert error["code"] == "file-too-large"
    assert "--source modelscope" in error["hint"]
    assert f"hf download {WEIGHTS} {THIRD}" in error["hint"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_a_stalled_download_and_keeps_what_has_arrived(
    ktops, hub, models_dir, large_shard, number, status
):
    hub.repos[WEIGHTS][THIRD] = large_shard
    hub.add_fault(THIRD, "stall", 15_000_000)
    with stalled_download(models_dir / "r1-q4km", CHUNK, *HF) as process:
        process.send_signal(number)
        assert process.wait(30) == status
    hub.data.clear()
    assert ktops("download", "r1-q4km", *HF).status == 0
    assert [(request.path, request.start) for request in hub.data] == [(THIRD, CHUNK)]


def kill_when_stalled(folder: Path, expected: int, source: str) -> None:
    with stalled_download(folder, expected, "--source", source) as process:
        process.kill()
        assert process.wait(30) == -signal.SIGKILL


def test_a_file_spoilt_on_the_disk_is_found_by_verify_and_mended(ktops, hub, models_dir, shards):
    assert ktops("download", "r1-q4km", *HF).status == 0
    path = models_dir / "r1-q4km" / THIRD
    status = path.stat()
    spoilt = bytearray(shards[THIRD])
    spoilt[40_000] ^= 1
    path.write_bytes(spoilt)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # bit rot changes no time
    hub.data.clear()
    assert ktops("download", "r1-q4km", *HF).status == 0
    assert hub.data == []
    ran = ktops("download", "r1-q4km", *HF, "--verify")
    assert ran.status == 0
    assert f"{THIRD} is spoilt" in ran.stderr
    assert hub.fetched() == [THIRD]
    assert path.read_bytes() == shards[THIRD]


def test_a_file_that_changed_since_is_read_again_without_being_asked(ktops, hub, models_dir):
    assert ktops("download", "r1-q4km", *HF).status == 0
    path = models_dir / "r1-q4km" / THIRD
    path.write_bytes(bytes(path.stat().st_size))
    hub.data.clear()
    assert ktops("download", "r1-q4km", *HF).status == 0
    assert hub.fetched() == [THIRD]


def test_files_put_there_by_another_tool_are_read_once_and_kept(ktops, hub, models_dir, shards):
    for name, body in shards.items():
        path = models_dir / "r1-q4km" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.events[-1]["verified_bytes"] == sum(map(len, shards.values()))
    assert hub.fetched() == ["config.json", "tokenizer.json"]
    assert ktops("download", "r1-q4km", *HF, "--json").events[-1]["verified_bytes"] == 0


def test_a_first_shard_that_is_no_gguf_ends_the_download(ktops, hub, models_dir):
    hub.repos["unsloth/DeepSeek-R1-GGUF"][FIRST] = b"<html>sign in</html>" * 300
    ran = ktops("download", "r1-q4km", *HF, "--json", "--workers", "1")
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"].startswith("gguf-")
    assert THIRD not in hub.fetched()
