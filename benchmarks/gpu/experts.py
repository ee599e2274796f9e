"""R1's routed experts in GPU memory: prompts by groups, and the experts of single tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from gpu.timing import Call, Case
from gpu.weights import activations, experts, matrix_bytes
from ktops_engine.gguf import QuantType
from ktops_engine.kernels.expert_gemv import resident_experts
from ktops_engine.kernels.grouped_gemm import grouped_experts
from ktops_engine.kernels.routing import Routing
from ktops_engine.kernels.stretches import reorder
from ktops_engine.moe.expert_pairs import group_pairs

HIDDEN, INTERMEDIATE, TOP_K = 7168, 2048, 8
NUM_RESIDENT = 256
NUM_GROUPED = 8
EXPERT_BYTES = 2 * matrix_bytes(QuantType.Q4_K, INTERMEDIATE, HIDDEN) + matrix_bytes(
    QuantType.Q6_K, HIDDEN, INTERMEDIATE
)
FLOPS = 2 * 3 * HIDDEN * INTERMEDIATE  # a token and expert


def cases(all_tokens: list[int]) -> Iterator[Case]:
    """Groups of 16, 64 and 256 tokens an expert; 8 of 256 experts a token."""
    for tokens in (16, 64, 256):
        name = f"{NUM_GROUPED} experts, {tokens} tokens each"
        size, flops = NUM_GROUPED * EXPERT_BYTES, NUM_GROUPED * tokens * FLOPS
        yield Case("experts", name, tokens, partial(_grouped, tokens), size, flops)
    for tokens in all_tokens:
        size, flops = tokens * TOP_K * EXPERT_BYTES, tokens * TOP_K * FLOPS
        name = f"{TOP_K} of {NUM_RESIDENT} in GPU memory"
        yield Case("experts", name, tokens, partial(_resident, tokens), size, flops)


def _grouped(tokens: int, wanted: int) -> list[Call]:
    del wanted  # 200 MB a call
    ids = np.tile(np.arange(NUM_GROUPED, dtype=np.int32), (tokens, 1))
    weights = np.full(ids.shape, 1 / TOP_K, dtype=np.float32)
    slots = [(expert, expert) for expert in range(NUM_GROUPED)]
    counts = [tokens] * NUM_GROUPED
    pairs, (batches,) = group_pairs(ids, weights, counts, [slots], torch.device("cuda"))
    matrices = experts(NUM_GROUPED, HIDDEN, INTERMEDIATE)
    x = reorder(activations(tokens, HIDDEN), QuantType.Q4_K)
    y = torch.zeros(tokens, HIDDEN, device="cuda")

    def call() -> None:
        for tiles in batches:
            grouped_experts(x, matrices, pairs, tiles, y)

    return [call]


def _resident(tokens: int, wanted: int) -> list[Call]:
    count = NUM_RESIDENT if wanted else TOP_K
    matrices = experts(count, HIDDEN, INTERMEDIATE)
    slots = torch.arange(count, dtype=torch.int32, device="cuda")
    x, y = activations(tokens, HIDDEN), torch.zeros(tokens, HIDDEN, device="cuda")
    weights = torch.full((tokens, TOP_K), 1 / TOP_K, device="cuda")

    def call() -> Call:
        # No expert twice as long as there are enough: each pair reads its own bytes.
        order = torch.stack([torch.randperm(count, device="cuda") for _ in range(tokens)])
        if tokens * TOP_K <= count:
            order = torch.randperm(count, device="cuda")[: tokens * TOP_K].view(tokens, TOP_K)
        ids = order[:, :TOP_K].int().contiguous()
        return partial(resident_experts, Routing(x, ids, weights), matrices, slots, y)

    return [call() for _ in range(8)]
