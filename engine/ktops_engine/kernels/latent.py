"""What enters the latent cache, and the rotation of a prompt's queries that meets it.

Rotary embedding turns interleaved pairs: (a, b) -> (a cos - b sin, a sin + b cos); its rotations
come as `cos_sin` [tokens, rope / 2, 2] float32, gathered by position once a step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.launch import launch
from ktops_engine.kernels.norm import normalized_row


@triton.jit
def _rotated_pairs(x_ptr, cos_sin_ptr, num_pairs, BLOCK: tl.constexpr):
    """One row of pairs, turned -> (firsts, seconds, number of each pair, mask), float32."""
    pairs = tl.arange(0, BLOCK)
    inside = pairs < num_pairs
    first = tl.load(x_ptr + 2 * pairs, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + 2 * pairs + 1, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_sin_ptr + 2 * pairs, mask=inside, other=0.0)
    sin = tl.load(cos_sin_ptr + 2 * pairs + 1, mask=inside, other=0.0)
    return first * cos - second * sin, first * sin + second * cos, pairs, inside


@triton.jit
def _store_latent_kernel(
    kv_ptr,
    kv_weight_ptr,
    cos_sin_ptr,
    slots_ptr,
    cache_ptr,
    query_ptr,
    query_weight_ptr,
    query_out_ptr,
    kv_stride,
    cache_stride,
    query_stride,
    rank,
    num_pairs,
    query_rank,
    eps,
    BLOCK_RANK: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) == 0:
        slot = tl.load(slots_ptr + token)
        if slot >= 0:
            entry_ptr = cache_ptr + slot * cache_stride
            latent, columns, inside = normalized_row(
                kv_ptr + token * kv_stride, kv_weight_ptr, eps, rank, BLOCK_RANK
            )
            tl.store(entry_ptr + columns, latent.to(tl.bfloat16), mask=inside)
            first, second, pairs, inside_key = _rotated_pairs(
                kv_ptr + token * kv_stride + rank,
                cos_sin_ptr + token * 2 * num_pairs,
                num_pairs,
                BLOCK_PAIRS,
            )
            key_ptr = entry_ptr + rank + 2 * pairs
            tl.store(key_ptr, first.to(tl.bfloat16), mask=inside_key)
            tl.store(key_ptr + 1, second.to(tl.bfloat16), mask=inside_key)
    else:
        query, query_columns, inside_query = normalized_row(
            query_ptr + token * query_stride, query_weight_ptr, eps, query_rank, BLOCK_QUERY
        )
        query_row_ptr = query_out_ptr + token * query_rank + query_columns
        tl.store(query_row_ptr, query.to(tl.bfloat16), mask=inside_query)


def store_latent(
    kv: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    cos_sin: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """Write each token's normalised latent and rotated key to its row of the cache.

    kv: [tokens, rank + rope] float32 or bf16; norm_weight: [rank] float32; cos_sin: [tokens,
    rope / 2, 2] float32; cache: [num_slots, rank + rope] bf16; slots: [tokens] int64, a negative
    one writes nothing.
    """
    _launch(kv, norm_weight, eps, cos_sin, cache, slots, None)


def store_latent_and_norm_query(
    kv: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    cos_sin: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    query: torch.Tensor,
    query_norm_weight: torch.Tensor,
) -> torch.Tensor:
    """`store_latent`, and in the same launch the norm of the compressed query.

    query: [tokens, q_lora_rank] float32 or bf16; query_norm_weight: [q_lora_rank] float32 ->
    [tokens, q_lora_rank] bf16.
    """
    if query.stride(1) != 1 or query_norm_weight.shape != (query.shape[1],):
        raise ValueError(f"norm of {tuple(query.shape)} by {tuple(query_norm_weight.shape)}")
    out = torch.empty(query.shape, dtype=torch.bfloat16, device=query.device)
    _launch(kv, norm_weight, eps, cos_sin, cache, slots, (query, query_norm_weight, out))
    return out


def _launch(
    kv: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    cos_sin: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    query: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
) -> None:
    num_tokens, width = kv.shape
    rank, num_pairs = norm_weight.shape[0], cos_sin.shape[1]
    if width != rank + 2 * num_pairs or cache.shape[1] != width:
        raise ValueError(f"latent of {width} for rank {rank}, {num_pairs} pairs, {cache.shape[1]}")
    if kv.stride(1) != 1 or cache.stride(1) != 1 or not cos_sin.is_contiguous():
        raise ValueError("latent, cache rows and rotations must be contiguous")
    # Without a query its program is not launched; the pointers stand in for nothing.
    query_in, query_weight, query_out = query or (kv, norm_weight, kv)
    query_rank = query_in.shape[1]
    launch(
        _store_latent_kernel, (num_tokens, 1 if query is None else 2),
        kv, norm_weight, cos_sin, slots, cache, query_in, query_weight, query_out,
        kv.stride(0), cache.stride(0), query_in.stride(0), rank, num_pairs, query_rank, eps,
        BLOCK_RANK=triton.next_power_of_2(rank),
        BLOCK_PAIRS=triton.next_power_of_2(num_pairs),
        BLOCK_QUERY=triton.next_power_of_2(query_rank),
        num_warps=4,
    )  # fmt: skip


@triton.jit
def _rotate_query_kernel(
    q_ptr,
    cos_sin_ptr,
    token_stride,
    head_stride,
    num_heads,
    num_pairs,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    pairs = tl.arange(0, BLOCK_PAIRS)[None, :]
    inside = (heads < num_heads) & (pairs < num_pairs)
    turned = q_ptr + token * token_stride + heads * head_stride + 2 * pairs
    first = tl.load(turned, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(turned + 1, mask=inside, other=0.0).to(tl.float32)
    rotation = cos_sin_ptr + token * 2 * num_pairs + 2 * pairs
    cos = tl.load(rotation, mask=pairs < num_pairs, other=0.0)
    sin = tl.load(rotation + 1, mask=pairs < num_pairs, other=0.0)
    tl.store(turned, (first * cos - second * sin).to(tl.bfloat16), mask=inside)
    tl.store(turned + 1, (first * sin + second * cos).to(tl.bfloat16), mask=inside)


def rotate_query(q_rope: torch.Tensor, cos_sin: torch.Tensor) -> None:
    """Turn every head's query by its token's rotation, in place.

    q_rope: [tokens, heads, rope] bf16, heads and tokens may lie apart; cos_sin: [tokens, rope / 2,
    2] float32.
    """
    num_tokens, num_heads, rope = q_rope.shape
    num_pairs = cos_sin.shape[1]
    if q_rope.dtype != torch.bfloat16 or q_rope.stride(2) != 1 or not cos_sin.is_contiguous():
        raise ValueError(f"queries {q_rope.dtype}, strides {q_rope.stride()}")
    if rope != 2 * num_pairs:
        raise ValueError(f"queries of {rope} for {num_pairs} pairs")
    block_heads = min(triton.next_power_of_2(num_heads), 16)
    launch(
        _rotate_query_kernel, (num_tokens, triton.cdiv(num_heads, block_heads)),
        q_rope, cos_sin, q_rope.stride(0), q_rope.stride(1), num_heads, num_pairs,
        BLOCK_HEADS=block_heads,
        BLOCK_PAIRS=triton.next_power_of_2(num_pairs),
        num_warps=4,
    )  # fmt: skip
