"""Child processes: commands and probes, each with a time limit that holds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO

from ktops_doctor.host import CommandOutput, ProbeOutput
from ktops_engine.text import text

_PROBES = Path(__file__).parent / "probes"
_GRACE_SECONDS = 1.0
_ENOUGH = "enough"


def run_command(command: tuple[str, ...], time_limit: float) -> CommandOutput:
    """Run `command` in the C locale, without input, for at most `time_limit` seconds."""
    try:
        process = _start(command)
    except (OSError, ValueError) as error:
        return CommandOutput(None, stderr=str(error))
    try:
        stdout, stderr = process.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired:
        _kill(process)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        return CommandOutput(None, timed_out=True)
    return CommandOutput(process.returncode, _text(stdout), _text(stderr))


def run_probe(
    name: str, arguments: tuple[str, ...], *, time_limit: float, patience: float | None
) -> ProbeOutput:
    """Run a probe script and merge the JSON objects it prints, one a line.

    Once `patience` seconds have passed and the probe has printed {"enough": true}, it is ended
    and what it said counts. The source goes through -c, and -P keeps the current folder out of
    the child's import path.
    """
    source = (_PROBES / f"{name}.py").read_text(encoding="utf-8")
    try:
        process = _start((sys.executable, "-P", "-c", source, *arguments))
    except OSError as error:
        return ProbeOutput(error=str(error))
    lines: SimpleQueue[bytes | None] = SimpleQueue()
    stderr: list[bytes] = []
    readers = (
        Thread(target=_pass_on, args=(process.stdout, lines), daemon=True),
        Thread(target=_collect, args=(process.stderr, stderr), daemon=True),
    )
    for reader in readers:
        reader.start()
    facts, ended = _listen(lines, time_limit, patience)
    if not ended:
        _kill(process)
        enough = bool(facts.pop(_ENOUGH, False))
        late = text("no answer within {seconds} s", seconds=f"{time_limit:g}")
        return ProbeOutput(facts, "" if enough else late)
    status = process.wait()
    for reader in readers:
        reader.join(_GRACE_SECONDS)
    facts.pop(_ENOUGH, None)
    return ProbeOutput(facts, _reason(status, _text(b"".join(stderr))))


def _start(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C", "LANGUAGE": "C"},
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the command and its children. One that hangs inside a driver cannot be ended: the grace
    time passes and it is left behind."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)


def _pass_on(stream: IO[bytes], lines: SimpleQueue[bytes | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _collect(stream: IO[bytes], parts: list[bytes]) -> None:
    with stream:
        parts.append(stream.read())


def _listen(
    lines: SimpleQueue[bytes | None], time_limit: float, patience: float | None
) -> tuple[dict[str, object], bool]:
    """The facts that were printed, and whether the probe ended by itself."""
    began = time.monotonic()
    facts: dict[str, object] = {}
    while True:
        limit = patience if patience is not None and facts.get(_ENOUGH) else time_limit
        try:
            line = lines.get(timeout=max(0.0, began + limit - time.monotonic()))
        except Empty:
            return facts, False
        if line is None:
            return facts, True
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict):
                facts.update(said)


def _reason(status: int, stderr: str) -> str:
    """Why a child ended badly, '' when it ended well."""
    if status == 0:
        return ""
    if status < 0:
        with contextlib.suppress(ValueError):
            return text("ended by {signal}", signal=signal.Signals(-status).name)
    lines = [line for line in stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else text("ended with status {status}", status=status)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
