"""Root-mean-square normalisation."""

from __future__ import annotations

import math

import torch


class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019, arXiv:1910.07467).

    Computed as x * (weight * sqrt(n)) / hypot(|x|, sqrt(n * eps)): four operations, where torch's
    own takes more than twice as long on the single rows of a decode.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps
        size = weight.shape[0]
        self._scaled = weight * math.sqrt(size)
        self._floor = torch.tensor(math.sqrt(size * eps))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, size] float32 -> the same shape."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * (self._scaled / torch.hypot(length, self._floor))
