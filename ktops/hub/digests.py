"""Digests of files: computed once, and remembered with the size and time of what was read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktops.hub.errors import write_failed

STATE_FOLDER = Path(".cache") / "ktops"
LEDGER_FILE = "verified.json"
READ_CHUNK_BYTES = 8 << 20
SHA256 = "sha256"
GIT_SHA1 = "git-sha1"


@dataclass(frozen=True)
class Digest:
    """A digest in hexadecimal. `algorithm` is "sha256" (large files) or "git-sha1" (small ones)."""

    algorithm: str
    hex: str


class Hasher:
    """Digests `size` bytes. Git's digest of a file covers "blob <size>", a zero byte, the bytes."""

    def __init__(self, algorithm: str, size: int) -> None:
        self._algorithm = algorithm
        self._hash = hashlib.sha256() if algorithm == SHA256 else hashlib.sha1()
        if algorithm == GIT_SHA1:
            self._hash.update(b"blob %d\0" % size)

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes in."""
        self._hash.update(data)

    def digest(self) -> Digest:
        """The digest of what was taken in so far."""
        return Digest(self._algorithm, self._hash.hexdigest())


def digest_file(
    path: Path, algorithm: str, on_bytes: Callable[[int], None] | None = None
) -> Digest:
    """Read all of `path`. `on_bytes` is told how many bytes each read took."""
    with path.open("rb", buffering=0) as file:
        hasher = Hasher(algorithm, os.fstat(file.fileno()).st_size)
        buffer = memoryview(bytearray(READ_CHUNK_BYTES))
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            if on_bytes is not None:
                on_bytes(count)
    return hasher.digest()


@dataclass(frozen=True)
class _Record:
    size: int
    mtime_ns: int
    digest: Digest


class Ledger:
    """Digests of the files below `root`, kept in one small file there or in `state_folder`.

    Thread-safe; writing raises KtopsError of `write_failed`. A record holds for as long as its file
    keeps its size and time of change. `expected` survives that: it is what the hub said, and what a
    later `verify` without a network compares with.
    """

    def __init__(self, root: Path, state_folder: Path | None = None) -> None:
        self._root = root
        self._path = (state_folder or root / STATE_FOLDER) / LEDGER_FILE
        self._lock = threading.Lock()
        self._records = _read_records(self._path)

    def names(self) -> list[str]:
        """The recorded files, as POSIX paths below the root."""
        return sorted(self._records)

    def expected(self, name: str) -> Digest:
        """The digest that `name` had when it was verified."""
        return self._records[name].digest

    def verified(self, name: str) -> Digest | None:
        """The digest of `name` as it lies on the disk, None when it changed or was never read."""
        record = self._records.get(name)
        if record is None:
            return None
        try:
            status = (self._root / name).stat()
        except OSError:
            return None
        same = (status.st_size, status.st_mtime_ns) == (record.size, record.mtime_ns)
        return record.digest if same else None

    def record(self, name: str, digest: Digest) -> None:
        """Remember that `name`, as it lies on the disk now, has `digest`."""
        status = (self._root / name).stat()
        with self._lock:
            self._records[name] = _Record(status.st_size, status.st_mtime_ns, digest)
            self._write()

    def forget(self, name: str) -> None:
        """Drop what is known of `name`."""
        with self._lock:
            if self._records.pop(name, None) is not None:
                self._write()

    def _write(self) -> None:
        document = {
            name: [record.size, record.mtime_ns, record.digest.algorithm, record.digest.hex]
            for name, record in sorted(self._records.items())
        }
        temporary = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            raise write_failed(error, self._path.parent) from error


def _read_records(path: Path) -> dict[str, _Record]:
    """The records of a ledger file; a file that is missing or spoilt costs a second reading."""
    records = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        document: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, (size, mtime_ns, algorithm, hexdigest) in document.items():
            records[name] = _Record(size, mtime_ns, Digest(algorithm, hexdigest))
    return records
