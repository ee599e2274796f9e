"""`ktops doctor` as a user sees it: form, exit status, subsets, JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import schemas
from schemas import check_output

from ktops.cli import run
from ktops_doctor import all_checks
from ktops_doctor.recorded_host import RecordedHost

from .conftest import PLAN, mem_info, planned, without_gpu

QUICK = [check for check in all_checks() if not check.deep]
HELP = Path(__file__).parent / "golden" / "help-doctor.txt"


@pytest.fixture
def ktops(server, monkeypatch, capsys, tmp_path):
    """`ktops("--strict")` runs `ktops doctor --strict` on the recorded server and returns its
    exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ktops.commands.doctor.LiveHost", lambda: RecordedHost(server))

    def invoke(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(["doctor", *args])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        check_output(["doctor", *args], captured.out)
        return status, captured.out, captured.err

    return invoke


def test_a_healthy_machine_is_ready_and_exits_with_0(ktops):
    status, out, err = ktops()
    lines = out.splitlines()
    assert status == 0
    assert err == ""
    assert lines[0] == (
        "Target r1-q4km (DeepSeek-R1 671B, Q4_K_M): 376.7 GiB weights, 14 GB VRAM, 382 GB RAM"
    )
    assert "Memory and NUMA" in lines
    assert "  ok    mem.total       2.0 TiB, needs 382 GB" in lines
    assert lines[-2] == "This machine can serve r1-q4km at about 13-16 tok/s."
    count = len(QUICK)
    assert lines[-1] == (f"{count} checks: {count - 2} ok, 2 skipped.   Ready: r1-q4km, demo.")


def test_a_failure_shows_its_fix_and_what_is_not_ready_and_exits_with_1(ktops, server):
    without_gpu(server)
    server["files"]["/proc/sys/kernel/numa_balancing"] = "1\n"
    status, out, _ = ktops()
    assert status == 1
    assert (
        "  warn  numa.balancing  on: the kernel moves pages under running kernels, "
        "and decoding slows down\n"
        "        Fix: sudo sysctl kernel.numa_balancing=0\n"
    ) in out
    assert "  FAIL  gpu.device " in out
    assert out.splitlines()[-1].endswith(
        "1 warning, 1 failure, 10 skipped.   Not yet: r1-q4km (gpu.device).   Ready: demo."
    )


def test_a_check_that_crashes_is_shown_and_exits_with_3(ktops, server):
    del server["platform"]
    status, out, _ = ktops("--only", "sys.os,gpu.device")
    assert status == 3
    assert "  CRASH sys.os " in out
    assert "  ok    gpu.device " in out
    assert out.splitlines()[-1] == "2 checks: 1 ok, 1 crash."


def test_warnings_fail_only_when_asked_to_be_strict(ktops, server):
    server["limits"]["NOFILE"] = 10
    assert ktops("--only", "limit")[0] == 0
    status, out, _ = ktops("--only", "limit", "--strict", "-q")
    assert (status, out) == (1, "limit.nofile\n")


def test_quiet_prints_the_ids_that_fail_and_nothing_when_all_is_well(ktops, server):
    assert ktops("-q") == (0, "", "")
    without_gpu(server)
    assert ktops("-q") == (1, "gpu.device\n", "")


def test_only_and_skip_take_ids_topics_and_lists(ktops):
    def ids(*args: str) -> list[str]:
        return ktops("--list-checks", "-q", *args)[1].split()

    gpu = [check.id for check in all_checks() if check.id.startswith("gpu.")]
    assert ids("--only", "gpu") == gpu
    assert ids("--only", "net.port,mem.total", "--only", "sys.os") == [
        "sys.os",
        "mem.total",
        "net.port",
    ]
    assert gpu[-2:] == ["gpu.copy", "gpu.kernel"]  # they take long: listed, run when asked for
    assert ids("--only", "gpu", "--skip", "gpu.vram,gpu.link") == [
        check_id for check_id in gpu if check_id not in {"gpu.vram", "gpu.link"}
    ]
    assert ids() == [check.id for check in all_checks()]


@pytest.mark.parametrize("args", [(), ("--only", "mem.total")])
def test_ram_is_held_against_the_bytes_of_the_plan_where_there_is_one(ktops, server, args):
    server["files"]["/proc/meminfo"] = mem_info(390 * 10**9, 389 * 10**9)
    assert "needs 382 GB" in ktops(*args)[1]
    server["commands"][PLAN] = planned(
        ram_bytes=396 * 10**9, needed_bytes=396 * 10**9, there_bytes=1
    )
    status, out, _ = ktops(*args)
    assert status == 1
    assert "14 GB VRAM, 396 GB RAM" in out
    assert "  FAIL  mem.total  " in out
    assert "363.2 GiB, needs 396 GB" in out


def test_a_part_of_the_checks_makes_no_claim_about_readiness(ktops):
    _, out, _ = ktops("--only", "mem")
    assert out.splitlines()[-1] == "5 checks: 5 ok."
    _, out, _ = ktops("--skip", "mem")
    assert "Ready" not in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--only", "gpu.vrm"), "no check is named 'gpu.vrm'; did you mean 'gpu.vram'?"),
        (("--skip", "zzz"), "no check is named 'zzz'\n"),
        (("--model", "r1-q4k"), "did you mean 'r1-q4km'?"),
    ],
)
def test_a_name_that_does_not_exist_is_a_usage_error(ktops, args, words):
    status, out, err = ktops(*args)
    assert (status, out) == (2, "")
    assert words in err
    assert "Fix: ktops " in err


