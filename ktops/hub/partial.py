"""A file on its way in: appended to, digested as it grows, kept when the process dies."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from ktops.hub.digests import READ_CHUNK_BYTES, SHA256, STATE_FOLDER, Digest, Hasher
from ktops.hub.rate import RateLimit
from ktops.hub.remote import RemoteFile

SUFFIX = ".incomplete"


class Stopped(Exception):
    """Another file failed or the user interrupted: stop writing and keep what is there."""


class PartialFile:
    """The growing file that a hub's client writes to; a context manager.

    Opening it reads and digests what an earlier process left, so that no byte is fetched twice.
    It has the methods of a binary file that the clients call: write, tell, seek, truncate, flush.
    """

    def __init__(
        self,
        path: Path,
        file: RemoteFile,
        *,
        on_bytes: Callable[[int], None],
        stop: threading.Event,
        limit: RateLimit | None = None,
    ) -> None:
        self.path = path
        self._algorithm = file.digest.algorithm if file.digest else SHA256
        self._expected_size = file.size
        self._on_bytes = on_bytes
        self._stop = stop
        self._limit = limit
        self._size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        self._hasher = Hasher(self._algorithm, file.size)
        self._take_in_what_is_there()

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self._size

    def digest(self) -> Digest:
        """The digest of the bytes that are there."""
        return self._hasher.digest()

    def write(self, data: bytes) -> int:
        """Append `data`. Raises Stopped when the download as a whole has ended, OSError."""
        if self._limit is not None:
            self._limit.take(len(data), self._stop.wait)
        if self._stop.is_set():
            raise Stopped
        view = memoryview(data)
        while view:
            count = self._file.write(view)
            self._hasher.update(view[:count])
            self._size += count
            self._on_bytes(count)
            view = view[count:]
        return len(data)

    def tell(self) -> int:
        """Where the next byte goes."""
        return self._size

    def seek(self, position: int) -> int:
        """Go back to the start, the only place a client that cannot resume asks for."""
        if position not in (0, self._size):
            raise ValueError(f"cannot go to byte {position} of a file that only grows")
        if position == 0 and self._size:
            self.restart()
        return position

    def truncate(self) -> int:
        """Cut at the current position, which is always the end."""
        return self._size

    def flush(self) -> None:
        """Every write has reached the system already."""

    def restart(self) -> None:
        """Drop all bytes."""
        self._file.truncate(0)
        self._on_bytes(-self._size)
        self._size = 0
        self._hasher = Hasher(self._algorithm, self._expected_size)

    def move_to(self, target: Path) -> None:
        """Close, make durable, and give the file its real name."""
        os.fsync(self._file.fileno())
        self._file.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(target)

    def _take_in_what_is_there(self) -> None:
        if os.fstat(self._file.fileno()).st_size > self._expected_size:
            self._file.truncate(0)
        self._file.seek(0)
        while data := self._file.read(READ_CHUNK_BYTES):
            if self._stop.is_set():
                raise Stopped
            self._hasher.update(data)
            self._size += len(data)


def partial_path(root: Path, name: str, file: RemoteFile) -> Path:
    """Where `file` grows before it becomes `root / name`; another content grows elsewhere."""
    content = file.digest.hex[:16] if file.digest else str(file.size)
    return root / STATE_FOLDER / f"{name.replace('/', '--')}.{content}{SUFFIX}"
