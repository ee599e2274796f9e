"""Downloads that are refused or fail: one message each, with what to do."""

from __future__ import annotations

import pytest

from ktops.hub.download import locked

THIRD = "DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-00003-of-00009.gguf"
HF = ("--source", "hf")
FIRST = THIRD.replace("00003", "00001")


def test_patterns_that_match_nothing_are_an_error(ktops, hub):
    ran = ktops("download", "r1-q4km", *HF, "--include", "*Q3_K*", "--json")
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"] == "no-such-files"
    assert "it has DeepSeek-R1-Q4_K_M/" in ran.events[-1]["error"]["message"]


def test_two_downloads_into_one_folder_do_not_mix(ktops, hub, models_dir):
    with locked(models_dir / "r1-q4km"):
        ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.events[-1]["error"]["code"] == "download-running"
    assert hub.data == []
    assert ktops("download", "r1-q4km", *HF).status == 0


def test_any_repository_can_be_named_and_put_anywhere(ktops, hub, tmp_path, shards):
    ran = ktops("download", "hf:unsloth/DeepSeek-R1-GGUF", "--include", "*R1-Q4*", "--to", "there")
    assert ran.status == 0
    assert (tmp_path / "there" / THIRD).read_bytes() == shards[THIRD]
    assert f"ktops serve --gguf-path {tmp_path / 'there' / FIRST}" in ran.stdout


def test_a_repository_of_several_models_asks_which(ktops, hub):
    ran = ktops("download", "hf:unsloth/DeepSeek-R1-GGUF")
    assert ran.status == 2
    assert "holds 2 models" in ran.stderr
    assert "--include 'DeepSeek-R1-Q8_0/other.gguf'" in ran.stderr


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["demo"], "nothing-to-download"),
        (["r1-q4kn"], "unknown-model"),
        (["unsloth/DeepSeek-R1-GGUF"], "invalid-repository"),
        (["gs:a/b"], "invalid-repository"),
        (["hf:../b"], "hub-not-found"),
        (["hf:a/b", "--source", "modelscope"], "source-conflict"),
    ],
)
def test_a_wrong_name_is_refused_with_a_hint(ktops, hub, args, code):
    ran = ktops("download", *args, "--json")
    assert ran.status in (1, 2)
    assert ran.events[-1]["error"]["code"] == code
    assert ran.events[-1]["error"]["hint"]


@pytest.mark.parametrize("path", ["../evil.gguf", "/etc/evil.gguf", "a/../../evil.gguf"])
def test_a_path_that_leaves_the_folder_is_refused(ktops, hub, path):
    hub.repos["a/b"] = {path: b"x" * 5000}
    ran = ktops("download", "hf:a/b", "--json")
    assert ran.events[-1]["error"]["code"] == "unsafe-path"


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "hub-denied"), (403, "hub-denied"), (404, "hub-not-found"), (500, "hub-failed")],
)
def test_a_refusal_of_the_listing_is_explained(ktops, hub, status, code):
    hub.add_fault("revision", "status", status)
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"] == code
    assert ran.events[-1]["error"]["hint"]


def test_a_gated_repository_opens_with_the_token(ktops, hub, monkeypatch):
    hub.required_token = "secret"
    assert "hf auth login" in ktops("download", "r1-q4km", *HF).stderr
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert ktops("download", "r1-q4km", *HF).status == 0


def test_a_failing_file_ends_the_download_and_keeps_the_others(ktops, hub, models_dir, shards):
    hub.add_fault(THIRD, "status", 500)
    ran = ktops("download", "r1-q4km", *HF, "--json", "--workers", "1")
    assert ran.events[-1]["error"]["code"] == "hub-failed"
    assert (models_dir / "r1-q4km" / FIRST).is_file()
    hub.data.clear()
    assert ktops("download", "r1-q4km", *HF).status == 0
    assert FIRST not in hub.fetched()


def test_too_many_requests_are_waited_for(ktops, hub):
    hub.add_fault(THIRD, "status", 429, Retry_After="1")
    assert ktops("download", "r1-q4km", *HF).status == 0


def test_no_network_is_said_so(ktops, models_dir):
    ran = ktops("download", "r1-q4km", *HF, "--endpoint", "http://127.0.0.1:9", "--json")
    assert ran.status == 1
    assert ran.events[-1]["error"]["code"] == "hub-unreachable"
    assert "http://127.0.0.1:9" in ran.events[-1]["error"]["message"]


def test_offline_is_respected(ktops, hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = ktops("download", "hf:unsloth/DeepSeek-R1-GGUF", "--json")
    assert ran.events[-1]["error"]["code"] == "hub-offline"
    assert hub.listings == []


def test_a_folder_that_cannot_be_made_is_an_error(ktops, hub, models_dir):
    models_dir.mkdir()
    (models_dir / "r1-q4km").write_text("a file in the way")
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.events[-1]["error"]["code"] == "write-failed"


def test_a_file_that_is_longer_than_announced_is_no_success(ktops, hub, shards):
    hub.add_fault(THIRD, "longer")
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.events[-1]["error"]["code"] == "hub-failed"


def test_a_disk_that_fills_is_an_error_with_the_numbers_to_look_at(ktops, hub, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ktops.hub.partial.PartialFile.write", full)
    ran = ktops("download", "r1-q4km", *HF, "--json")
    assert ran.status == 4
    assert ran.events[-1]["error"]["code"] == "disk-full"
    assert ran.events[-1]["error"]["hint"].startswith("df -h")
