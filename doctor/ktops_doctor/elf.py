"""A small reader of ELF symbol versions: what a library needs of others and what it defines.

Format: System V ABI, and the GNU symbol versioning sections as in the Linux Standard Base, "Symbol
Versioning": .gnu.version_r (needs) and .gnu.version_d (definitions), both found through the dynamic
section, so that stripped libraries are read too. 64-bit little-endian files only: x86-64 Linux.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<QQ")
_VERNEED = struct.Struct("<HHIII")
_VERNAUX = struct.Struct("<IHHII")
_VERDEF = struct.Struct("<HHHHIII")
_VERDAUX = struct.Struct("<II")

_MAGIC_64_LITTLE = b"\x7fELF\x02\x01"
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_STRTAB, _DT_STRSZ = 5, 10
_DT_VERDEF, _DT_VERDEFNUM = 0x6FFFFFFC, 0x6FFFFFFD
_DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
_WEAK = 2  # VER_FLG_WEAK: the loader only warns when such a version is missing
_MAX_STRINGS = 256 << 20
_MAX_ENTRIES = 65_535


class ElfError(Exception):
    """The file is no 64-bit little-endian ELF file, or it is cut short or inconsistent."""


@dataclass(frozen=True)
class ElfVersions:
    """`needs` maps a library's file name to the versions wanted of it; `defines` lists its own."""

    needs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    defines: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Segment:
    offset: int
    address: int
    size: int


def read_versions(path: Path) -> ElfVersions:
    """Symbol versions of the ELF file at `path`. Raises ElfError, or OSError when unreadable."""
    with path.open("rb") as file:
        try:
            return _Reader(file, path.stat().st_size).versions()
        except (struct.error, UnicodeDecodeError) as error:
            raise ElfError(f"damaged ELF structure: {error}") from error


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._segments, dynamic = self._program_headers()
        self._dynamic = self._read_dynamic(dynamic)
        self._strings = self._string_table()

    def versions(self) -> ElfVersions:
        return ElfVersions(self._needs(), self._defines())

    def _read(self, offset: int, size: int) -> bytes:
        if offset < 0 or offset + size > self._size:
            raise ElfError(
                f"the file ends at byte {self._size}, bytes to {offset + size} are wanted"
            )
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise ElfError(f"the file ends at byte {offset + len(data)}")
        return data

    def _program_headers(self) -> tuple[list[_Segment], _Segment | None]:
        header = self._read(0, _HEADER.size)
        if not header.startswith(_MAGIC_64_LITTLE):
            raise ElfError("not a 64-bit little-endian ELF file")
        fields = _HEADER.unpack(header)
        table, entry_size, count = fields[5], fields[9], fields[10]
        segments: list[_Segment] = []
        dynamic = None
        for index in range(count):
            raw = self._read(table + index * entry_size, _PROGRAM_HEADER.size)
            kind, _, offset, address, _, size, _, _ = _PROGRAM_HEADER.unpack(raw)
            if kind == _PT_LOAD:
                segments.append(_Segment(offset, address, size))
            elif kind == _PT_DYNAMIC:
                dynamic = _Segment(offset, address, size)
        return segments, dynamic

    def _read_dynamic(self, segment: _Segment | None) -> dict[int, int]:
        if segment is None:
            return {}
        data = self._read(segment.offset, segment.size - segment.size % _DYNAMIC.size)
        entries: dict[int, int] = {}
        for tag, value in _DYNAMIC.iter_unpack(data):
            if tag == 0:
                break
            entries.setdefault(tag, value)
        return entries

    def _string_table(self) -> bytes:
        if _DT_STRTAB not in self._dynamic:
            return b""
        size = self._dynamic.get(_DT_STRSZ, 0)
        if size > _MAX_STRINGS:
            raise ElfError(f"a string table of {size} bytes")
        return self._read(self._offset(self._dynamic[_DT_STRTAB]), size)

    def _offset(self, address: int) -> int:
        for segment in self._segments:
            if segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        raise ElfError(f"address {address:#x} is in no segment of the file")

    def _string(self, start: int) -> str:
        end = self._strings.find(b"\0", start)
        if start >= len(self._strings) or end < 0:
            raise ElfError(f"no string at {start} of {len(self._strings)}")
        return self._strings[start:end].decode("utf-8")

    def _needs(self) -> dict[str, frozenset[str]]:
        needs: dict[str, frozenset[str]] = {}
        if _DT_VERNEED not in self._dynamic:
            return needs
        at = self._offset(self._dynamic[_DT_VERNEED])
        for _ in range(min(self._dynamic.get(_DT_VERNEEDNUM, 0), _MAX_ENTRIES)):
            _, count, library, first, step = _VERNEED.unpack(self._read(at, _VERNEED.size))
            names = self._need_names(at + first, count)
            name = self._string(library)
            needs[name] = needs.get(name, frozenset()) | names
            if not step:
                break
            at += step
        return needs

    def _need_names(self, at: int, count: int) -> frozenset[str]:
        names = set()
        for _ in range(count):
            _, flags, _, name, step = _VERNAUX.unpack(self._read(at, _VERNAUX.size))
            if not flags & _WEAK:
                names.add(self._string(name))
            if not step:
                break
            at += step
        return frozenset(names)

    def _defines(self) -> frozenset[str]:
        names: set[str] = set()
        if _DT_VERDEF not in self._dynamic:
            return frozenset()
        at = self._offset(self._dynamic[_DT_VERDEF])
        for _ in range(min(self._dynamic.get(_DT_VERDEFNUM, 0), _MAX_ENTRIES)):
            _, _, _, _, _, first, step = _VERDEF.unpack(self._read(at, _VERDEF.size))
            name, _ = _VERDAUX.unpack(self._read(at + first, _VERDAUX.size))
            names.add(self._string(name))
            if not step:
                break
            at += step
        return frozenset(names)
