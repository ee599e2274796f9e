"""Attention of R1's shape: single tokens over the cache, and prompts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from gpu.timing import Call, Case, num_copies
from gpu.weights import activations
from ktops_engine.kernels.mla_decode import BLOCK_SIZE, mla_decode
from ktops_engine.kernels.mla_prefill import mla_prefill

HEADS, RANK, ROPE, NOPE, VALUE = 128, 512, 64, 128, 128
PREFILL_HEADS = 32  # as many as are expanded at a time
SCALE = (NOPE + ROPE) ** -0.5
CACHE_BYTES_A_TOKEN = 2 * (RANK + ROPE)


def cases(all_tokens: list[int]) -> Iterator[Case]:
    """Decode at 1K, 8K and 32K of context, prompts of 4,096."""
    for length in (1024, 8192, 32768):
        for tokens in all_tokens:
            size = tokens * length * CACHE_BYTES_A_TOKEN
            flops = 2 * tokens * HEADS * length * (2 * RANK + ROPE)
            name = f"decode over {length}"
            prepare = partial(_decode, tokens, length)
            yield Case("attention", name, tokens, prepare, size, flops)
    for new, context in ((4096, 4096), (4096, 8192)):
        seen = new * (context - new) + new * (new + 1) // 2
        flops = 2 * PREFILL_HEADS * seen * (NOPE + ROPE + VALUE)
        name = f"prompt over {context}, {PREFILL_HEADS} heads"
        yield Case("attention", name, new, partial(_prefill, new, context), flops=flops)


def _decode(tokens: int, length: int, wanted: int) -> list[Call]:
    blocks = length // BLOCK_SIZE
    lengths = torch.full((tokens,), length, dtype=torch.int32, device="cuda")
    tables = torch.randperm(tokens * blocks, device="cuda").int().view(tokens, blocks)
    q_latent, q_rope = activations(tokens, HEADS, RANK), activations(tokens, HEADS, ROPE)
    cos_sin = torch.randn(tokens, ROPE // 2, 2, device="cuda")

    def call() -> Call:
        cache = activations(tokens * length, RANK + ROPE)
        return partial(mla_decode, q_latent, q_rope, cos_sin, cache, tables, lengths, SCALE)

    return [call() for _ in range(num_copies(tokens * length * CACHE_BYTES_A_TOKEN, wanted))]


def _prefill(new: int, context: int, wanted: int) -> list[Call]:
    del wanted  # every call reads more than a cache holds
    q = activations(new, PREFILL_HEADS, NOPE + ROPE)
    k_nope, k_rope = activations(PREFILL_HEADS, context, NOPE), activations(context, ROPE)
    value = activations(PREFILL_HEADS, context, VALUE)
    out = torch.empty(new, PREFILL_HEADS, VALUE, device="cuda", dtype=torch.bfloat16)
    return [partial(mla_prefill, q, k_nope, k_rope, value, SCALE, out)]
