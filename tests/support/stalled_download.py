"""A download in a process of its own, at the moment when a hub falls silent."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


def partials(folder: Path) -> list[Path]:
    """The files on their way into `folder`."""
    return sorted(folder.rglob("*.incomplete"))


@contextlib.contextmanager
def stalled_download(
    folder: Path, expected: int, *args: str, command: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A `ktops download` of nine shards into `folder` that waits for a silent hub.

    All shards are whole but one, of which `expected` bytes are there. `command` replaces the
    download, may have file systems of its own, and keeps its standard output.
    """
    plain = [sys.executable, "-m", "ktops", "download", folder.name, "-q", *args]
    process = subprocess.Popen(
        command or plain,
        stdout=subprocess.PIPE if command else None,
        stderr=subprocess.PIPE,
    )
    seen = Path(f"/proc/{process.pid}/root{folder}") if command else folder
    with process:
        try:
            deadline = time.monotonic() + 60
            while not (arrived := _has_stalled(seen, expected)) and process.poll() is None:
                assert time.monotonic() < deadline
                threading.Event().wait(0.02)
            assert arrived
            yield process
            words = process.stderr.read().strip() if process.stderr else b""
            assert command or words == b""  # -q says nothing, whatever ends it
        finally:
            process.kill()


def _has_stalled(folder: Path, expected: int) -> bool:
    whole = len(list(folder.glob("*/*-of-*.gguf")))
    with contextlib.suppress(FileNotFoundError):  # one became whole between list and look
        return whole == 8 and [path.stat().st_size for path in partials(folder)] == [expected]
    return False
