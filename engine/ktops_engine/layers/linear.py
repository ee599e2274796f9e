"""Linear layers, computed by the native library from the blocks of the file."""

from __future__ import annotations

import torch

from ktops_engine.native.load import Matrix, Pool
from ktops_engine.tensors import float32_ptr


class Linear:
    """y = x @ W^T for one matrix."""

    def __init__(self, pool: Pool, weight: Matrix) -> None:
        self._pool = pool
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, cols] float32 -> [tokens, rows] float32."""
        x_ptr = float32_ptr(x, self.weight.cols)
        y = torch.empty(x.shape[0], self.weight.rows)
        self._pool.matmul(self.weight, x_ptr, y.data_ptr(), x.shape[0])
        return y


class HeadLinear:
    """y[h] = x[h] @ W[h]^T for one matrix a head."""

    def __init__(self, pool: Pool, weight: Matrix) -> None:
        self._pool = pool
        self.weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [heads, tokens, cols] float32 -> [heads, tokens, rows] float32."""
        weight = self.weight
        heads, num_tokens, _ = x.shape
        if heads != weight.num_experts:
            raise ValueError(f"expected {weight.num_experts} heads, got {heads}")
        x_ptr = float32_ptr(x.view(heads * num_tokens, -1), weight.cols)
        y = torch.empty(heads, num_tokens, weight.rows)
        self._pool.matmul(weight, x_ptr, y.data_ptr(), num_tokens)
        return y
