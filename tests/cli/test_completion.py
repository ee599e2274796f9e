"""The Tab key: each shell gets a script, and every answer is fast and free of noise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from ktops.cli import COMMANDS
from ktops.settings import SETTING_NAMES

# Without pydantic_core: typer reads a missing argument with it.
HEAVY = ("torch", "numpy", "transformers", "fastapi", "rich", "httpx", "tokenizers", "gguf")

PROBE = """
import json, sys
from ktops.cli import run
try:
    run([])
finally:
    print(json.dumps([name for name in sys.modules if "." not in name]), file=sys.stderr)
"""


@pytest.fixture
def complete(work_dir):
    """`complete("config", "ge")`: the words offered for the last one, and the modules loaded."""

    def ask(*words: str) -> tuple[list[str], list[str]]:
        variables = {
            "_KTOPS_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["ktops", *words]),
            "COMP_CWORD": str(len(words)),
        }
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            env=os.environ | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0
        (modules,) = done.stderr.splitlines()  # and not a word more
        return done.stdout.split(), json.loads(modules)

    return ask


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([""], [spec.name for spec in COMMANDS]),
        (["conf"], ["config"]),
        (["config", ""], ["show", "get", "set", "unset", "path"]),
        (["config", "get", ""], list(SETTING_NAMES)),
        (["config", "set", "h"], ["host"]),
        (["config", "show", "--o"], ["--origin"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["serve", "--cp"], ["--cpu-infer"]),
        (["build", "--numa", "o"], ["on", "off"]),
        (["bogus", ""], [spec.name for spec in COMMANDS]),
    ],
)
def test_words_complete_without_importing_anything_heavy(complete, words, offered):
    found, modules = complete(*words)
    assert sorted(found) == sorted(offered)
    assert [name for name in HEAVY if name in modules] == []


@pytest.mark.parametrize(
    ("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")]
)
def test_each_script_is_printed_and_its_shell_can_read_it(ktops, shell, check):
    ran = ktops("completion", shell)
    assert ran.status == 0
    assert "_KTOPS_COMPLETE=complete_bash" in ran.stdout
    assert ktops("completion", shell, "-q").stdout == ran.stdout
    assert ktops("completion", shell, "--json").document["script"] + "\n" == ran.stdout
    if program := shutil.which(shell):
        subprocess.run([program, check], input=ran.stdout, text=True, check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_fills_in_the_words_that_ktops_offers(ktops, tmp_path):
    program = tmp_path / "ktops"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ktops "$@"\n')
    program.chmod(0o755)
    code = f"""{ktops("completion", "bash").stdout}
COMP_WORDS=(ktops config s); COMP_CWORD=2
_ktops "{program}"
echo "${{COMPREPLY[*]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["show", "set"]


def test_an_unknown_shell_is_usage_that_names_the_known_ones(ktops):
    ran = ktops("completion", "tcsh")
    assert ran.status == 2
    assert "bash" in ran.stderr
    assert "\n  Fix: ktops completion --help" in ran.stderr
