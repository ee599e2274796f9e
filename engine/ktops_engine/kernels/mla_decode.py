"""Attention of single new tokens in the latent space, over the paged cache.

All heads share one latent and one rotary key a token (arXiv:2405.04434, section 2.1), so a tile of
heads is a matrix product's rows and the cache is read once for all of them. The sequence is split
over programs as in Flash-Decoding (Dao et al., 2023): each leaves its part of the output,
normalised, and the logarithm of its sum of weights; a second launch puts the parts together. Which
splits have work is decided on the device by each token's length, so the launches can be captured in
a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.dot import dot
from ktops_engine.kernels.launch import launch

BLOCK_SIZE = 64
_LOG2_E = 1.4426950408889634


@triton.jit
def _blocks_per_split(length, NUM_SPLITS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    return tl.cdiv(tl.cdiv(length, BLOCK_SIZE), NUM_SPLITS)


@triton.jit
def _rotated(q_ptr, cos_sin_ptr, columns, mask):
    """Queries [heads, rope], interleaved pairs turned by their token's rotation.

    q_ptr: [heads, 1]; cos_sin_ptr: cosine and sine of each pair.
    """
    q = tl.load(q_ptr + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    partner = tl.load(q_ptr + (columns ^ 1)[None, :], mask=mask, other=0.0).to(tl.float32)
    pair = tl.broadcast_to((columns // 2 * 2)[None, :], mask.shape)
    cos = tl.load(cos_sin_ptr + pair, mask=mask, other=0.0)
    sin = tl.load(cos_sin_ptr + pair + 1, mask=mask, other=0.0)
    sin = tl.where((columns % 2 == 0)[None, :], -sin, sin)
    return (q * cos + partner * sin).to(tl.bfloat16)


@triton.jit(do_not_specialize_on_alignment=["block_tables_ptr", "lengths_ptr"])
def _split_kernel(
    q_latent_ptr,
    q_rope_ptr,
    cos_sin_ptr,
    cache_ptr,
    block_tables_ptr,
    lengths_ptr,
    parts_ptr,
    sums_ptr,
    q_latent_token_stride,
    q_latent_head_stride,
    q_rope_token_stride,
    q_rope_head_stride,
    cache_stride,
    max_blocks,
    num_heads,
    rank,
    rope,
    scale,
    NUM_SPLITS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    head_block = tl.program_id(0)
    split = tl.program_id(1)
    token = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths_ptr + token)
    per_split = _blocks_per_split(length, NUM_SPLITS, BLOCK_SIZE) * BLOCK_SIZE
    start = split * per_split
    end = tl.minimum(start + per_split, length)
    if start >= end:
        return
    heads = head_block * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    columns = tl.arange(0, BLOCK_RANK)
    rope_columns = tl.arange(0, BLOCK_ROPE)
    tokens = tl.arange(0, TILE)
    is_head = (heads < num_heads)[:, None]
    q_latent = tl.load(
        q_latent_ptr
        + token * q_latent_token_stride
        + heads[:, None] * q_latent_head_stride
        + columns[None, :],
        mask=is_head & (columns < rank)[None, :],
        other=0.0,
    )
    q_rope = _rotated(
        q_rope_ptr + token * q_rope_token_stride + heads[:, None] * q_rope_head_stride,
        cos_sin_ptr + token * rope,
        rope_columns,
        is_head & (rope_columns < rope)[None, :],
    )
    top = tl.full((BLOCK_HEADS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_HEADS,), dtype=tl.float32)
    out = tl.zeros((BLOCK_HEADS, BLOCK_RANK), dtype=tl.float32)
    for position in tl.range(start, end, TILE, num_stages=STAGES):
        # A tile lies in one block: BLOCK_SIZE is a multiple of TILE.
        block = tl.load(block_tables_ptr + token * max_blocks + position // BLOCK_SIZE)
        slots = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE + tokens
        is_token = position + tokens < end
        row_ptr = cache_ptr + slots[:, None] * cache_stride
        if EVEN:
            latent = tl.load(row_ptr + columns[None, :], mask=is_token[:, None], other=0.0)
            key = tl.load(row_ptr + rank + rope_columns[None, :], mask=is_token[:, None], other=0.0)
        else:
            latent = tl.load(
                row_ptr + columns[None, :],
                mask=is_token[:, None] & (columns < rank)[None, :],
                other=0.0,
            )
            key = tl.load(
                row_ptr + rank + rope_columns[None, :],
                mask=is_token[:, None] & (rope_columns < rope)[None, :],
                other=0.0,
            )
        scores = tl.zeros((BLOCK_HEADS, TILE), dtype=tl.float32)
        scores = dot(q_latent, tl.trans(latent), scores)
        scores = dot(q_rope, tl.trans(key), scores) * scale
        scores = tl.where(is_token[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, axis=1)
        out = dot(weights.to(tl.bfloat16), latent, out * decay[:, None])
        top = new_top
    row = (token * NUM_SPLITS + split) * num_heads + heads
    tl.store(
        parts_ptr + row[:, None] * rank + columns[None, :],
        (out / total[:, None]).to(tl.float16),
        mask=is_head & (columns < rank)[None, :],
    )
    tl.store(sums_ptr + row, top + tl.log2(total), mask=heads < num_heads)


@triton.jit(do_not_specialize_on_alignment=["lengths_ptr"])
def _combine_kernel(
    parts_ptr,
    sums_ptr,
    lengths_ptr,
    out_ptr,
    num_heads,
    rank,
    NUM_SPLITS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    head = tl.program_id(0)
    token = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(2) * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
    length = tl.load(lengths_ptr + token)
    per_split = _blocks_per_split(length, NUM_SPLITS, BLOCK_SIZE) * BLOCK_SIZE
    # A row of no tokens (a captured batch may be padded) has no parts; its output is zero.
    num_parts = tl.where(length > 0, tl.cdiv(length, tl.maximum(per_split, 1)), 0)
    first_row = token * NUM_SPLITS * num_heads + head
    top = -1e38
    total = 0.0
    out = tl.zeros((BLOCK_RANK,), dtype=tl.float32)
    for start in range(0, num_parts, TILE):
        parts = start + tl.arange(0, TILE)
        is_part = parts < num_parts
        rows = first_row + parts * num_heads
        sums = tl.load(sums_ptr + rows, mask=is_part, other=float("-inf"))
        values = tl.load(
            parts_ptr + rows[:, None] * rank + columns[None, :],
            mask=is_part[:, None] & (columns < rank)[None, :],
            other=0.0,
        ).to(tl.float32)
        new_top = tl.maximum(top, tl.max(sums, axis=0))
        weights = tl.exp2(sums - new_top)
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, axis=0)
        out = out * decay + tl.sum(values * weights[:, None], axis=0)
        top = new_top
    # The greatest weight is one, so this changes the total of no parts only: zeros, not NaN.
    out = out / tl.maximum(total, 1e-30)
    row = token * num_heads + head
    tl.store(out_ptr + row * rank + columns, out.to(tl.bfloat16), mask=columns < rank)


@dataclass(frozen=True)
class DecodeTiling:
    """How the work is cut: tokens of the cache a step, heads a program, and what Triton is told."""

    num_splits: int
    block_heads: int
    tile: int
    num_stages: int
    num_warps: int


def default_tiling(
    num_tokens: int, num_heads: int, max_blocks: int, num_processors: int
) -> DecodeTiling:
    """One program for each multiprocessor: a tile of heads and the cache tiles on their way fill
    its shared memory."""
    block_heads = min(max(triton.next_power_of_2(num_heads), 16), 64)
    num_programs = num_tokens * triton.cdiv(num_heads, block_heads)
    num_splits = max(1, min(max_blocks, num_processors // num_programs))
    return DecodeTiling(
        num_splits=num_splits,
        block_heads=block_heads,
        tile=64,
        num_stages=2,
        num_warps=8 if block_heads == 64 else 4,
    )


def mla_decode(
    q_latent: torch.Tensor,
    q_rope: torch.Tensor,
    cos_sin: torch.Tensor,
    cache: torch.Tensor,
    block_tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    *,
    tiling: DecodeTiling | None = None,
) -> torch.Tensor:
    """softmax(scale * (q_latent . latent + q_rope . key)) . latent over each token's sequence.

    q_latent: [tokens, heads, rank] bf16; q_rope: [tokens, heads, rope] bf16, turned here by
    cos_sin: [tokens, rope / 2, 2] float32; cache: [num_slots, rank + rope] bf16; block_tables:
    [tokens, max_blocks] int32, the blocks of 64 slots of each token's sequence; lengths: [tokens]
    int32, how many tokens it sees, itself included; 0 gives zeros -> [tokens, heads, rank] bf16.
    """
    num_tokens, num_heads, rank = q_latent.shape
    rope = q_rope.shape[2]
    max_blocks = block_tables.shape[1]
    if cache.shape[1] != rank + rope or q_rope.shape[:2] != q_latent.shape[:2]:
        raise ValueError(f"queries of {rank} and {rope} for cache rows of {cache.shape[1]}")
    if not block_tables.is_contiguous() or {q_latent.stride(2), q_rope.stride(2)} != {1}:
        raise ValueError("block tables, and queries in their last dimension, must be contiguous")
    if cos_sin.shape != (num_tokens, rope // 2, 2) or not cos_sin.is_contiguous():
        raise ValueError(f"rotations {tuple(cos_sin.shape)} for {num_tokens} tokens of {rope}")
    if tiling is None:
        tiling = default_tiling(num_tokens, num_heads, max_blocks, num_processors(cache.device))
    splits = tiling.num_splits
    # Two bytes, because for short contexts parts are most of the traffic; means of normalised
    # latents are far from float16's limits.
    parts = torch.empty(
        num_tokens, splits, num_heads, rank, dtype=torch.float16, device=cache.device
    )
    sums = torch.empty(num_tokens, splits, num_heads, dtype=torch.float32, device=cache.device)
    out = torch.empty(num_tokens, num_heads, rank, dtype=torch.bfloat16, device=cache.device)
    block_rank = max(triton.next_power_of_2(rank), 16)
    block_rope = max(triton.next_power_of_2(rope), 16)
    launch(
        _split_kernel, (triton.cdiv(num_heads, tiling.block_heads), splits, num_tokens),
        q_latent, q_rope, cos_sin, cache, block_tables, lengths, parts, sums,
        q_latent.stride(0), q_latent.stride(1), q_rope.stride(0), q_rope.stride(1),
        cache.stride(0), max_blocks, num_heads, rank, rope, scale * _LOG2_E,
        NUM_SPLITS=splits,
        BLOCK_HEADS=tiling.block_heads,
        BLOCK_RANK=block_rank,
        BLOCK_ROPE=block_rope,
        BLOCK_SIZE=BLOCK_SIZE,
        TILE=tiling.tile,
        EVEN=block_rank == rank and block_rope == rope,
        STAGES=tiling.num_stages,
        num_warps=tiling.num_warps,
    )  # fmt: skip
    # A quarter of a row a program: many programs, each with all of its loads under way at once.
    combined = max(block_rank // 4, 16)
    launch(
        _combine_kernel, (num_heads, num_tokens, triton.cdiv(rank, combined)),
        parts, sums, lengths, out, num_heads, rank,
        NUM_SPLITS=splits,
        BLOCK_RANK=combined,
        BLOCK_SIZE=BLOCK_SIZE,
        TILE=min(64, triton.next_power_of_2(splits)),
        num_warps=4,
    )  # fmt: skip
    return out


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few where kernels are interpreted."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
