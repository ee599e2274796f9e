"""`ktops doctor --fix` as a user sees it: shown first, done with consent, told how it ended."""

from __future__ import annotations

import json

import pytest
import schemas

from ktops.cli import run
from ktops_doctor.recorded_host import RecordedHost

from .conftest import without_gpu

BUILD = "/opt/ktops/bin/python -m ktops build"


@pytest.fixture
def ktops(server, monkeypatch, capsys, tmp_path):
    """`ktops("--fix")` on a server whose library is not built; what would be run is kept in
    `ktops.done`, and building makes the library appear."""
    without_gpu(server)
    built = server["probes"]["native"]
    server["probes"]["native"] = {"facts": {"built": False}}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ktops.commands.doctor.LiveHost", lambda: RecordedHost(server))
    failures: list[str] = []

    def apply(remedy, on_line):
        invoke.done.append(remedy.line)
        on_line("compiling")
        if not failures:
            server["probes"]["native"] = built
        return failures[0] if failures else ""

    monkeypatch.setattr("ktops.checkup.repairs.apply", apply)

    def invoke(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(["doctor", "--model", "demo", *args])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    invoke.done, invoke.failures = [], failures
    return invoke


def answer(monkeypatch, words: str) -> None:
    monkeypatch.setattr("sys.stdin", type("Tty", (), {"isatty": staticmethod(lambda: True)})())
    monkeypatch.setattr("ktops.output.Output.prompt", lambda self, question: words)


def test_a_dry_run_shows_everything_and_does_nothing(ktops, server):
    server["files"]["/proc/sys/kernel/numa_balancing"] = "1\n"
    status, out, err = ktops("--fix", "--dry-run")
    assert (status, ktops.done) == (0, [])
    assert "  warn  lib.native " in out
    assert "1. compile the native library (up to a minute) (lib.native)\n" in err
    assert f"     {BUILD}\n" in err
    assert "     Undo: nothing to undo: only ktops' own cache is written\n" in err
    assert "Left to you, for it needs root or your judgement:\n" in err
    assert "     sudo sysctl kernel.numa_balancing=0   (numa.balancing)\n" in err


def test_with_yes_it_is_done_and_the_checks_are_asked_again(ktops):
    status, out, err = ktops("--fix", "--yes")
    assert (status, ktops.done) == (0, [BUILD])
    assert "  fix     compile the native library (up to a minute)\n" in err
    assert "          compiling\n" in err
    before, after = (line for line in out.splitlines() if " lib.native " in line)
    assert before.startswith("  warn  ")
    assert after.startswith("  ok    ")


def test_on_a_terminal_it_asks_and_no_means_no(ktops, monkeypatch):
    answer(monkeypatch, "")
    assert ktops("--fix")[0] == 0
    assert ktops.done == []
    answer(monkeypatch, "Y")
    assert ktops("--fix")[0] == 0
    assert ktops.done == [BUILD]


def test_without_a_terminal_and_without_yes_nothing_is_done(ktops):
    _, _, err = ktops("--fix")
    assert ktops.done == []
    assert "Nothing was changed. To do it: ktops doctor --fix --yes\n" in err


def test_a_repair_that_fails_exits_with_1_and_tells_why(ktops):
    ktops.failures.append("g++ ran out of memory")
    status, _, err = ktops("--fix", "--yes")
    assert status == 1
    assert f"warning: lib.native: g++ ran out of memory\n  Fix: {BUILD}\n" in err


def test_json_tells_every_repair_and_its_end(ktops, monkeypatch):
    status, out, _ = ktops("--fix", "--json")
    document = json.loads(out)
    schemas.check("doctor", document)
    assert status == 0
    assert document["repairs"] == [
        {
            "checks": ["lib.native"],
            "title": "compile the native library (up to a minute)",
            "commands": [BUILD],
            "undo": None,
            "state": "declined",
            "reason": None,
        }
    ]
    assert document["left"] == []
    document = json.loads(ktops("--fix", "--yes", "--json")[1])
    assert document["repairs"][0]["state"] == "done"
    assert document["summary"]["warn"] == 0


def test_packages_are_mended_before_what_needs_them(ktops, server):
    server["packages"]["numpy"] = "1.0"
    ktops("--fix", "--yes")
    assert ktops.done == ["/opt/ktops/bin/python -m pip install 'numpy>=1.26'", BUILD]


def test_where_nothing_can_be_mended_it_says_so(ktops, server):
    server["probes"]["native"]["facts"] |= {
        "built": True, "path": "/c/l.so", "isa": "avx2", "built_at": "2026-11-20", "compiler": "g++"
    }  # fmt: skip
    status, _, err = ktops("--fix", "--yes")
    assert (status, ktops.done) == (0, [])
    assert "There is nothing that the doctor can mend by itself.\n" in err


@pytest.mark.parametrize("option", ["--yes", "--dry-run"])
def test_options_of_fix_alone_are_a_usage_error(ktops, option):
    status, _, err = ktops(option)
    assert status == 2
    assert f"Fix: ktops doctor --fix {option}\n" in err


def test_the_question_and_the_repairs_are_chinese_when_asked_for(ktops):
    _, out, err = ktops("--fix", "--lang", "zh")
    assert "1. 编译原生库（最多一分钟）（lib.native）" in err
    assert "  警告  lib.native " in out
