"""The header of one GGUF file: metadata and tensor table, checked against the file's size.

Format: magic, version, tensor count, key count, the key-value pairs, the tensor table, padding to
`general.alignment`, then tensor data (ggml-org/ggml, docs/gguf.md). Versions 2 and 3 share it.
"""

from __future__ import annotations

import itertools
import mmap
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ktops_engine.errors import KtopsError
from ktops_engine.gguf.sniff import bad_magic
from ktops_engine.gguf.types import QuantType, TensorInfo, is_supported, type_name
from ktops_engine.gguf.values import MAX_NAME_BYTES, Cursor, Metadata, corrupt, unreadable
from ktops_engine.text import joined, text

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_KEYS = 1 << 14
MAX_TENSORS = 1 << 16
MAX_ELEMENTS = (1 << 63) - 1


@dataclass(frozen=True)
class Header:
    """One file's checked header; `data_start` is where its tensor data begins."""

    path: Path
    size: int
    version: int
    metadata: Metadata
    tensors: tuple[TensorInfo, ...]
    data_start: int


@dataclass(frozen=True)
class _Entry:
    """One row of the tensor table as written: offset relative to the data section."""

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int


def read_header(path: Path, shard: int = 0) -> Header:
    """Read and check the header of one file; `shard` is what its `TensorInfo`s will carry.

    Only header pages are touched. Raises KtopsError: gguf-not-found, gguf-unreadable,
    gguf-bad-magic, gguf-unsupported-version, gguf-truncated, gguf-corrupt, gguf-unsupported-type.
    """
    try:
        # Not blocking, so that a named pipe cannot hang the open.
        with open(path, "rb", opener=_open_without_blocking) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KtopsError(
                    "gguf-not-found",
                    text("{path} is not a regular file.", path=path),
                    f"ls -l '{path}'",
                )
            head = os.pread(file.fileno(), 512, 0)
            if head[:4] != MAGIC:
                raise bad_magic(path, head, status.st_size)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(Cursor(path, data), shard)
    except FileNotFoundError as error:
        raise KtopsError(
            "gguf-not-found", text("{path} does not exist.", path=path), f"ls -l '{path.parent}'"
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            raise unreadable(path, error) from error
        raise corrupt(path, text("it changed while it was being opened")) from error


def _open_without_blocking(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _parse(cursor: Cursor, shard: int) -> Header:
    path = cursor.path
    size = len(cursor.data)
    cursor.position = len(MAGIC)
    version = _version(cursor)
    num_tensors, num_keys = cursor.u64(), cursor.u64()
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        raise corrupt(
            path,
            text(
                "it claims {num_tensors} tensors and {num_keys} metadata keys",
                num_tensors=num_tensors,
                num_keys=num_keys,
            ),
        )
    metadata = _metadata(cursor, num_keys)
    entries = [_entry(cursor) for _ in range(num_tensors)]
    alignment = _alignment(path, metadata)
    data_start = -(-cursor.position // alignment) * alignment
    _refuse_unsupported_types(path, entries)
    tensors = tuple(_tensor_info(path, entry, alignment, data_start, shard) for entry in entries)
    _check_layout(path, tensors, size)
    return Header(path, size, version, metadata, tensors, data_start)


def _version(cursor: Cursor) -> int:
    version = cursor.u32()
    if version in SUPPORTED_VERSIONS:
        return version
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if swapped in (1, *SUPPORTED_VERSIONS):
        raise KtopsError(
            "gguf-unsupported-version",
            text("{path} is a big-endian GGUF; ktops reads little-endian files.", path=cursor.path),
            text("Download the little-endian version of this model"),
        )
    raise KtopsError(
        "gguf-unsupported-version",
        text(
            "{path} has GGUF version {version}; ktops reads versions 2 and 3.",
            path=cursor.path,
            version=version,
        ),
        text("Download a current version of this model")
        if version == 1
        else text("Upgrade ktops: pip install --upgrade ktops"),
    )


def _metadata(cursor: Cursor, num_keys: int) -> Metadata:
    values: dict[str, object] = {}
    for index in range(num_keys):
        key = cursor.string(text("the name of metadata key {index}", index=index), MAX_NAME_BYTES)
        if key in values:
            raise corrupt(cursor.path, text("the metadata key {key!r} appears twice", key=key))
        values[key] = cursor.value(key)
    return Metadata(values)


def _entry(cursor: Cursor) -> _Entry:
    name = cursor.string(text("a tensor's name"), MAX_NAME_BYTES)
    num_dimensions = cursor.u32()
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise corrupt(
            cursor.path,
            text(
                "tensor {name!r} has {num_dimensions} dimensions",
                name=name,
                num_dimensions=num_dimensions,
            ),
        )
    # GGUF writes the contiguous dimension first.
    shape = tuple(cursor.u64() for _ in range(num_dimensions))[::-1]
    return _Entry(name, shape, cursor.u32(), cursor.u64())


def _alignment(path: Path, metadata: Metadata) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if (
        not isinstance(alignment, int)
        or isinstance(alignment, bool)
        or not 1 <= alignment <= 1 << 20
        or alignment & (alignment - 1)
    ):
        raise corrupt(
            path,
            text("general.alignment is {alignment!r}, not a power of two", alignment=alignment),
        )
    return alignment


def _refuse_unsupported_types(path: Path, entries: list[_Entry]) -> None:
    unsupported = [entry for entry in entries if not is_supported(entry.type_number)]
    if not unsupported:
        return
    first = unsupported[0]
    counts = Counter(type_name(entry.type_number) for entry in unsupported)
    total = joined(
        text("{count} of {type}", count=count, type=name) for name, count in counts.most_common(5)
    )
    raise KtopsError(
        "gguf-unsupported-type",
        text(
            "Tensor {name} in {path} has the type {type}, which ktops has no kernels for "
            "(in this file: {total}).",
            name=first.name,
            path=path,
            type=type_name(first.type_number),
            total=total,
        ),
        text(
            "Use a Q4_K_M, Q5_K_M, Q6_K or Q8_0 version of this model; supported types: {types}",
            types=", ".join(kind.name for kind in QuantType),
        ),
    )


def _tensor_info(
    path: Path, entry: _Entry, alignment: int, data_start: int, shard: int
) -> TensorInfo:
    kind = QuantType(entry.type_number)
    count = 1
    for dimension in entry.shape:
        count *= dimension
    if not 0 < count <= MAX_ELEMENTS:
        raise corrupt(
            path,
            text("tensor {name!r} has the shape {shape}", name=entry.name, shape=list(entry.shape)),
        )
    if entry.shape[-1] % kind.block_size:
        raise corrupt(
            path,
            text(
                "the rows of tensor {name!r} have {count} weights, not a multiple of {type}'s "
                "block of {block_size}",
                name=entry.name,
                count=entry.shape[-1],
                type=kind.name,
                block_size=kind.block_size,
            ),
        )
    if entry.offset % alignment:
        raise corrupt(
            path,
            text(
                "tensor {name!r} begins at {offset}, not aligned to {alignment}",
                name=entry.name,
                offset=entry.offset,
                alignment=alignment,
            ),
        )
    return TensorInfo(
        entry.name, entry.shape, kind, shard, data_start + entry.offset, kind.nbytes(count)
    )


def _check_layout(path: Path, tensors: tuple[TensorInfo, ...], size: int) -> None:
    """No name twice, no two tensors over the same bytes, and all of them inside the file."""
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise corrupt(path, text("tensor {name!r} appears twice", name=tensor.name))
        names.add(tensor.name)
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise corrupt(
                path,
                text("tensors {one!r} and {other!r} overlap", one=before.name, other=after.name),
            )
    needed = ordered[-1].offset + ordered[-1].nbytes if ordered else 0
    if needed > size:
        raise KtopsError(
            "gguf-truncated",
            text(
                "{path} is cut short: it has {size:,} bytes and its tensor table needs "
                "{needed:,}, so {missing:,} bytes are missing.",
                path=path,
                size=size,
                needed=needed,
                missing=needed - size,
            ),
            text("The download stopped early; resume it, or start again: rm '{path}'", path=path),
        )
