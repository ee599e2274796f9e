"""Products of bfloat16 matrices with the few tokens of a decode step; see `gemv`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.dot import dot
from ktops_engine.kernels.launch import launch
from ktops_engine.kernels.matrix import GpuMatrix


@triton.jit
def _sums(
    data, x, token_mask, row_mask, cols, TOKENS: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr
):
    """[TOKENS, ROWS] float32. data: pointers [ROWS, 1]; x: pointers [TOKENS, 1]."""
    if TOKENS == 1:
        lanes = tl.zeros((ROWS, K), tl.float32)
    else:
        acc = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in range(0, cols, K):
        k = (start + tl.arange(0, K))[None, :]
        weights = tl.load(data + k, mask=row_mask & (k < cols), other=0.0)
        tokens = tl.load(x + k, mask=token_mask & (k < cols), other=0.0)
        if TOKENS == 1:
            lanes += weights.to(tl.float32) * tokens.to(tl.float32)
        else:
            acc = dot(tokens, tl.trans(weights), acc)
    if TOKENS == 1:
        acc = tl.sum(lanes, axis=1)[None, :]
    return acc


@triton.jit(do_not_specialize=["num_tokens", "rows"])
def _plain_kernel(
    data,
    up_data,
    x,
    y,
    num_tokens,
    rows,
    cols,
    token_stride,
    head_stride,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
):
    """One program: ROWS rows of one head. y: [tokens, heads, rows]."""
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = row < rows
    token = tl.arange(0, TOKENS)[:, None]
    token_mask = token < num_tokens
    at = (head * rows + row).to(tl.int64)[:, None] * cols
    x += token * token_stride + head * head_stride
    result = _sums(data + at, x, token_mask, row_mask[:, None], cols, TOKENS, ROWS, K)
    if GATED:
        up = _sums(up_data + at, x, token_mask, row_mask[:, None], cols, TOKENS, ROWS, K)
        result = result * tl.sigmoid(result) * up
    targets = y + (token * num_heads + head) * rows + row[None, :]
    mask = token_mask & row_mask[None, :]
    if ADD:
        result += tl.load(targets, mask=mask)
    tl.store(targets, result.to(y.dtype.element_ty), mask=mask)


def plain_gemv(
    weight: GpuMatrix, up: GpuMatrix | None, x: torch.Tensor, y: torch.Tensor, add: bool
) -> None:
    """x: [tokens, heads, cols] bfloat16, columns contiguous; y: [tokens, heads, rows] contiguous,
    written or added to. With `up`, y is silu(weight x) * (up x)."""
    num_tokens, heads, cols = x.shape
    one = num_tokens == 1
    rows_a_program = 4 if one else 32
    launch(
        _plain_kernel,
        (triton.cdiv(weight.rows, rows_a_program), heads),
        weight.data,
        weight.data if up is None else up.data,
        x,
        y,
        num_tokens,
        weight.rows,
        cols,
        x.stride(0),
        x.stride(1),
        TOKENS=1 if one else 16,
        ROWS=rows_a_program,
        K=min(512 if one else 128, triton.next_power_of_2(cols)),
        GATED=up is not None,
        ADD=add,
        num_warps=4,
    )
