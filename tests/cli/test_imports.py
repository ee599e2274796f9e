"""The command line starts fast because it imports nothing heavy until a command needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "numpy",
    "transformers",
    "fastapi",
    "uvicorn",
    "huggingface_hub",
    "modelscope_hub",
    "requests",
    "tokenizers",
    "httpx",
    "pydantic_core",
    "rich",
    "prometheus_client",
    "gguf",
)

PROBE = """
import sys
from ktops.cli import run
status = run(sys.argv[1:])
print("loaded:", *sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["version"],
        ["serve", "--help"],
        ["config"],
        ["config", "show", "-h"],
        ["top", "--help"],
        ["env", "--help"],
        ["download", "--help"],
        ["models", "--help"],
        ["doctor", "--help"],
        ["plan", "--help"],
        ["bench", "kernels", "--help"],
        ["eval", "--help"],
    ],
)
def test_nothing_heavy_is_imported(args):
    done = subprocess.run([sys.executable, "-c", PROBE, *args], capture_output=True, text=True)
    assert done.returncode == 0
    loaded = done.stderr.split("loaded:")[1].split()
    assert [name for name in HEAVY if name in loaded] == []


def test_help_imports_no_command_module():
    code = (
        "import sys\nfrom ktops.cli import run\nrun(['--help'])\n"
        "assert not [m for m in sys.modules if m.startswith('ktops.commands.')]"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_python_dash_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "ktops", "version", "-q"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
