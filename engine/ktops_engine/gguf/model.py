"""A checked GGUF model: the headers of all its shards as one, and reads of single tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from ktops_engine.errors import KtopsError
from ktops_engine.gguf.header import Header, read_header
from ktops_engine.gguf.shards import ShardName, find_shards
from ktops_engine.gguf.types import TensorInfo
from ktops_engine.gguf.values import Metadata, corrupt, unreadable
from ktops_engine.text import Text, text

READ_CHUNK_BYTES = 16 << 20
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
# What must agree wherever more than one shard carries it.
_IDENTITY_KEYS = ("general.architecture", "general.name", "general.size_label")


@dataclass(frozen=True)
class GgufModel:
    """The checked headers of a model. Nothing but headers has been read.

    `metadata` is the first shard's; `tensors` keeps the files' order; `total_bytes` counts tensor
    data without padding.
    """

    paths: tuple[Path, ...]
    metadata: Metadata = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    total_bytes: int
    architecture: str
    name: str | None

    def read(
        self,
        name: str,
        out: memoryview | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> memoryview:
        """The raw blocks of one tensor, in `out` if given (writable, contiguous, exact size).

        `on_bytes` is told how many bytes arrived after each chunk. Thread-safe. Raises KtopsError
        gguf-truncated when the file has become shorter, gguf-unreadable when the system refuses,
        KeyError for an unknown name, ValueError for a buffer that does not fit.
        """
        info = self.tensors[name]
        target = memoryview(bytearray(info.nbytes)) if out is None else out.cast("B")
        if target.nbytes != info.nbytes or target.readonly:
            raise ValueError(f"{name} needs a writable buffer of {info.nbytes} bytes")
        with self.opened(name) as (file, offset):
            _fill(file, offset, target, on_bytes)
        return target

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[int, int]]:
        """A descriptor of the shard that holds a tensor, and the tensor's offset in it.

        Errors in the block become KtopsError as in `reading`.
        """
        info = self.tensors[name]
        with self.reading(name):
            file = os.open(self.paths[info.shard], os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield file, info.offset
            finally:
                os.close(file)

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turns what reading a tensor may raise in the block into KtopsError: EOFError into
        gguf-truncated, OSError into gguf-unreadable."""
        info = self.tensors[name]
        path = self.paths[info.shard]
        try:
            yield
        except OSError as error:
            raise unreadable(path, error) from error
        except EOFError as error:
            raise _truncated(path, info) from error


def open_gguf(path: Path) -> GgufModel:
    """Open the model at `path`: a file, any shard, or a folder holding exactly one model.

    Reads and checks every shard's header. Raises KtopsError with the codes of `find_shards` and
    `read_header`, and gguf-mismatched-shards when the files do not belong together.
    """
    paths = find_shards(path)
    headers = [read_header(shard_path, index) for index, shard_path in enumerate(paths)]
    _check_split(headers)
    tensors = _merge_tensors(headers)
    metadata = headers[0].metadata
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise corrupt(paths[0], text("its metadata has no general.architecture"))
    name = metadata.get("general.name")
    return GgufModel(
        paths=paths,
        metadata=metadata,
        tensors=MappingProxyType(tensors),
        total_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        architecture=architecture,
        name=name if isinstance(name, str) and name else None,
    )


def _fill(
    file: int, offset: int, target: memoryview, on_bytes: Callable[[int], None] | None
) -> None:
    done = 0
    while done < target.nbytes:
        count = os.preadv(file, [target[done : done + READ_CHUNK_BYTES]], offset + done)
        if count == 0:
            raise EOFError
        done += count
        if on_bytes is not None:
            on_bytes(count)


def _truncated(path: Path, info: TensorInfo) -> KtopsError:
    try:
        missing = info.offset + info.nbytes - path.stat().st_size
    except OSError as error:
        return unreadable(path, error)
    return KtopsError(
        "gguf-truncated",
        text(
            "{path} ended {missing:,} bytes too early in tensor {tensor}: the file became "
            "shorter after it was opened.",
            path=path,
            missing=missing,
            tensor=info.name,
        ),
        text("Download it again: rm '{path}'", path=path),
    )


def _merge_tensors(headers: Sequence[Header]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in tensors:
                first = headers[tensors[tensor.name].shard].path
                raise _mismatched(
                    header.path,
                    text("tensor {name} is also in {file}", name=tensor.name, file=first.name),
                    header.path.parent,
                )
            tensors[tensor.name] = tensor
    if not tensors:
        raise corrupt(headers[0].path, text("it holds no tensors (a vocabulary-only file?)"))
    return tensors


def _check_split(headers: Sequence[Header]) -> None:
    """Check file names, `split.*` keys and identity keys of all shards against each other."""
    declared = {header.path: _split_values(header) for header in headers}
    if len(headers) == 1:
        _check_single(headers[0], declared[headers[0].path])
        return
    num_tensors = sum(len(header.tensors) for header in headers)
    for index, header in enumerate(headers):
        number, count, total = declared[header.path]
        folder = header.path.parent
        if count is None:
            raise _mismatched(header.path, text("it has no split.count, so it is no shard"), folder)
        if count != len(headers):
            raise _mismatched(
                header.path,
                text(
                    "it belongs to a set of {count}, its name says {named}",
                    count=count,
                    named=len(headers),
                ),
                folder,
            )
        if number != index:
            raise _mismatched(
                header.path,
                text(
                    "inside it is shard {number} (counted from 0), its name says {named}",
                    number=number,
                    named=index,
                ),
                folder,
            )
        if total is not None and total != num_tensors:
            raise _mismatched(
                header.path,
                text(
                    "it belongs to a model of {total} tensors, these files have {num_tensors}",
                    total=total,
                    num_tensors=num_tensors,
                ),
                folder,
            )
        for key in _IDENTITY_KEYS:
            expected, found = headers[0].metadata.get(key), header.metadata.get(key)
            if isinstance(found, str) and isinstance(expected, str) and found != expected:
                raise _mismatched(
                    header.path,
                    text(
                        "its {key} is {found!r}, the first shard's is {expected!r}",
                        key=key,
                        found=found,
                        expected=expected,
                    ),
                    folder,
                )


def _check_single(header: Header, declared: tuple[int | None, int | None, int | None]) -> None:
    number, count, total = declared
    if count is not None and count > 1:
        ending = ShardName("", 1, count).sibling((number or 0) + 1)
        raise KtopsError(
            "gguf-missing-shards",
            text(
                "{path} is shard {number} of {count}, but its name does not say so, so the other"
                " shards cannot be found.",
                path=header.path,
                number=(number or 0) + 1,
                count=count,
            ),
            text("Restore the published names, which end in {ending}", ending=ending),
        )
    if total is not None and total != len(header.tensors):
        raise _mismatched(
            header.path,
            text(
                "it belongs to a model of {total} tensors and has {count}",
                total=total,
                count=len(header.tensors),
            ),
            header.path.parent,
        )


def _split_values(header: Header) -> tuple[int | None, int | None, int | None]:
    values: list[int | None] = []
    for key in _SPLIT_KEYS:
        value = header.metadata.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise corrupt(
                header.path, text("{key} is {value!r}, not a number", key=key, value=value)
            )
        values.append(value)
    return values[0], values[1], values[2]


def _mismatched(path: Path, why: Text, folder: Path) -> KtopsError:
    return KtopsError(
        "gguf-mismatched-shards",
        text("{path} does not belong with the other shards: {why}.", path=path, why=why),
        text("Download all shards of one model into one folder: ls -l '{folder}'", folder=folder),
    )
