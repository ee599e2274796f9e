"""Reading GGUF's metadata values: scalars at once, arrays when somebody asks for them.

R1's tokenizer is 257,000 strings; decoding them takes a tenth of a second and most callers never
look at them. Strings have no index, so getting past an array means hopping over its lengths.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ktops_engine.errors import KtopsError
from ktops_engine.text import Text, text

if TYPE_CHECKING:  # imported when an array is decoded: file names and headers need none of it
    import numpy as np
    import numpy.typing as npt

# Bounds on what a header may ask of this process; each is far above any published model.
MAX_STRING_BYTES = 64 << 20
MAX_NAME_BYTES = 65_535
MAX_ARRAY_LENGTH = 1 << 24
MAX_STRINGS = 1 << 22

_BOOL = 7
_STRING = 8
_ARRAY = 9
_SCALARS = MappingProxyType(
    {
        0: struct.Struct("<B"),
        1: struct.Struct("<b"),
        2: struct.Struct("<H"),
        3: struct.Struct("<h"),
        4: struct.Struct("<I"),
        5: struct.Struct("<i"),
        6: struct.Struct("<f"),
        _BOOL: struct.Struct("<B"),
        10: struct.Struct("<Q"),
        11: struct.Struct("<q"),
        12: struct.Struct("<d"),
    }
)
_U64 = struct.Struct("<Q")


@dataclass(frozen=True)
class LazyArray:
    """An array value that is still in its file: elements of `type` at [start, end)."""

    path: Path
    key: str
    type: int
    length: int
    start: int
    end: int

    def decode(self) -> list[str] | npt.NDArray[np.generic]:
        """Read and decode the elements: a list of strings, or a numpy array."""
        data = _read_range(self.path, self.start, self.end)
        if self.type != _STRING:
            import numpy as np

            dtype = np.dtype("?" if self.type == _BOOL else _SCALARS[self.type].format)
            return np.frombuffer(data, dtype=dtype)
        unpack = _U64.unpack_from
        strings: list[str] = []
        position = 0
        try:
            for _ in range(self.length):
                start = position + 8
                position = start + unpack(data, position)[0]
                strings.append(data[start:position].decode())
        except (UnicodeDecodeError, struct.error) as error:
            raise corrupt(
                self.path,
                text("string {count} of {key} is not UTF-8 text", count=len(strings), key=self.key),
            ) from error
        return strings


class Metadata(Mapping[str, object]):
    """Key-value pairs of a GGUF. Array values are decoded on first access, then kept."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: str) -> object:
        value = self._values[key]
        if isinstance(value, LazyArray):
            value = self._values[key] = value.decode()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values


class Cursor:
    """A bounds-checked position in a mapped header. Every failure is a KtopsError."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path = path
        self.data = data
        self.position = 0
        self._strings_left = MAX_STRINGS

    def scalar(self, form: struct.Struct) -> int | float:
        """One little-endian number."""
        try:
            value: int | float = form.unpack_from(self.data, self.position)[0]
        except struct.error as error:
            raise self._cut() from error
        self.position += form.size
        return value

    def u32(self) -> int:
        return int(self.scalar(_SCALARS[4]))

    def u64(self) -> int:
        return int(self.scalar(_U64))

    def string(self, what: Text, limit: int = MAX_STRING_BYTES) -> str:
        """One length-prefixed UTF-8 string of at most `limit` bytes."""
        length = self.u64()
        if length > limit:
            raise corrupt(
                self.path, text("{what} claims to be {length} bytes long", what=what, length=length)
            )
        end = self.position + length
        if end > len(self.data):
            raise self._cut()
        raw = self.data[self.position : end]
        self.position = end
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise corrupt(self.path, text("{what} is not UTF-8 text", what=what)) from error

    def value(self, key: str) -> object:
        """The typed value that follows a metadata key."""
        kind = self.u32()
        if kind in _SCALARS:
            number = self.scalar(_SCALARS[kind])
            if kind != _BOOL:
                return number
            if number not in (0, 1):
                raise corrupt(
                    self.path,
                    text("{key} is a boolean with the value {number}", key=key, number=number),
                )
            return bool(number)
        if kind == _STRING:
            return self.string(text("the value of {key}", key=key))
        if kind == _ARRAY:
            return self._array(key)
        raise corrupt(
            self.path, text("{key} has the unknown value type {kind}", key=key, kind=kind)
        )

    def _array(self, key: str) -> LazyArray:
        kind = self.u32()
        length = self.u64()
        if kind != _STRING and kind not in _SCALARS:
            raise corrupt(
                self.path,
                text("{key} is an array of the unsupported value type {kind}", key=key, kind=kind),
            )
        if length > MAX_ARRAY_LENGTH:
            raise corrupt(
                self.path,
                text("{key} claims to be an array of {length} elements", key=key, length=length),
            )
        start = self.position
        if kind == _STRING:
            self._skip_strings(key, length)
        else:
            self.position += length * _SCALARS[kind].size
            if self.position > len(self.data):
                raise self._cut()
        return LazyArray(self.path, key, kind, length, start, self.position)

    def _skip_strings(self, key: str, count: int) -> None:
        self._strings_left -= count
        if self._strings_left < 0:
            raise corrupt(
                self.path,
                text(
                    "{key} takes the metadata past {limit} strings",
                    key=key,
                    limit=MAX_STRINGS,
                ),
            )
        data, unpack, position = self.data, _U64.unpack_from, self.position
        try:
            for _ in range(count):
                position += 8 + unpack(data, position)[0]
        except (struct.error, OverflowError) as error:
            raise self._cut() from error
        if position > len(data):
            raise self._cut()
        self.position = position

    def _cut(self) -> KtopsError:
        return KtopsError(
            "gguf-truncated",
            text(
                "{path} ends inside its header: the {count} bytes on disk are not enough for "
                "its metadata and tensor table.",
                path=self.path,
                count=len(self.data),
            ),
            text(
                "The download stopped early or was damaged; download it again: rm '{path}'",
                path=self.path,
            ),
        )


def corrupt(path: Path, what: Text) -> KtopsError:
    """The error for a header that contradicts itself or the format."""
    return KtopsError(
        "gguf-corrupt",
        text("{path} is damaged: {what}.", path=path, what=what),
        text("Download it again: rm '{path}'", path=path),
    )


def _read_range(path: Path, start: int, end: int) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), end - start, start)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(data) != end - start:
        raise corrupt(path, text("it became shorter while it was being read"))
    return data


def unreadable(path: Path, error: OSError) -> KtopsError:
    """The error for a file the operating system will not let us read."""
    return KtopsError(
        "gguf-unreadable",
        text("{path} cannot be read: {reason}.", path=path, reason=error.strerror or error),
        text("Check its permissions and the disk: ls -l '{path}'; dmesg | tail", path=path),
    )