def test_the_target_is_the_configured_default_unless_a_model_is_named(ktops, monkeypatch, server):
    without_gpu(server)
    monkeypatch.setenv("KTOPS_DEFAULT_MODEL", "demo")
    status, out, _ = ktops()
    assert status == 0
    assert out.startswith("Target demo (")
    assert out.splitlines()[-1].endswith("Ready: demo.")
    assert ktops("--model", "r1-q4km")[0] == 1


def test_files_that_are_there_count_against_the_room_that_is_needed(ktops, tmp_path, monkeypatch):
    folder = tmp_path / "models" / "r1-q4km" / "Q4"
    folder.mkdir(parents=True)
    (folder / "shard.gguf").write_bytes(bytes(1 << 20))
    monkeypatch.setenv("KTOPS_MODELS", str(tmp_path / "models"))
    _, out, _ = ktops("--only", "disk.space")
    assert "needs 376.6 GiB more (1.0 MiB is there)" in out


def test_json_has_every_check_with_value_expectation_detail_and_fix(ktops, server):
    without_gpu(server)
    status, out, _ = ktops("--json")
    document = json.loads(out)
    schemas.check("doctor", document)
    assert status == 1
    assert document["schema_version"] == 1
    assert document["target"]["name"] == "r1-q4km"
    assert [check["id"] for check in document["checks"]] == [check.id for check in QUICK]
    by_id = {check["id"]: check for check in document["checks"]}
    seconds = by_id["gpu.device"].pop("seconds")
    assert seconds >= 0
    assert by_id["gpu.device"] == {
        "id": "gpu.device",
        "section": "GPU and driver",
        "title": "NVIDIA GPU",
        "status": "fail",
        "value": "no NVIDIA GPU",
        "expected": "needs one",
        "detail": "attention and the shared expert are to run on it",
        "fix": "lspci -nn | grep -i nvidia   # empty: not seated, or not passed to this VM",
        "repairable": False,
        "docs": "docs/doctor.md#gpudevice",
    }
    assert document["ready"] == ["demo"]
    assert document["not_ready"] == {"r1-q4km": ["gpu.device"]}
    assert sum(document["summary"].values()) == len(QUICK)
    assert document["verdict"] == {"can_serve": True, "tokens_per_s": [13.1, 16.4]}


def test_the_list_of_checks_runs_none_of_them(ktops, monkeypatch):
    monkeypatch.setattr("ktops.commands.doctor.LiveHost", lambda: pytest.fail("a check was run"))
    status, out, _ = ktops("--list-checks")
    assert status == 0
    assert len(out.splitlines()) == 1 + len(all_checks())
    document = json.loads(ktops("--list-checks", "--json")[1])
    schemas.check("doctor", document)
    assert document["checks"][0]["id"] == "sys.os"


def test_the_help_is_the_stored_text(ktops, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = ktops("--help")
    assert status == 0
    assert out == HELP.read_text(encoding="utf-8")


def test_on_this_machine_every_check_ends_and_none_crashes(tmp_path):
    command = [sys.executable, "-m", "ktops", "doctor", "--json"]
    nowhere = dict.fromkeys(("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"), "http://127.0.0.1:9")
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False, env=os.environ | nowhere
    )
    assert done.stderr == ""
    assert done.returncode in (0, 1)
    document = json.loads(done.stdout)
    statuses = {check["id"]: check["status"] for check in document["checks"]}
    assert list(statuses) == [check.id for check in QUICK]
    assert "crash" not in statuses.values()
    assert statuses["sys.os"] == "ok"
    assert statuses["py.torch"] == "ok"


def test_in_chinese_nothing_but_names_and_commands_is_left_in_english(ktops, server, monkeypatch):
    """On a server with many faults: each sentence has lost its English words."""
    monkeypatch.setenv("KTOPS_MODELS", "/m")
    without_gpu(server)
    server["limits"] = {"NOFILE": 10, "MEMLOCK": 1}
    server["reach"] = {}
    server["probes"] |= {"native": {"facts": {"built": False}}, "torch": {"error": "x"}}
    server["disks"] = {}
    server["env"] |= {"HF_TOKEN": "no token", "USE_NUMA": "2", "HTTPS_PROXY": "http://h:1"}
    _, out, _ = ktops("--lang", "zh")
    english = re.compile(
        r"\b(the|of|is|are|not|with|this|that|needs?|should|be|and|or|no|for|from|it|its)\b"
    )
    lines = [line for line in out.splitlines() if not line.lstrip().startswith("解决:")]
    assert [line for line in lines if english.search(line)] == [
        line
        for line in lines
        if "Name or service not known" in line  # the system's own words
    ]
