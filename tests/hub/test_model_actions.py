"""`ktops models show|path|verify|remove` on what a download left."""

from __future__ import annotations

import os

import pytest

THIRD = "DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M-00003-of-00009.gguf"


@pytest.fixture
def downloaded(ktops, hub, models_dir):
    assert ktops("download", "r1-q4km", "-q").status == 0
    return models_dir / "r1-q4km"


def test_a_whole_model_is_verified_without_the_hub(ktops, hub, downloaded, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ran = ktops("models", "verify", "r1-q4km")
    assert ran.status == 0
    assert "r1-q4km is whole: 11 files" in ran.stdout


def test_what_is_spoilt_or_missing_is_named_and_the_next_download_mends_it(
    ktops, hub, downloaded, shards
):
    path = downloaded / THIRD
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (downloaded / "config" / "config.json").unlink()
    ran = ktops("models", "verify", "r1-q4km")
    assert ran.status == 1
    assert f"{THIRD} is spoilt, config/config.json is missing" in ran.stderr
    assert "  Fix: ktops download r1-q4km\n" in ran.stderr
    hub.data.clear()
    assert ktops("download", "r1-q4km").status == 0
    assert hub.fetched() == [THIRD, "config.json"]
    assert path.read_bytes() == shards[THIRD]


def test_files_that_ktops_did_not_fetch_have_nothing_to_be_compared_with(ktops, models_dir, shards):
    for name, body in shards.items():
        path = models_dir / "r1-q4km" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    ran = ktops("models", "verify", "r1-q4km")
    assert ran.status == 1
    assert "  Fix: ktops download r1-q4km --verify" in ran.stderr


def test_path_is_for_scripts_and_needs_the_model(ktops, hub, downloaded):
    assert ktops("models", "path", "r1-q4km").stdout == f"{downloaded}\n"
    ran = ktops("models", "path", "v3-q4km")
    assert ran.status == 1
    assert "  Fix: ktops download v3-q4km" in ran.stderr


def test_show_tells_the_disk_use(ktops, hub, downloaded):
    assert "DeepSeek-R1 671B" in ktops("models", "show", "r1-q4km").stdout
    document = ktops("models", "show", "r1-q4km", "--json").stdout
    assert '"disk_bytes"' in document


def test_remove_needs_a_yes(ktops, hub, downloaded):
    ran = ktops("models", "remove", "r1-q4km")
    assert ran.status == 1
    assert "  Fix: ktops models remove r1-q4km --yes" in ran.stderr
    assert downloaded.is_dir()
    assert ktops("models", "remove", "r1-q4km", "--yes").status == 0
    assert not downloaded.exists()
    assert ktops("models", "remove", "r1-q4km", "--yes").status == 1


@pytest.mark.parametrize(
    "args", [["remove"], ["verify"], ["remove", "demo", "--yes"], ["list", "r1-q4km"], ["rename"]]
)
def test_a_wrong_action_is_a_usage_error(ktops, args):
    assert ktops("models", *args).status == 2
