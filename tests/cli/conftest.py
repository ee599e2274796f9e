"""Runs command lines in this process, in an empty folder, as a pipe would see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Ran, runner
from serve_process import Serve


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
    return runner(capsys)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serve]]:
    """`serve("--json")` starts `ktops serve` in a process of its own; all are ended."""
    started: list[Serve] = []

    def start(*args: str) -> Serve:
        folder = tmp_path / f"serve{len(started)}"
        folder.mkdir()
        started.append(Serve(folder, *args))
        return started[-1]

    yield start
    for one in started:
        one.close()
