"""Child: how fast does a disk deliver a large file? The page cache is passed by.

Arguments: a file to read, or a folder in which a file is written, read and removed again.
"""

import contextlib
import json
import mmap
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK_BYTES = 8 << 20
WRITTEN_BYTES = 256 << 20
READERS = 4  # one request at a time does not keep an NVMe disk busy
SECONDS = 3.0


def open_direct(path: Path) -> int:
    """A file whose reads go to the disk; where O_DIRECT is refused, its cache is dropped first."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return handle


def rate(path: Path) -> tuple[int, float]:
    """(bytes, seconds) of reading blocks until the file or the time is over."""
    handle = open_direct(path)
    blocks = path.stat().st_size // BLOCK_BYTES
    began = time.monotonic()

    def read(first: int) -> int:
        with mmap.mmap(-1, BLOCK_BYTES) as buffer:  # aligned, as O_DIRECT wants it
            done = 0
            for block in range(first, blocks, READERS):
                if time.monotonic() - began > SECONDS:
                    break
                done += os.preadv(handle, [buffer], block * BLOCK_BYTES)
            return done

    try:
        with ThreadPoolExecutor(READERS) as readers:
            done = sum(readers.map(read, range(READERS)))
        return done, time.monotonic() - began
    finally:
        os.close(handle)


def written_in(folder: Path) -> tuple[int, float]:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".ktops-rate-") as file:
        block = os.urandom(BLOCK_BYTES)  # a disk that compresses would flatter itself
        for _ in range(WRITTEN_BYTES // BLOCK_BYTES):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return rate(Path(file.name))


target = Path(sys.argv[1])
try:
    done, seconds = written_in(target) if target.is_dir() else rate(target)
    facts: dict[str, object] = {"bytes": done, "seconds": seconds}
except OSError as error:
    facts = {"error": f"{target}: {error.strerror}"}
sys.stdout.write(json.dumps(facts) + "\n")
