"""Runs command lines in this process, in an empty folder, as a pipe would see them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from schemas import check_output

from ktops.cli import run


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict:
        return json.loads(self.stdout)


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the commands run in; it holds no ktops.toml unless the test writes one."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def ktops(
    work_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """`ktops("models", "--json")` runs that command line."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "CI", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*args: str) -> Ran:
        capsys.readouterr()
        status = run(list(args))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        check_output(args, captured.out)
        return Ran(status, captured.out, captured.err)

    return invoke
