"""install.sh: what it refuses, and with which words. That it installs is the gate's first step."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "dirname", "uname", "id", "cat", "sed", "tr", "grep", "env")


def install(*arguments: str, path: str | None = None, **environment: str):
    return subprocess.run(
        ["bash", str(ROOT / "install.sh"), *arguments],
        env={"PATH": path or os.environ["PATH"], "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder with the tools of a minimal system: no Python, no compiler."""
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


def add_tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def test_help_names_every_option():
    done = install("--help")
    assert done.returncode == 0
    for word in ("--dev", "--system", "--find-links", "USE_NUMA", "PYTHON"):
        assert word in done.stdout


def test_an_unknown_option_is_a_usage_error():
    done = install("--frobnicate")
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_a_bare_system_is_told_every_package_in_one_line(bare_path):
    done = install(path=str(bare_path))
    assert done.returncode == 1
    assert "apt-get install -y python3 python3-venv g++" in done.stderr


def test_an_old_compiler_is_named(bare_path):
    (bare_path / "python3").symlink_to(os.path.realpath(shutil.which("python3") or ""))
    add_tool(bare_path, "g++", "echo 9.4.0")
    done = install(path=str(bare_path))
    assert done.returncode == 1
    assert "g++ 11 or newer" in done.stderr


def test_a_python_without_venv_is_told_its_package(bare_path):
    add_tool(
        bare_path,
        "python3",
        'case "$2" in *sys.exit*) exit 0;; *ensurepip*) exit 1;; *) echo 3.12;; esac',
    )
    add_tool(bare_path, "g++", "echo 12.2.0")
    done = install(path=str(bare_path))
    assert done.returncode == 1
    assert "apt-get install -y python3.12-venv" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--find-links"], {}, "--find-links needs a folder"),
        (["--find-links", "/nonexistent"], {}, "is not a folder"),
        ([], {"USE_NUMA": "maybe"}, "it is 1, 0 or unset"),
        ([], {"PYTHON": "/nonexistent/python"}, "is not a Python from 3.11 to 3.13"),
    ],
)
def test_wrong_wishes_are_refused_before_anything_happens(arguments, environment, message):
    done = install(*arguments, **environment)
    assert done.returncode == 1
    assert message in done.stderr
