"""The file that keeps a run, for later runs to be compared with.

    offset 0   8 bytes       "KTOPSEVL"
           8   uint32        version of the format, 1
          12   uint32        length of the header, at most 64 KiB
          16   JSON, UTF-8   the header: the fields of `ReferenceHeader`
           .   records       `num_positions` times `record_dtype(top_k)`, without padding
         end   32 bytes      SHA-256 of everything before

Numbers are little-endian. A record of 512 kept tokens takes 4,112 bytes. The same run writes the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from ktops_engine.errors import KtopsError
from ktops_engine.text import text

TOP_K = 512
MAGIC = b"KTOPSEVL"
VERSION = 1
MAX_HEADER_BYTES = 64 << 10
DIGEST_BYTES = hashlib.sha256().digest_size
# No vocabulary and no window is as large: what a header says is believed no further than this.
MAX_NUMBER = 1 << 31
# Log probabilities may exceed 0 by rounding; float32 logits lie within these of each other.
MAX_LOG_PROB, MIN_LOG_PROB = 1e-6, -1e39
_START = struct.Struct("<8sII")
_READ_BYTES = 1 << 20


def record_dtype(top_k: int) -> np.dtype[np.void]:
    """What is kept of one position: the log probability of the token that came, that of all tokens
    but the likeliest together, and the ids and log probabilities of the likeliest, best first."""
    return np.dtype(
        [("target", "<f8"), ("rest", "<f8"), ("ids", "<u4", (top_k,)), ("top", "<f4", (top_k,))]
    )


@dataclass(frozen=True)
class ReferenceHeader:
    """What a run was of. `model` and `isa` are for people; the rest decides what may be compared:
    hashes of the text's bytes and of its token ids, the sizes of a window and of the vocabulary,
    and how many positions and, of each, likeliest tokens are kept."""

    model: str
    isa: str
    text_sha256: str
    tokens_sha256: str
    window: int
    vocab_size: int
    num_positions: int
    top_k: int

    @property
    def dtype(self) -> np.dtype[np.void]:
        return record_dtype(self.top_k)

    def encode(self) -> bytes:
        """Everything before the records."""
        body = json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()
        return _START.pack(MAGIC, VERSION, len(body)) + body


def reference_bytes(num_positions: int, vocab_size: int) -> int:
    """The most that a reference takes."""
    record_bytes = record_dtype(kept_tokens(vocab_size)).itemsize
    return _START.size + MAX_HEADER_BYTES + num_positions * record_bytes + DIGEST_BYTES


def kept_tokens(vocab_size: int) -> int:
    """How many tokens of each position a reference keeps: all of a small vocabulary."""
    return min(TOP_K, vocab_size)


class ReferenceReader:
    """A whole and unspoilt reference, read from its beginning. A context manager.

    Opening reads all of the file once. Raises KtopsError "invalid-reference".
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_file():
                raise _invalid(path, text("it is no file"))
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise _invalid(path, error.strerror or str(error)) from error
        try:
            self.header, start = self._read_header()
            self._check_whole(start)
            self._file.seek(start)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, count: int) -> npt.NDArray[np.void]:
        """The next `count` records, checked. Raises KtopsError "invalid-reference"."""
        dtype = self.header.dtype
        records = np.frombuffer(self._exactly(count * dtype.itemsize), dtype=dtype)
        # The hash only proves that nothing has changed since somebody wrote it.
        if (records["ids"] >= self.header.vocab_size).any():
            raise self._spoilt(text("a token id is outside the vocabulary"))
        is_full = self.header.top_k == self.header.vocab_size  # then nothing is left for `rest`
        for name in ("target", "top") if is_full else ("target", "top", "rest"):
            values = records[name].astype(np.float64)
            if not ((values <= MAX_LOG_PROB) & (values >= MIN_LOG_PROB)).all():  # NaN too
                raise self._spoilt(text("a log probability is out of range"))
        return records

    def _read_header(self) -> tuple[ReferenceHeader, int]:
        """The header, and where the records begin."""
        start = self._file.read(_START.size)
        if len(start) < _START.size or not start.startswith(MAGIC):
            raise self._spoilt(text("it is no reference of ktops eval"))
        _, version, num_bytes = _START.unpack(start)
        if version != VERSION:
            raise _invalid(
                self.path,
                text("its format is version {found}, known is {known}", found=version,
                     known=VERSION),
            )  # fmt: skip
        if num_bytes > MAX_HEADER_BYTES:
            raise self._spoilt(text("its header is too large"))
        try:
            header = _parse(json.loads(self._exactly(num_bytes)))
        except (ValueError, RecursionError) as error:
            raise self._spoilt(text("its header cannot be read")) from error
        return header, _START.size + num_bytes

    def _check_whole(self, start: int) -> None:
        size = os.fstat(self._file.fileno()).st_size
        expected = start + self.header.num_positions * self.header.dtype.itemsize + DIGEST_BYTES
        if size != expected:
            raise self._spoilt(
                text("it has {size} bytes, its header asks for {expected}", size=size,
                     expected=expected)
            )  # fmt: skip
        self._file.seek(0)
        digest = hashlib.sha256()
        left = size - DIGEST_BYTES
        while left:
            piece = self._exactly(min(left, _READ_BYTES))
            digest.update(piece)
            left -= len(piece)
        if self._exactly(DIGEST_BYTES) != digest.digest():
            raise self._spoilt(text("its bytes have changed since it was written"))

    def _exactly(self, num_bytes: int) -> bytes:
        try:
            data = self._file.read(num_bytes)
        except OSError as error:
            raise _invalid(self.path, error.strerror or str(error)) from error
        if len(data) < num_bytes:
            raise self._spoilt(text("it ends too early"))
        return data

    def _spoilt(self, reason: str) -> KtopsError:
        return _invalid(self.path, reason)


def _parse(found: object) -> ReferenceHeader:
    """Raises ValueError for what is no header."""
    if not isinstance(found, dict) or set(found) != {f.name for f in fields(ReferenceHeader)}:
        raise ValueError("other fields")
    for name, value in found.items():
        if ReferenceHeader.__annotations__[name] == "str":
            if not isinstance(value, str):
                raise ValueError(name)
        elif type(value) is not int or not 1 <= value <= MAX_NUMBER:
            raise ValueError(name)
    header = ReferenceHeader(**found)
    if header.top_k != kept_tokens(header.vocab_size):
        raise ValueError("top_k")
    return header


def _invalid(path: Path, reason: str) -> KtopsError:
    return KtopsError(
        "invalid-reference",
        text("{path} cannot be used as a reference: {reason}", path=path, reason=reason),
        text("write a new one: ktops eval MODEL FILE --save-reference PATH"),
    )
