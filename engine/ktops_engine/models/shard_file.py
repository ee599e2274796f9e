"""A file of weights: read past the page cache, unless that holds the bytes already."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path
from typing import Self

import numpy as np

PAGE_BYTES = 4096  # what reads past the page cache are aligned to


class ShardFile:
    """One open shard. Reads may come from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._direct: int | None = None
        self._mapping: mmap.mmap | None = None
        try:
            self._direct = _open_direct(path)
            self._mapping = _map_if_told(path, self.file)
        except BaseException:
            self.close()
            raise
        self._mincore = ctypes.CDLL(None, use_errno=True).mincore
        self._mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]

    def is_cached(self, offset: int, num_bytes: int) -> bool:
        """Whether all these bytes lie in the page cache; False as well where the kernel keeps that
        from us."""
        if self._mapping is None or offset + num_bytes > len(self._mapping):
            return False
        first = offset // PAGE_BYTES * PAGE_BYTES
        length = offset + num_bytes - first
        bytes_of_file = np.frombuffer(self._mapping, np.uint8)
        pages = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
        refused = self._mincore(bytes_of_file.ctypes.data + first, length, pages.ctypes.data)
        return not refused and bool(np.all(pages & 1))

    def read(self, target: memoryview, offset: int, num_bytes: int) -> int:
        """Reads from the disk into `target`, and returns where in it the bytes begin.

        `target` starts on a page and has room for two pages more than `num_bytes`. Leaves the page
        cache as it was. Raises OSError, EOFError when the file is too short.
        """
        skipped = offset % PAGE_BYTES
        wanted = skipped + num_bytes
        aligned = -(-wanted // PAGE_BYTES) * PAGE_BYTES
        if self._direct is not None:
            try:
                _fill(self._direct, target[:aligned], wanted, offset - skipped)
                return skipped
            except OSError as error:
                if error.errno != errno.EINVAL:  # a disk of larger sectors, most likely
                    raise
        _fill(self.file, target[:wanted], wanted, offset - skipped)
        os.posix_fadvise(self.file, offset - skipped, wanted, os.POSIX_FADV_DONTNEED)
        return skipped

    def close(self) -> None:
        os.close(self.file)
        if self._direct is not None:
            os.close(self._direct)
        if self._mapping is not None:
            self._mapping.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _open_direct(path: Path) -> int | None:
    """A descriptor that bypasses the page cache; None on a file system that has none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


def _map_if_told(path: Path, file: int) -> mmap.mmap | None:
    """The file as memory, to ask which of it is cached; None where Linux would not tell: it does
    to the owner and to who may write, and calls all of it cached to others."""
    status = os.fstat(file)
    is_told = status.st_uid == os.geteuid() or os.access(path, os.W_OK)
    return mmap.mmap(file, 0, prot=mmap.PROT_READ) if is_told and status.st_size else None


def _fill(file: int, target: memoryview, wanted: int, offset: int) -> None:
    """Reads `target` full, or at least `wanted` bytes where the file ends."""
    done = 0
    while done < wanted:
        count = os.preadv(file, [target[done:]], offset + done)
        done += count
        if count == 0:
            raise EOFError
