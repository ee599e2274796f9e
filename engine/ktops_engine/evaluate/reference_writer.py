"""Writes the file that keeps a run; reference.py has its format."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.evaluate.reference import ReferenceHeader
from ktops_engine.text import text


class ReferenceWriter:
    """Writes a reference beside its final place, and moves it there when it is whole.

    A context manager: left by an exception, or before `commit`, it leaves nothing behind. Raises
    KtopsError: reference-exists unless it may `replace`, reference-too-large (status 4) where
    `num_bytes` are not free, reference-not-written.
    """

    def __init__(self, path: Path, num_bytes: int, *, replace: bool = False) -> None:
        self._path, self._num_bytes, self._replace = path, num_bytes, replace
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        refuse_existing(self._path, replace=self._replace)
        try:
            free = shutil.disk_usage(self._path.parent).free
            if free < self._num_bytes:
                raise _too_large(self._path, self._num_bytes, free)
            self._file = self._partial.open("xb")
        except OSError as error:
            raise self._not_written(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported already
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def begin(self, header: ReferenceHeader) -> None:
        """Write what comes before the records."""
        self._put(header.encode())

    def write(self, records: npt.NDArray[np.void]) -> None:
        """Append records of the header's `dtype`."""
        self._put(records.tobytes())

    def commit(self) -> None:
        """Finish the file, all records of which are written, and put it into its place."""
        self._put(self._digest.digest())
        refuse_existing(self._path, replace=self._replace)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._partial.replace(self._path)
        except OSError as error:
            raise self._not_written(error) from error

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> KtopsError:
        return KtopsError(
            "reference-not-written",
            text(
                "{path} cannot be written: {reason}",
                path=self._path,
                reason=error.strerror or error,
            ),
            text("give another place: --save-reference PATH"),
        )


def refuse_existing(path: Path, *, replace: bool) -> None:
    """Raise KtopsError "reference-exists" where something is that may not be replaced."""
    if not os.path.lexists(path) or (replace and not path.is_dir()):
        return
    raise KtopsError(
        "reference-exists",
        text("{path} exists already", path=path),
        text("--force replaces a file; or give another name"),
    )


def _too_large(path: Path, needed: int, free: int) -> KtopsError:
    return KtopsError(
        "reference-too-large",
        text(
            "{path} takes {needed} MiB, and {free} MiB are free there",
            path=path,
            needed=-(-needed // (1 << 20)),
            free=free >> 20,
        ),
        text("evaluate fewer tokens: --max-tokens N; or give another place: --save-reference PATH"),
        exit_status=EXIT_NOT_ENOUGH,
    )
