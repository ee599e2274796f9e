"""One border: a failure is a message with a fix and the right exit status, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import typer

from ktops.commands import version as version_command
from ktops_engine.errors import KtopsError


@pytest.fixture
def failing(ktops, monkeypatch):
    """`failing(error, *options)` runs `ktops version` with a body that raises `error`."""

    def call(error, *options):
        def raise_it():
            raise error

        monkeypatch.setattr(version_command, "ktops_version", raise_it)
        return ktops("version", *options)

    return call


@pytest.mark.parametrize("status", [1, 2, 3, 4])
def test_a_ktops_error_prints_message_fix_and_exits_with_its_status(failing, status):
    ran = failing(KtopsError("some-code", "it broke", "do this\nand that", exit_status=status))
    assert ran.status == status
    assert ran.stdout == ""
    assert ran.stderr == "error: it broke\n  Fix: do this\n       and that\n"


def test_a_ktops_error_with_json_is_a_document_on_stdout(failing):
    ran = failing(KtopsError("some-code", "坏了", "修"), "--json")
    assert ran.stderr == ""
    assert ran.document == {
        "schema_version": 1,
        "error": {"code": "some-code", "message": "坏了", "hint": "修"},
    }


def test_a_defect_is_one_line_with_the_way_to_its_traceback(failing):
    ran = failing(ZeroDivisionError("division\nby zero"))
    assert ran.status == 1
    first, second = ran.stderr.splitlines()
    assert first == "error: unexpected ZeroDivisionError: division by zero"
    assert second.startswith("  Fix: KTOPS_DEBUG=1 ktops version")


def test_a_keyboard_interrupt_is_130(failing):
    assert failing(KeyboardInterrupt()).status == 130


def test_a_command_that_exits_itself_keeps_its_status(failing):
    assert failing(typer.Exit(3)).status == 3


def test_a_bad_parameter_is_usage(failing):
    ran = failing(typer.BadParameter("not so"))
    assert ran.status == 2
    assert "Fix: ktops" in ran.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["verison"], "ktops has no command 'verison'; did you mean 'version'?"),
        (["xyzzy"], "ktops has no command 'xyzzy'"),
        (["version", "--jsn"], "no such option: --jsn; did you mean --json?"),
        (["version", "extra"], "got unexpected extra argument(s) (extra)"),
        (["serve", "--port", "http"], "invalid value for '--port'"),
        (["serve", "--cpu-infer", "0"], "--cpu-infer is 0: it must be a whole number, at least 1"),
        (["serve", "--cpu-infer=-4"], "--cpu-infer is -4"),
        (["serve", "--port"], "option '--port' requires an argument"),
        (["serve", "r1-q4k"], "no model is named 'r1-q4k'; did you mean 'r1-q4km'?"),
        (["serve", "zzzzzz"], "no model is named 'zzzzzz'"),
        (["serve", "./x.gguf"], "'./x.gguf' is a path"),
        (["build", "--numa", "maybe"], "invalid value for '--numa'"),
        (["chat", "--url", "nonsense", "-p", "hi"], "--url 'nonsense' is not the URL of a server"),
    ],
)
def test_usage_errors_exit_2_with_a_fix(ktops, args, message):
    ran = ktops(*args)
    assert ran.status == 2
    assert ran.stdout == ""
    assert message in ran.stderr
    assert "\n  Fix: " in ran.stderr


def test_a_usage_error_with_json_is_a_document(ktops):
    ran = ktops("version", "--json", "--frob")
    assert ran.status == 2
    assert ran.document["error"]["code"] == "usage"


@pytest.mark.parametrize("switch", ["--debug", "KTOPS_DEBUG"])
def test_debug_adds_the_traceback(work_dir, switch):
    env = dict(os.environ) | ({switch: "1"} if switch == "KTOPS_DEBUG" else {})
    args = ["serve", "nope", *([switch] if switch == "--debug" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "ktops", *args], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("  Fix: ")


def test_a_reader_that_leaves_early_is_no_failure_to_talk_about(work_dir):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "ktops", "models"], stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    assert done.returncode == 1
    assert done.stderr == b""


def test_sigterm_unwinds_and_exits_143(work_dir):
    code = (
        "import os, signal, sys\n"
        "from ktops import cli\n"
        "from ktops.commands import version\n"
        "def wait():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "    finally:\n"
        "        print('cleaned up')\n"
        "version.ktops_version = wait\n"
        "sys.exit(cli.run(['version']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == "cleaned up\n"
    assert done.stderr == ""
