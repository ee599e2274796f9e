"""Quantised linear layers, computed by the native library from the bytes of the file."""

from __future__ import annotations

import torch

from ktops_engine.native.load import Matrix, Pool
from ktops_engine.tensors import float32_ptr


class Linear:
    """y = x @ W^T for one matrix in GGUF blocks."""

    def __init__(self, pool: Pool, weight: Matrix) -> None:
        self._pool = pool
        self._weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, cols] float32 -> [tokens, rows] float32."""
        x_ptr = float32_ptr(x, self._weight.cols)
        y = torch.empty(x.shape[0], self._weight.rows)
        self._pool.matmul(self._weight, x_ptr, y.data_ptr(), x.shape[0])
        return y
