"""Causal attention of a prompt's new tokens over their whole context, head by head.

Keys are two pieces, as latent attention makes them: one a head, expanded from the latent, and the
rotary key that all heads share, read from the cache's own rows. Softmax runs along the tiles of the
context (Flash-Attention, Dao et al., 2022, arXiv:2205.14135): scores never leave the registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.dot import dot
from ktops_engine.kernels.launch import launch

_LOG2_E = 1.4426950408889634
# Query rows and context rows of a tile; three tiles on their way fit an H100's shared memory.
_BLOCK_M, _BLOCK_N = 128, 64
_NUM_STAGES = 3
_NUM_WARPS = 8


@triton.jit
def _load(ptr, rows, columns, stride, num_rows, num_columns, MASKED: tl.constexpr):
    """A tile [rows, columns] of a matrix; outside of it zeros, where it may reach outside."""
    pointers = ptr + rows[:, None] * stride + columns[None, :]
    if MASKED:
        inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        tile = tl.load(pointers, mask=inside, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def _attend_tiles(
    out,
    top,
    total,
    q_nope,
    q_rope,
    positions,
    k_nope_ptr,
    k_rope_ptr,
    value_ptr,
    k_rope_stride,
    first,
    last,
    num_context,
    scale,
    nope: tl.constexpr,
    rope: tl.constexpr,
    v_dim: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_NOPE: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The context from `first` to `last` added to a tile's running softmax. MASKED: the tile may
    reach beyond what a row sees, or beyond the context."""
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_N)
        k_nope = _load(
            k_nope_ptr, rows, tl.arange(0, BLOCK_NOPE), nope, num_context, nope,
            MASKED or nope != BLOCK_NOPE,
        )  # fmt: skip
        k_rope = _load(
            k_rope_ptr, rows, tl.arange(0, BLOCK_ROPE), k_rope_stride, num_context, rope,
            MASKED or rope != BLOCK_ROPE,
        )  # fmt: skip
        scores = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        scores = dot(q_nope, tl.trans(k_nope), scores)
        scores = dot(q_rope, tl.trans(k_rope), scores)
        if MASKED:
            seen = rows[None, :] <= positions[:, None]
            scores = tl.where(seen, scores * scale, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, axis=1))
            weights = tl.exp2(scores - new_top[:, None])
        else:
            new_top = tl.maximum(top, tl.max(scores, axis=1) * scale)
            weights = tl.exp2(scores * scale - new_top[:, None])
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, axis=1)
        value = _load(
            value_ptr, rows, tl.arange(0, BLOCK_V), v_dim, num_context, v_dim,
            MASKED or v_dim != BLOCK_V,
        )  # fmt: skip
        out = dot(weights.to(tl.bfloat16), value, out * decay[:, None])
        top = new_top
    return out, top, total


@triton.jit(do_not_specialize=["num_new", "num_context"])
def _prefill_kernel(
    q_ptr,
    k_nope_ptr,
    k_rope_ptr,
    value_ptr,
    out_ptr,
    q_token_stride,
    q_head_stride,
    k_rope_stride,
    out_token_stride,
    num_new,
    num_context,
    scale,
    nope: tl.constexpr,
    rope: tl.constexpr,
    v_dim: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_NOPE: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    # The last rows see most: they start first.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    q_row_ptr = q_ptr + head * q_head_stride
    q_rows = rows.to(tl.int64)
    q_nope = _load(q_row_ptr, q_rows, tl.arange(0, BLOCK_NOPE), q_token_stride, num_new, nope, True)
    q_rope = _load(
        q_row_ptr + nope, q_rows, tl.arange(0, BLOCK_ROPE), q_token_stride, num_new, rope, True
    )
    k_nope_ptr += head * num_context * nope
    value_ptr += head * num_context * v_dim
    start = num_context - num_new
    # A row beyond the new tokens sees what the last one sees, so that its sums stay numbers.
    positions = start + tl.minimum(rows, num_new - 1)
    top = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    num_whole = (start + first_row + 1) // BLOCK_N * BLOCK_N
    end = tl.minimum(start + first_row + BLOCK_M, num_context)
    out, top, total = _attend_tiles(
        out, top, total, q_nope, q_rope, positions, k_nope_ptr, k_rope_ptr, value_ptr,
        k_rope_stride, 0, num_whole, num_context, scale, nope, rope, v_dim,
        BLOCK_M, BLOCK_N, BLOCK_NOPE, BLOCK_ROPE, BLOCK_V, False, STAGES,
    )  # fmt: skip
    out, top, total = _attend_tiles(
        out, top, total, q_nope, q_rope, positions, k_nope_ptr, k_rope_ptr, value_ptr,
        k_rope_stride, num_whole, end, num_context, scale, nope, rope, v_dim,
        BLOCK_M, BLOCK_N, BLOCK_NOPE, BLOCK_ROPE, BLOCK_V, True, STAGES,
    )  # fmt: skip
    v_columns = tl.arange(0, BLOCK_V)
    tl.store(
        out_ptr + q_rows[:, None] * out_token_stride + (head * v_dim + v_columns)[None, :],
        (out / total[:, None]).to(tl.bfloat16),
        mask=(rows < num_new)[:, None] & (v_columns < v_dim)[None, :],
    )


def mla_prefill(
    q: torch.Tensor,
    k_nope: torch.Tensor,
    k_rope: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    out: torch.Tensor,
) -> None:
    """softmax(scale * q . key) . value, each new token seeing the context up to itself.

    q: [new, heads, nope + rope] bf16, rotated; k_nope: [heads, context, nope] bf16; k_rope:
    [context, rope] bf16, rows may lie apart; value: [heads, context, v] bf16; out: [new, heads, v]
    bf16, written. The new tokens are the context's last ones.
    """
    num_new, num_heads, width = q.shape
    num_context, nope, v_dim = k_nope.shape[1], k_nope.shape[2], value.shape[2]
    rope = width - nope
    if k_rope.shape != (num_context, rope) or out.shape != (num_new, num_heads, v_dim):
        raise ValueError(f"rotary keys {tuple(k_rope.shape)}, output {tuple(out.shape)}")
    if not k_nope.is_contiguous() or not value.is_contiguous() or out.stride(1) != v_dim:
        raise ValueError("keys, values and the heads of the output must be contiguous")
    launch(
        _prefill_kernel, (triton.cdiv(num_new, _BLOCK_M), num_heads),
        q, k_nope, k_rope, value, out,
        q.stride(0), q.stride(1), k_rope.stride(0), out.stride(0), num_new, num_context,
        scale * _LOG2_E, nope, rope, v_dim,
        BLOCK_M=_BLOCK_M,
        BLOCK_N=_BLOCK_N,
        BLOCK_NOPE=max(triton.next_power_of_2(nope), 16),
        BLOCK_ROPE=max(triton.next_power_of_2(rope), 16),
        BLOCK_V=max(triton.next_power_of_2(v_dim), 16),
        STAGES=_NUM_STAGES,
        num_warps=_NUM_WARPS,
    )  # fmt: skip
