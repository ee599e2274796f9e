"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch.nn import functional


class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019, arXiv:1910.07467)."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self._weight = weight
        self._shape = (weight.shape[0],)
        self._eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, size] float32 -> the same shape."""
        return functional.rms_norm(x, self._shape, self._weight, self._eps)
