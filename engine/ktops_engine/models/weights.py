"""A model's weights in RAM: read once from the shards into native memory, then only looked at.

Quantised matrices are packed for the kernels while they are read. To measure without files, the
same memory is filled with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from ktops_engine.errors import KtopsError
from ktops_engine.gguf import GgufModel, QuantType, TensorInfo
from ktops_engine.models.pieces import Piece, cut
from ktops_engine.models.random_rows import RandomRows
from ktops_engine.models.reading import read_pieces
from ktops_engine.native.load import Matrix, Native, NativeBuffer, Pool
from ktops_engine.native.structs import Layout
from ktops_engine.node_memory import NodeShare, count_shares
from ktops_engine.text import text

ALIGNMENT = 64  # a cache line, and the widest vector


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

    def place(self, pool: Pool, on_bytes: Callable[[int], None]) -> int:
        """Give every page its NUMA node, where the rows of `pool` have nodes; to be called before
        anything is read. Returns why the kernel refuses to be told nodes, an errno, or 0."""
        if not pool.nodes:
            return 0
        refusal = 0
        for name in self._offsets:
            refusal = pool.place(self._buffer, self.matrix(name)) or refusal
            on_bytes(self._gguf.tensors[name].nbytes)
        return pool.hold(self._buffer) or refusal

    def node_shares(self, pool: Pool) -> tuple[NodeShare, ...]:
        """What belongs on each node, and what lies there; empty when rows belong to no node."""
        return count_shares(pool, self._buffer, map(self.matrix, self._offsets))

    def read(self, pool: Pool, on_bytes: Callable[[int], None]) -> None:
        """Fill the buffer from the shards with the threads of `pool`; `on_bytes` is told the size
        of each piece.

        Raises KtopsError when a file cannot be read to its end.
        """
        read_pieces(self._gguf, self._pieces(), self._native, pool, on_bytes)

    def fill(self, pool: Pool, random: RandomRows, on_bytes: Callable[[int], None]) -> None:
        """Fill the buffer with random weights of the same types and about the size of trained ones;
        no file is read."""
        for piece in self._pieces():
            random.fill(pool, piece)
            on_bytes(piece.num_bytes)

    def _pieces(self) -> Iterator[Piece]:
        for name in self._offsets:
            yield from cut(self._gguf.tensors[name], self.matrix(name))

    def matrix(self, name: str) -> Matrix:
        """[cols], [rows, cols] or [experts, rows, cols], in the file's type."""
        info = self._info(name)
        *experts, rows, cols = (1, *info.shape) if len(info.shape) == 1 else info.shape
        return Matrix(
            data_ptr=self._buffer.address + self._offsets[name],
            type=int(info.type),
            rows=rows,
            cols=cols,
            num_experts=experts[0] if experts else 1,
            layout=Layout.PANEL16 if info.type.block_size > 1 else Layout.GGUF,
        )

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor, in the layout of its matrix."""
        start = self._offsets[name]
        return self._buffer.view[start : start + self._info(name).nbytes]

    def float32(self, name: str) -> torch.Tensor:
        """A tensor in float32: a view of the buffer where the file has F32, else dequantised."""
        info = self._info(name)
        if info.type is QuantType.F32:
            return torch.frombuffer(self.data(name), dtype=torch.float32).view(info.shape)
        out = torch.empty(info.shape)
        matrix = self.matrix(name)
        num_rows = matrix.num_experts * matrix.rows
        self._native.dequantize_rows(matrix, 0, num_rows, out.data_ptr())
        return out

    def float32_rows(
        self, name: str, rows: list[int], out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Some rows of a matrix, dequantised: [len(rows), cols] float32, in `out` if given."""
        matrix = self.matrix(name)
        if out is None:
            out = torch.empty(len(rows), matrix.cols)
        elif out.shape != (len(rows), matrix.cols) or not out.is_contiguous():
            raise ValueError(f"rows [{len(rows)}, {matrix.cols}] for {tuple(out.shape)}")
        out_ptr, out_bytes = out.data_ptr(), matrix.cols * out.element_size()
        for i, row in enumerate(rows):
            self._native.dequantize_rows(matrix, row, 1, out_ptr + i * out_bytes)
        return out

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self._gguf.tensors[name].nbytes for name in self._offsets)

    @property
    def span(self) -> tuple[int, int]:
        """Address and bytes of the memory that holds all tensors."""
        return self._buffer.address, self._buffer.num_bytes

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
