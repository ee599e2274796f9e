"""`ktops serve` as a process of its own, its output read as it comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

KEY = "sesame"
END_LIMIT_S = 60


class Serve:
    """A `ktops serve` process on a free port, with `KEY` as its API key."""

    def __init__(self, folder: Path, *args: str, environ: Mapping[str, str] | None = None) -> None:
        self.errors = folder / "stderr.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ktops", "serve", "--port", "0", *args],
                cwd=folder,
                env=dict(os.environ) | {"KTOPS_API_KEY": KEY} | dict(environ or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def line(self) -> str:
        line = self.process.stdout.readline()
        assert line, self.stderr
        return line

    def wait_for(self, event: str) -> dict:
        """Read events until this one."""
        return self.events_until(event)[-1]

    def events_until(self, event: str) -> list[dict]:
        """The events up to this one."""
        found = [json.loads(self.line())]
        while found[-1].get("event") != event:
            found.append(json.loads(self.line()))
        return found

    @property
    def stderr(self) -> str:
        return self.errors.read_text()

    def end(self, number: signal.Signals) -> int:
        """Send the signal and return the exit status; nothing of the process may be left."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        status = self.process.wait(END_LIMIT_S)
        assert [child for child in children if child.is_running()] == []
        assert "Traceback" not in self.stderr
        return status

    def close(self) -> None:
        """End it whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
