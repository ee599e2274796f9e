"""Weights from the shards into packed memory: what the page cache holds from there, the rest
straight from the disk with several reads in flight, beside the packing of what has arrived."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from ktops_engine.gguf import GgufModel
from ktops_engine.models.pieces import PIECE_BYTES, Piece
from ktops_engine.models.shard_file import PAGE_BYTES, ShardFile
from ktops_engine.native.load import Native, NativeBuffer, Pool

READS_IN_FLIGHT = 6  # more was not faster, fewer were slower


def read_pieces(
    gguf: GgufModel,
    pieces: Iterable[Piece],
    native: Native,
    pool: Pool,
    on_bytes: Callable[[int], None],
) -> None:
    """Loads `pieces` in order with the threads of `pool`; `on_bytes` is told each one's size.

    Raises KtopsError as `GgufModel.reading`, and out-of-memory. Whatever is raised, by `on_bytes`
    as well, no read is under way any more and all that was taken for reading is given back.
    """
    with _Reader(gguf, native, pool) as reader:
        waiting: deque[tuple[Piece, _Ready]] = deque()
        for piece in pieces:
            if len(waiting) == READS_IN_FLIGHT:
                on_bytes(reader.finish(*waiting.popleft()))
            waiting.append((piece, reader.start(piece)))
        while waiting:
            on_bytes(reader.finish(*waiting.popleft()))


_Ready = Future[int] | None  # the address of a piece's bytes; None: in the page cache


class _Reader:
    """Reads ahead into slots of memory that are used in turn: no more than READS_IN_FLIGHT pieces
    may be started and not finished."""

    def __init__(self, gguf: GgufModel, native: Native, pool: Pool) -> None:
        self._gguf = gguf
        self._native = native
        self._pool = pool
        self._shards: dict[Path, ShardFile] = {}
        self._slots: list[NativeBuffer | None] = [None] * READS_IN_FLIGHT
        self._turn = 0
        self._threads = ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="shard-reader")

    def start(self, piece: Piece) -> _Ready:
        """Begin to read a piece, unless the page cache has it."""
        offset = piece.tensor.offset + piece.first_byte
        with self._gguf.reading(piece.tensor.name):
            shard = self._shard(piece)
            if shard.is_cached(offset, piece.num_bytes):
                return None
        slot = self._next_slot(piece.num_bytes + 2 * PAGE_BYTES)

        def read() -> int:
            return slot.address + shard.read(slot.view, offset, piece.num_bytes)

        return self._threads.submit(read)

    def finish(self, piece: Piece, ready: _Ready) -> int:
        """Put a piece where it belongs; returns its size."""
        with self._gguf.reading(piece.tensor.name):
            if ready is None:
                offset = piece.tensor.offset + piece.first_byte
                self._pool.read(piece.target, self._shard(piece).file, offset)
            else:
                self._pool.pack(piece.target, ready.result())
        return piece.num_bytes

    def _shard(self, piece: Piece) -> ShardFile:
        path = self._gguf.paths[piece.tensor.shard]
        if path not in self._shards:
            self._shards[path] = ShardFile(path)
        return self._shards[path]

    def _next_slot(self, num_bytes: int) -> NativeBuffer:
        turn = self._turn = (self._turn + 1) % READS_IN_FLIGHT
        slot = self._slots[turn]
        if slot is None or slot.num_bytes < num_bytes:
            if slot is not None:
                slot.free()
            slot = self._native.alloc(max(num_bytes, PIECE_BYTES + 2 * PAGE_BYTES))
            self._slots[turn] = slot
        return slot

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        for shard in self._shards.values():
            shard.close()
        for slot in self._slots:
            if slot is not None:
                slot.free()
