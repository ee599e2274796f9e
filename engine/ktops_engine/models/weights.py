"""A model's weights in RAM: read once from the shards into native memory, then only looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel, QuantType, TensorInfo
from ktops_engine.native.load import Matrix, Native, NativeBuffer
from ktops_engine.text import text
from ktops_engine.types import LoadProgress

ALIGNMENT = 64  # a cache line, and the widest vector
NUM_READERS = 4


class Weights:
    """The tensors of one GGUF in one buffer, until `free` gives the memory back."""

    def __init__(self, native: Native, gguf: GgufModel, names: Iterable[str]) -> None:
        self._native = native
        self._gguf = gguf
        self._offsets: dict[str, int] = {}
        end = 0
        for name in names:
            self._offsets[name] = end
            end += -(-gguf.tensors[name].nbytes // ALIGNMENT) * ALIGNMENT
        self._buffer: NativeBuffer = native.alloc(max(end, ALIGNMENT))

    def __contains__(self, name: str) -> bool:
        return name in self._offsets

    def read(self, on_progress: Callable[[LoadProgress], None]) -> None:
        """Fill the buffer from the shards, several reads at a time.

        Raises KtopsError when a file cannot be read to its end.
        """
        total = sum(self._gguf.tensors[name].nbytes for name in self._offsets)
        done, lock = 0, threading.Lock()

        def count(num_bytes: int) -> None:
            nonlocal done
            with lock:
                done += num_bytes
                on_progress(LoadProgress("read", done, total))

        def read_one(name: str) -> None:
            start = self._offsets[name]
            view = self._buffer.view[start : start + self._gguf.tensors[name].nbytes]
            self._gguf.read(name, view, on_bytes=count)

        with ThreadPoolExecutor(NUM_READERS) as readers:
            jobs = [readers.submit(read_one, name) for name in self._offsets]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                readers.shutdown(wait=False, cancel_futures=True)
                raise

    def matrix(self, name: str) -> Matrix:
        """[rows, cols] or [experts, rows, cols], quantised as in the file."""
        info = self._info(name)
        *experts, rows, cols = info.shape
        return Matrix(
            data_ptr=self._buffer.address + self._offsets[name],
            type=int(info.type),
            rows=rows,
            cols=cols,
            num_experts=experts[0] if experts else 1,
        )

    def float32(self, name: str) -> torch.Tensor:
        """A tensor in float32: a view of the buffer where the file has F32, else dequantised."""
        info = self._info(name)
        start = self._offsets[name]
        if info.type is QuantType.F32:
            data = self._buffer.view[start : start + info.nbytes]
            return torch.frombuffer(data, dtype=torch.float32).view(info.shape)
        out = torch.empty(info.shape)
        self._native.dequantize(
            int(info.type), self._buffer.address + start, out.data_ptr(), out.numel()
        )
        return out

    def float32_rows(self, name: str, rows: list[int]) -> torch.Tensor:
        """Some rows of a matrix, dequantised: [len(rows), cols] float32."""
        info = self._info(name)
        cols = info.shape[-1]
        row_bytes = info.type.nbytes(cols)
        base = self._buffer.address + self._offsets[name]
        out = torch.empty(len(rows), cols)
        out_ptr, out_bytes = out.data_ptr(), cols * out.element_size()
        for i, row in enumerate(rows):
            self._native.dequantize(
                int(info.type), base + row * row_bytes, out_ptr + i * out_bytes, cols
            )
        return out

    def free(self) -> None:
        self._buffer.free()

    def _info(self, name: str) -> TensorInfo:
        if name not in self._offsets:
            raise KtopsError(
                "gguf-missing-tensor",
                text(
                    "this GGUF has no tensor {name}, which a model of its architecture needs",
                    name=name,
                ),
                text("download the model again from its publisher"),
            )
        return self._gguf.tensors[name]
