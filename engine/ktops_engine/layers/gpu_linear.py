"""Linear layers on a GPU, from the quantised weights.

The few tokens of a decode step go through `gemv`, prompts through products of bfloat16 with pieces
of unpacked weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.dequantize import dequantize
from ktops_engine.kernels.gemv import gemv, gemv_gate_up, gemv_stacked
from ktops_engine.kernels.matrix import MAX_FEW_TOKENS, GpuMatrix

PIECE_BYTES = 64 << 20  # of unpacked weights at a time
# Pieces of whole tiles of the products that follow, where a matrix is large.
PIECE_ROWS = 256


class GpuLinear:
    """y = x @ W^T for one matrix."""

    def __init__(self, weight: GpuMatrix) -> None:
        self._weight = weight

    @property
    def num_rows(self) -> int:
        """Values of y for each token."""
        return self._weight.rows

    def __call__(
        self,
        x: torch.Tensor,
        *,
        add_to: torch.Tensor | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
    ) -> torch.Tensor:
        """x: [tokens, cols] bf16 contiguous -> [tokens, rows].

        `add_to`: float32 [tokens, rows]; the product is added to it and it is returned.
        """
        if x.shape[0] <= MAX_FEW_TOKENS:
            return gemv(self._weight, x, add_to=add_to, out_dtype=out_dtype)
        if add_to is not None:
            for first, piece in _pieces(self._weight):
                add_to[:, first : first + len(piece)] += torch.mm(x, piece.t())
            return add_to
        y = torch.empty(x.shape[0], self._weight.rows, dtype=torch.bfloat16, device=x.device)
        for first, piece in _pieces(self._weight):
            torch.mm(x, piece.t(), out=y[:, first : first + len(piece)])
        return y.to(out_dtype)


class GpuStacked:
    """x @ first^T and x @ second^T; few tokens take one launch."""

    def __init__(self, first: GpuMatrix, second: GpuMatrix) -> None:
        self._first, self._second = first, second

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [tokens, cols] bf16 contiguous -> [tokens, rows] float32 each, rows contiguous."""
        if x.shape[0] <= MAX_FEW_TOKENS:
            return gemv_stacked(self._first, self._second, x)
        first, second = GpuLinear(self._first), GpuLinear(self._second)
        return first(x, out_dtype=torch.float32), second(x, out_dtype=torch.float32)


class GpuGateUp:
    """y = silu(x @ gate^T) * (x @ up^T)."""

    def __init__(self, gate: GpuMatrix, up: GpuMatrix) -> None:
        self._gate, self._up = gate, up

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, cols] bf16 contiguous -> [tokens, rows] bf16."""
        if x.shape[0] <= MAX_FEW_TOKENS:
            return gemv_gate_up(self._gate, self._up, x)
        gate = GpuLinear(self._gate)(x)
        return torch.nn.functional.silu(gate, inplace=True).mul_(GpuLinear(self._up)(x))


def _pieces(weight: GpuMatrix) -> Iterator[tuple[int, torch.Tensor]]:
    """The rows in bfloat16, a piece after the other in the same memory: its first row, its rows."""
    if weight.num_experts != 1:
        raise ValueError(f"{weight.num_experts} matrices where one was expected")
    if weight.type is QuantType.BF16:
        yield 0, weight.data.view(weight.rows, weight.cols)
        return
    rows = max(PIECE_ROWS, PIECE_BYTES // (2 * weight.cols) // PIECE_ROWS * PIECE_ROWS)
    device = weight.data.device
    memory = torch.empty(min(rows, weight.rows), weight.cols, dtype=torch.bfloat16, device=device)
    for first in range(0, weight.rows, rows):
        count = min(rows, weight.rows - first)
        yield first, dequantize(weight, first, count, out=memory[:count])
