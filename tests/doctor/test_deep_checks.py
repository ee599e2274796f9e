"""Checks that take long: what their children say, judged; and what they really measure here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ktops_doctor import LiveHost, all_checks, run_checks
from ktops_doctor.checks import deep

from .conftest import disk

GB = 10**9
VERIFY = "/opt/ktops/bin/python -m ktops models verify r1-q4km --json"


@pytest.fixture
def golden(server):
    """The probe of the embedded model, to be given its facts."""

    def say(**facts: object) -> None:
        server["probes"][f"golden {deep._RECORDED}"] = {"facts": facts}

    return say


def test_what_takes_long_is_only_run_when_it_is_asked_for():
    slow = {check.id for check in all_checks() if check.deep}
    assert slow == {
        "mem.bandwidth",
        "gpu.copy",
        "gpu.kernel",
        "lib.golden",
        "disk.rate",
        "model.sha256",
    }


def test_tokens_that_differ_are_a_failure_that_says_where(ask, server, r1, golden):
    golden(equal=64)
    assert ask(server, r1, "lib.golden").value == "64 tokens as recorded"
    golden(differs="Who are you?", place=3)
    result = ask(server, r1, "lib.golden")
    assert (result.status, result.value) == (
        "fail",
        "the answer to Who are you? differs from token 3 on",
    )
    assert result.fix.startswith("KTOPS_ISA=scalar ktops doctor --only lib.golden   # ")
    golden(error="the demo is gone")
    result = ask(server, r1, "lib.golden")
    assert (result.status, result.detail) == ("fail", "the demo is gone")


@pytest.mark.parametrize(
    ("seconds", "status", "value"),
    [
        (0.5, "ok", "6 GB/s: 376.7 GiB in 67.4 s"),
        (30.0, "warn", "100 MB/s: 376.7 GiB in 67 min"),
    ],
)
def test_the_rate_of_a_disk_becomes_the_time_of_a_start(ask, server, r1, seconds, status, value):
    server["probes"]["disk_rate /m/a.gguf"] = {"facts": {"bytes": 3 * GB, "seconds": seconds}}
    result = ask(server, replace(r1, weights="/m/a.gguf"), "disk.rate")
    assert (result.status, result.value) == (status, value)


def test_a_disk_that_may_not_be_written_and_holds_no_weights_is_not_measured(ask, server, r1):
    server["disks"] = {"/": disk("/", total=GB, free=GB, kind="ext4", writable=False)}
    assert ask(server, r1, "disk.rate").status == "skip"
    server["disks"]["/"]["writable"] = True
    server["probes"]["disk_rate /"] = {"facts": {"error": "/: No space left on device"}}
    assert ask(server, r1, "disk.rate").value == "/: No space left on device"


@pytest.mark.parametrize(
    ("facts", "status", "value"),
    [
        ({"built": True, "bytes_per_s": 187e9, "threads": 64}, "ok", "187 GB/s with 64 threads"),
        ({"built": False}, "skip", "the native library is not built"),
        ({"built": True, "bytes_per_s": None}, "skip", "too little memory is free to measure"),
        ({"error": "OSError: file too short"}, "fail", "the native library does not work"),
    ],
)
def test_the_speed_of_memory_is_measured_or_the_reason_is_told(
    ask, server, r1, facts, status, value
):
    server["probes"]["bandwidth"] = {"facts": facts}
    result = ask(server, r1, "mem.bandwidth")
    assert (result.status, result.value) == (status, value)


@pytest.mark.parametrize(
    ("facts", "status", "value"),
    [
        ({"bytes_per_s": 25e9}, "ok", "25 GB/s to the GPU"),
        ({"bytes_per_s": 6e9}, "warn", "6 GB/s to the GPU"),
        ({"error": "torch finds no GPU"}, "skip", "torch finds no GPU"),
    ],
)
def test_the_way_to_the_gpu_is_held_against_its_link(ask, server, r1, facts, status, value):
    server["probes"]["copy"] = {"facts": facts}
    result = ask(server, r1, "gpu.copy")
    assert (result.status, result.value) == (status, value)


def said(code: str) -> str:
    error = {"code": code, "message": f"{code}!", "hint": "ktops download r1-q4km"}
    return json.dumps({"schema_version": 1, "error": error})


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"status": 0, "stdout": "{}"}, "ok"),
        ({"status": 1, "stdout": said("model-spoilt")}, "fail"),
        ({"status": 1, "stdout": said("never-verified")}, "skip"),
        ({"status": 1, "stdout": "", "stderr": "Killed"}, "fail"),
        ({"status": 1, "stdout": "no json"}, "fail"),
    ],
)
def test_digests_are_those_that_ktops_models_verify_finds(ask, server, r1, answer, status):
    server["probes"]["model /m/a.gguf"] = {"facts": {"num_shards": 9, "total_bytes": GB}}
    server["commands"][VERIFY] = answer
    result = ask(server, replace(r1, weights="/m/a.gguf"), "model.sha256")
    assert result.status == status
    assert ask(server, r1, "model.sha256").value == "r1-q4km is not downloaded"


def test_this_machine_measures_and_the_embedded_model_says_what_was_recorded(
    demo, tmp_path, native_build
):
    ids = ["mem.bandwidth", "lib.golden", "disk.rate"]
    here = replace(demo, weights="", models_dir=str(tmp_path))
    bandwidth, golden, rate = run_checks(ids, LiveHost(), here)
    assert bandwidth.status in ("ok", "skip")  # a machine with little memory does not measure
    assert (golden.status, golden.value) == ("ok", "64 tokens as recorded")
    assert rate.status in ("ok", "warn"), rate
    assert list(tmp_path.glob(".ktops-rate-*")) == []
