"""A few tokens through resident experts, against float64."""

from __future__ import annotations

import pytest
import torch
from gpu_matrices import random_matrix

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.expert_gemv import resident_experts
from ktops_engine.kernels.grouped_gemm import ExpertMatrices
from ktops_engine.kernels.routing import Routing

GUARD = 7.0
# Weights and sums are float32; h is rounded to bfloat16 (cut off, where kernels are interpreted).
TOLERANCE = 1e-2


def check(
    device: str,
    gate_type: QuantType,
    down_type: QuantType,
    *,
    num_tokens: int = 2,
    hidden: int = 256,
    intermediate: int = 256,
) -> None:
    seed = int(torch.randint(1 << 30, ()))
    num_slots = 2
    gate, gates = random_matrix(gate_type, intermediate, hidden, num_slots, device, seed)
    up, ups = random_matrix(gate_type, intermediate, hidden, num_slots, device, seed + 1)
    down, downs = random_matrix(down_type, hidden, intermediate, num_slots, device, seed + 2)
    slots = torch.tensor([-1, 1, -1, 0], dtype=torch.int32, device=device)
    ids = torch.tensor([[3, 0, 1], [2, -1, 3]], dtype=torch.int32, device=device)
    ids = ids.repeat(-(-num_tokens // 2), 1)[:num_tokens].contiguous()
    weights = torch.rand(ids.shape).to(device)
    x = torch.randn(num_tokens, hidden).to(device, torch.bfloat16)
    whole = torch.full((num_tokens + 2, hidden), GUARD, device=device)
    resident_experts(Routing(x, ids, weights), ExpertMatrices(gate, up, down), slots, whole[1:-1])
    expected = torch.zeros(num_tokens, hidden, dtype=torch.float64, device=device)
    for token in range(num_tokens):
        for k in range(3):
            expert = int(ids[token, k])
            slot = int(slots[expert]) if expert >= 0 else -1
            if slot >= 0:
                row = x[token].double()
                g, u = gates[slot].double() @ row, ups[slot].double() @ row
                h = torch.nn.functional.silu(g) * u
                expected[token] += weights[token, k].double() * (downs[slot].double() @ h)
    error = (whole[1:-1].double() - GUARD - expected).norm() / expected.norm()
    assert error < TOLERANCE
    assert (whole[0] == GUARD).all()
    assert (whole[-1] == GUARD).all()


@pytest.mark.parametrize(
    ("gate_type", "down_type", "hidden", "intermediate"),
    [
        (QuantType.Q4_K, QuantType.Q8_0, 256, 64),
        (QuantType.Q5_0, QuantType.Q6_K, 64, 256),
        (QuantType.Q4_0, QuantType.Q4_0, 64, 64),
    ],
    ids=lambda given: getattr(given, "name", str(given)),
)
def test_experts_agree_with_float64(
    device: str, gate_type: QuantType, down_type: QuantType, hidden: int, intermediate: int
) -> None:
    num_tokens = 1 if 256 in (hidden, intermediate) else 2
    check(
        device,
        gate_type,
        down_type,
        num_tokens=num_tokens,
        hidden=hidden,
        intermediate=intermediate,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 16])
def test_experts_of_r1s_shapes_agree_with_float64(device: str, num_tokens: int) -> None:
    check(
        device,
        QuantType.Q4_K,
        QuantType.Q6_K,
        num_tokens=num_tokens,
        hidden=7168,
        intermediate=2048,
    )


@pytest.mark.gpu
def test_a_captured_graph_follows_the_ids_and_the_table(device: str) -> None:
    size = 256
    matrices = [random_matrix(QuantType.Q8_0, size, size, 2, device, seed)[0] for seed in (1, 2, 3)]
    experts = ExpertMatrices(*matrices)
    x = torch.randn(2, size).to(device, torch.bfloat16)
    ids = torch.zeros(2, 2, dtype=torch.int32, device=device)
    slots = torch.tensor([0, -1, 1], dtype=torch.int32, device=device)
    weights = torch.rand(2, 2, device=device)
    y = torch.zeros(2, size, device=device)
    resident_experts(Routing(x, ids, weights), experts, slots, y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        resident_experts(Routing(x, ids, weights), experts, slots, y)
    for chosen in ([[0, 1], [2, 0]], [[1, 1], [1, 2]], [[2, 0], [-1, 1]]):
        ids.copy_(torch.tensor(chosen, dtype=torch.int32))
        y.zero_()
        graph.replay()
        expected = torch.zeros_like(y)
        resident_experts(Routing(x, ids, weights), experts, slots, expected)
        assert torch.equal(y, expected)
