"""Root-mean-square normalisation of rows, to the bfloat16 that the matrices take."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.launch import launch


@triton.jit
def normalized_row(x_ptr, weight_ptr, eps, n, BLOCK: tl.constexpr):
    """One row of float32 or bfloat16 -> (normalised float32 [BLOCK], its columns, their mask)."""
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    x = tl.load(x_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    mean_square = tl.sum(x * x, axis=0) / n
    return x * (weight / tl.sqrt(mean_square + eps)), columns, inside


@triton.jit
def _rms_norm_kernel(x_ptr, weight_ptr, y_ptr, x_stride, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    y, columns, inside = normalized_row(x_ptr + row * x_stride, weight_ptr, eps, n, BLOCK)
    tl.store(y_ptr + row * n + columns, y.to(tl.bfloat16), mask=inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019, arXiv:1910.07467).

    x: [tokens, n] float32 or bf16, rows contiguous in themselves; weight: [n] float32 ->
    [tokens, n] bf16.
    """
    num_tokens, n = x.shape
    if x.stride(1) != 1 or weight.shape != (n,):
        raise ValueError(f"rms_norm of {tuple(x.shape)} by {tuple(weight.shape)}")
    y = torch.empty(num_tokens, n, dtype=torch.bfloat16, device=x.device)
    block = triton.next_power_of_2(n)
    num_warps = min(max(block // 1024, 1), 16)
    launch(
        _rms_norm_kernel, (num_tokens,),
        x, weight, y, x.stride(0), n, eps, BLOCK=block, num_warps=num_warps,
    )  # fmt: skip
    return y
