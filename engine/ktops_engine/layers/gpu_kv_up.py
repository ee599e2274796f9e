"""The up-projections of the latent on a GPU, in the two forms that files have.

Keys and values are expanded for prompts; for single tokens the projections are absorbed into query
and output (arXiv:2405.04434, section 2.1.2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch

from ktops_engine.kernels.dequantize import dequantize
from ktops_engine.kernels.gemv import gemv_heads
from ktops_engine.kernels.matrix import MAX_FEW_TOKENS, GpuMatrix


class KvUp(Protocol):
    """Key and value up-projection of all heads of a layer."""

    def absorb_key(self, q: torch.Tensor) -> torch.Tensor:
        """q: [tokens, heads, nope] bf16 -> [tokens, heads, rank] bf16."""

    def absorb_value(self, latent: torch.Tensor) -> torch.Tensor:
        """latent: [tokens, heads, rank] bf16 -> [tokens, heads, v_head_dim] bf16."""

    def expand(self, first_head: int, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of some heads in bf16: keys [heads, rank, nope], values [heads, v, rank]."""


class TwoMatrixKvUp:
    """The newer form: keys [heads, rank, nope] and values [heads, v, rank], a matrix each."""

    def __init__(self, key: GpuMatrix, value: GpuMatrix) -> None:
        self._key, self._value = key, value

    def absorb_key(self, q: torch.Tensor) -> torch.Tensor:
        return _per_head(self._key, q)

    def absorb_value(self, latent: torch.Tensor) -> torch.Tensor:
        return _per_head(self._value, latent)

    def expand(self, first_head: int, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            _heads(self._key, first_head, num_heads),
            _heads(self._value, first_head, num_heads),
        )


class OneMatrixKvUp:
    """The older form: one matrix [heads * (nope + v), rank].

    Its keys lie across the direction in which queries are absorbed, so that it is unpacked for each
    use: 33 MB for R1, which stay in the cache of a large GPU until they are read.
    """

    def __init__(self, both: GpuMatrix, num_heads: int, nope: int) -> None:
        self._both = replace(both, rows=both.rows // num_heads, num_experts=num_heads)
        self._nope = nope
        self._unpacked: torch.Tensor | None = None

    def absorb_key(self, q: torch.Tensor) -> torch.Tensor:
        # Kept until `absorb_value`, which the same step calls next.
        self._unpacked = _heads(self._both, 0, self._both.num_experts)
        return torch.bmm(q.transpose(0, 1), self._unpacked[:, : self._nope]).transpose(0, 1)

    def absorb_value(self, latent: torch.Tensor) -> torch.Tensor:
        if self._unpacked is None:
            raise RuntimeError("absorb_value without absorb_key")
        value = self._unpacked[:, self._nope :].transpose(1, 2)
        self._unpacked = None
        return torch.bmm(latent.transpose(0, 1), value).transpose(0, 1)

    def expand(self, first_head: int, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        both = _heads(self._both, first_head, num_heads)
        return both[:, : self._nope].transpose(1, 2), both[:, self._nope :]


def _heads(weight: GpuMatrix, first_head: int, num_heads: int) -> torch.Tensor:
    """Some heads' matrices as [heads, rows, cols] bf16."""
    rows = dequantize(weight, first_head * weight.rows, num_heads * weight.rows)
    return rows.view(num_heads, weight.rows, weight.cols)


def _per_head(weight: GpuMatrix, x: torch.Tensor) -> torch.Tensor:
    """x: [tokens, heads, cols] -> [tokens, heads, rows], a matrix for each head."""
    if x.shape[0] <= MAX_FEW_TOKENS:
        return gemv_heads(weight, x)
    heads = _heads(weight, 0, weight.num_experts)
    return torch.bmm(x.transpose(0, 1), heads.transpose(1, 2)).transpose(0, 1)
