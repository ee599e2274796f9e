"""A layer of experts with random weights, in memory as the engine would hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from ktops_engine.bench.blocks import random_blocks
from ktops_engine.bench.shapes import LayerShape
from ktops_engine.gguf import QuantType
from ktops_engine.native.load import Matrix, Native, NativeBuffer, Pool
from ktops_engine.native.structs import Layout
from ktops_engine.node_memory import NodeShare, add_shares, count_shares

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    ExpertBlocks = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def expert_blocks(shape: LayerShape, seed: int = 1) -> ExpertBlocks:
    """Gate, up and down of one expert in the file's layout, [rows, bytes of a row] each."""
    import numpy as np

    rng = np.random.default_rng(seed)
    hidden, intermediate = shape.hidden_size, shape.moe_intermediate_size
    return (
        random_blocks(shape.gate_type, intermediate, hidden, rng),
        random_blocks(shape.gate_type, intermediate, hidden, rng),
        random_blocks(shape.down_type, hidden, intermediate, rng),
    )


class ExpertLayer:
    """Packed gate, up and down of all experts. Each expert has the same weights in memory of its
    own: speed does not depend on values, and drawing gigabytes takes minutes.

    Raises KtopsError out-of-memory.
    """

    def __init__(self, native: Native, pool: Pool, shape: LayerShape, seed: int = 1) -> None:
        self.shape = shape
        self.native = native
        self._buffers: list[NativeBuffer] = []
        self._matrices: list[Matrix] = []
        hidden, intermediate = shape.hidden_size, shape.moe_intermediate_size
        gate, up, down = expert_blocks(shape, seed)
        try:
            self.gate = self._pack(pool, shape.gate_type, intermediate, hidden, gate)
            self.up = self._pack(pool, shape.gate_type, intermediate, hidden, up)
            self.down = self._pack(pool, shape.down_type, hidden, intermediate, down)
        except BaseException:
            self.free()
            raise

    def _pack(
        self, pool: Pool, type: QuantType, rows: int, cols: int, expert: npt.NDArray[np.uint8]
    ) -> Matrix:
        num_experts = self.shape.num_experts
        buffer = self.native.alloc(expert.nbytes * num_experts)
        self._buffers.append(buffer)
        matrix = Matrix(buffer.address, type, rows, cols, num_experts, Layout.PANEL16)
        pool.place(buffer, matrix)
        pool.hold(buffer)
        for index in range(num_experts):
            address = buffer.address + index * expert.nbytes
            target = Matrix(address, type, rows, cols, layout=Layout.PANEL16)
            pool.pack(target, expert.ctypes.data)
        self._matrices.append(matrix)
        return matrix

    def node_shares(self, pool: Pool) -> tuple[NodeShare, ...]:
        """What belongs on each NUMA node, and what lies there; empty when rows belong to none."""
        shares = [
            count_shares(pool, buffer, [matrix])
            for buffer, matrix in zip(self._buffers, self._matrices, strict=True)
        ]
        return tuple(map(add_shares, *shares))

    @property
    def largest_buffer(self) -> NativeBuffer:
        """The weights of the projection that takes most memory."""
        return max(self._buffers, key=lambda buffer: buffer.num_bytes)

    def free(self) -> None:
        """Return the memory."""
        for buffer in self._buffers:
            buffer.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.free()
