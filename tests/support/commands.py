"""Command lines run in this process, as a pipe would see them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

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

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.stdout.splitlines()]


def runner(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`ktops("models", "--json")` runs that command line; what it prints must fit its schema."""

    def ktops(*args: str) -> Ran:
        capsys.readouterr()
        status = run(list(args))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        check_output(args, captured.out)
        return Ran(status, captured.out, captured.err)

    return ktops
