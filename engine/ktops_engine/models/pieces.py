"""Tensors cut into the pieces that are loaded one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ktops_engine.gguf import TensorInfo
from ktops_engine.native.load import Matrix

PIECE_BYTES = 32 << 20  # how often progress is told, and Ctrl-C heard
PANEL_ROWS = 16  # a packed matrix may be cut between panels of so many rows


@dataclass(frozen=True)
class Piece:
    """Whole rows of a tensor: `num_bytes` from byte `first_byte` of it on.

    `target` is these rows alone, where they belong in memory.
    """

    tensor: TensorInfo
    target: Matrix
    first_byte: int
    num_bytes: int


def cut(tensor: TensorInfo, matrix: Matrix) -> Iterator[Piece]:
    """The pieces of a tensor that belongs in `matrix`, of about PIECE_BYTES.

    Where experts end within a panel, only whole experts are a piece, however large.
    """
    num_rows = matrix.num_experts * matrix.rows
    row_bytes = tensor.nbytes // num_rows
    whole_experts = matrix.num_experts > 1 and matrix.rows % PANEL_ROWS != 0
    unit = matrix.rows if whole_experts else PANEL_ROWS
    step = max(PIECE_BYTES // row_bytes // unit, 1) * unit
    for first_row in range(0, num_rows, step):
        count = min(step, num_rows - first_row)
        experts = count // matrix.rows if whole_experts else 1
        target = Matrix(
            data_ptr=matrix.data_ptr + first_row * row_bytes,
            type=matrix.type,
            rows=count // experts,
            cols=matrix.cols,
            num_experts=experts,
            layout=matrix.layout,
        )
        yield Piece(tensor, target, first_row * row_bytes, count * row_bytes)
