"""Experts in GPU memory against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu_matrices import QUANTISED, random_matrix

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.grouped_gemm import (
    ExpertMatrices,
    cut_tiles,
    grouped_experts,
    tile_pairs_for,
)
from ktops_engine.kernels.stretches import reorder
from ktops_engine.moe import expert_pairs
from ktops_engine.moe.expert_pairs import group_pairs

# Weights and h are rounded to bfloat16 (cut off, where kernels are interpreted).
TOLERANCE = 2e-2
GUARD = 7.0


def random_experts(
    device: str,
    gate_type: QuantType,
    down_type: QuantType,
    hidden: int,
    intermediate: int,
    num: int,
) -> tuple[ExpertMatrices, list[torch.Tensor]]:
    seed = int(torch.randint(1 << 30, ()))
    gate, gates = random_matrix(gate_type, intermediate, hidden, num, device, seed)
    up, ups = random_matrix(gate_type, intermediate, hidden, num, device, seed + 1)
    down, downs = random_matrix(down_type, hidden, intermediate, num, device, seed + 2)
    return ExpertMatrices(gate, up, down), [gates.double(), ups.double(), downs.double()]


def reference(
    x: torch.Tensor, weights: list[torch.Tensor], ids: np.ndarray, scales: np.ndarray
) -> torch.Tensor:
    """ids name rows of `weights`, negative ones nothing."""
    gates, ups, downs = weights
    y = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for token, k in zip(*np.nonzero(ids >= 0), strict=True):
        expert, row = int(ids[token, k]), x[token].double()
        h = torch.nn.functional.silu(gates[expert] @ row) * (ups[expert] @ row)
        y[token] += float(scales[token, k]) * (downs[expert] @ h)
    return y


def run(
    x: torch.Tensor, experts: ExpertMatrices, ids: np.ndarray, scales: np.ndarray, y: torch.Tensor
) -> None:
    counts = np.bincount(ids[ids >= 0], minlength=experts.gate.num_experts).tolist()
    group = [(expert, expert) for expert in range(len(counts))]
    pairs, batches = group_pairs(ids, scales, counts, [group], x.device)
    x = reorder(x, experts.gate.type)
    for tiles in batches[0]:
        grouped_experts(x, experts, pairs, tiles, y)


def check(
    device: str,
    gate_type: QuantType,
    down_type: QuantType,
    *,
    hidden: int = 256,
    intermediate: int = 256,
    num_tokens: int = 9,
    num_experts: int = 3,
) -> None:
    experts, weights = random_experts(
        device, gate_type, down_type, hidden, intermediate, num_experts
    )
    x = torch.randn(num_tokens, hidden).to(device, torch.bfloat16)
    ids = (
        np.random.default_rng()
        .random((num_tokens, num_experts))
        .argsort(axis=1)[:, :2]
        .astype(np.int32)
    )
    ids[num_tokens // 2, 0] = -1
    scales = np.random.default_rng().random(ids.shape, dtype=np.float32)
    # Whatever was in y stays, and rows around it are not touched.
    whole = torch.full((num_tokens + 2, hidden), GUARD, device=device)
    run(x, experts, ids, scales, whole[1:-1])
    expected = reference(x, weights, ids, scales)
    error = (whole[1:-1].double() - GUARD - expected).norm() / expected.norm()
    assert error < TOLERANCE
    assert (whole[0] == GUARD).all()
    assert (whole[-1] == GUARD).all()


@pytest.mark.parametrize("type", QUANTISED, ids=lambda type: type.name)
def test_experts_of_every_type_agree_with_float64(device: str, type: QuantType) -> None:
    size = 256 if type.block_size == 256 else 128
    check(device, type, type, hidden=size, intermediate=size, num_experts=2)


def test_an_odd_number_of_blocks_ends_with_a_chunk_of_one(device: str) -> None:
    check(
        device,
        QuantType.Q4_K,
        QuantType.Q6_K,
        hidden=256,
        intermediate=768,
        num_tokens=4,
        num_experts=2,
    )


def test_experts_with_many_tokens_take_several_tiles_and_launches(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_pairs, "MAX_BATCH_PAIRS", 128)
    check(device, QuantType.Q8_0, QuantType.Q8_0, hidden=128, intermediate=128, num_tokens=200)


def test_the_sum_is_the_same_every_time(device: str) -> None:
    experts, _ = random_experts(device, QuantType.Q8_0, QuantType.Q8_0, 128, 128, 3)
    x = torch.randn(20, 128).to(device, torch.bfloat16)
    ids = np.tile(np.array([[2, 0, 1]], dtype=np.int32), (20, 1))
    scales = np.random.default_rng().random(ids.shape, dtype=np.float32)
    results = [torch.zeros(20, 128, device=device) for _ in range(2)]
    for y in results:
        run(x, experts, ids, scales, y)
    assert torch.equal(*results)


def test_nobodys_experts_are_not_launched(device: str) -> None:
    experts, _ = random_experts(device, QuantType.Q8_0, QuantType.Q8_0, 128, 128, 3)
    x = torch.randn(2, 128).to(device, torch.bfloat16)
    y = torch.full((2, 128), GUARD, device=device)
    run(x, experts, np.full((2, 2), -1, dtype=np.int32), np.ones((2, 2), dtype=np.float32), y)
    assert (y == GUARD).all()


def test_tiles_cover_every_pair_once() -> None:
    tiles = cut_tiles([4, 0, 2], [130, 3, 64], 10, 64)
    assert [slot for slot, _, _ in tiles] == [4, 4, 4, 0, 2]
    covered = [pair for _, first, end in tiles for pair in range(first, end)]
    assert covered == list(range(10, 10 + 197))
    assert max(end - first for _, first, end in tiles) <= 64


def test_a_tile_is_no_larger_than_its_experts_need() -> None:
    assert [tile_pairs_for(n) for n in (0, 1, 17, 64, 100, 5000)] == [16, 16, 32, 64, 128, 128]


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [7, 60, 300])
def test_experts_of_r1s_shapes_agree_with_float64(device: str, num_tokens: int) -> None:
    check(
        device,
        QuantType.Q4_K,
        QuantType.Q6_K,
        hidden=7168,
        intermediate=2048,
        num_tokens=num_tokens,
    )
