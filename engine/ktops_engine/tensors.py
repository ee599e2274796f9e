"""Where torch tensors become addresses."""

from __future__ import annotations

import torch


def float32_ptr(x: torch.Tensor, cols: int) -> int:
    """Address of x: [tokens, cols] float32, contiguous, cpu: the check before a pointer crosses.

    Raises ValueError when x is anything else.
    """
    if x.dtype != torch.float32 or x.dim() != 2 or x.shape[1] != cols or not x.is_contiguous():
        raise ValueError(
            f"expected contiguous [tokens, {cols}] float32, got {tuple(x.shape)} {x.dtype}"
        )
    return x.data_ptr()
