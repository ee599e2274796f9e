"""Experts on the CPU: matrices stay in RAM in blocks of the file, the native library computes."""

from __future__ import annotations

from time import perf_counter

import torch

from ktops_engine.gguf import QuantType
from ktops_engine.native.load import Matrix, Pool
from ktops_engine.stats import ExpertTraffic
from ktops_engine.tensors import float32_ptr


class CpuExperts:
    """y = sum over chosen experts of weight * down(silu(gate(x)) * up(x)).

    gate, up: [experts, intermediate, hidden_size]; down: [experts, hidden_size, intermediate].
    `traffic` counts what has been read of them: every chosen expert once a call.
    """

    def __init__(self, pool: Pool, gate: Matrix, up: Matrix, down: Matrix) -> None:
        self._pool = pool
        self.gate, self.up, self.down = gate, up, down
        self._expert_bytes = sum(map(_matrix_bytes, (gate, up, down)))
        self.traffic = ExpertTraffic()

    def __call__(
        self, x: torch.Tensor, expert_ids: torch.Tensor, expert_weights: torch.Tensor
    ) -> torch.Tensor:
        """x: [tokens, hidden_size] float32; expert_ids: [tokens, top_k] int32; expert_weights:
        [tokens, top_k] float32 -> [tokens, hidden_size] float32."""
        num_tokens, top_k = expert_ids.shape
        x_ptr = float32_ptr(x, self.gate.cols)
        weights_ptr = float32_ptr(expert_weights, top_k)
        if expert_ids.dtype != torch.int32 or not expert_ids.is_contiguous():
            raise ValueError("expert_ids must be contiguous int32")
        y = torch.empty_like(x)
        started = perf_counter()
        self._pool.moe_forward(
            self.gate, self.up, self.down,
            x_ptr, expert_ids.data_ptr(), weights_ptr, y.data_ptr(), num_tokens, top_k,
        )  # fmt: skip
        self.count(expert_ids.flatten().tolist(), perf_counter() - started)
        return y

    def count(self, expert_ids: list[int], seconds: float) -> None:
        """Add a call that chose `expert_ids`, negative ones meaning none, to the traffic."""
        num_chosen = len({chosen for chosen in expert_ids if chosen >= 0})
        self.traffic.add(num_chosen * self._expert_bytes, seconds)


class FeedForward:
    """A dense layer's or the shared experts' feed-forward: one expert that every token takes."""

    def __init__(self, pool: Pool, gate: Matrix, up: Matrix, down: Matrix) -> None:
        self._pool = pool
        self.gate, self.up, self.down = gate, up, down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, hidden_size] float32 -> the same shape."""
        x_ptr = float32_ptr(x, self.gate.cols)
        y = torch.empty_like(x)
        self._pool.moe_forward(
            self.gate, self.up, self.down, x_ptr, 0, 0, y.data_ptr(), x.shape[0], 1
        )
        return y


def _matrix_bytes(matrix: Matrix) -> int:
    """Bytes of one expert's matrix."""
    return matrix.rows * QuantType(matrix.type).nbytes(matrix.cols)
