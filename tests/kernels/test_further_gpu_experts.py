"""Experts on a further GPU: what the first one sends and gets back, and what a prompt does."""

from __future__ import annotations

import pytest
import torch
from gpu_matrices import random_matrix

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.between_gpus import send
from ktops_engine.kernels.grouped_gemm import ExpertMatrices
from ktops_engine.kernels.routing import Routing
from ktops_engine.moe.further_gpu import FurtherGpu
from ktops_engine.moe.further_gpu_experts import FurtherGpuExperts
from ktops_engine.moe.gpu_experts import ResidentExperts
from ktops_engine.moe.staging import Staging

EXPERTS, TOP_K = 4, 2
BOUND = 1e-2  # h is rounded to bfloat16


class Case:
    """The experts of a layer on `other`, and their weights in float64 on the CPU."""

    def __init__(self, device: str, other: str, size: int, *, is_direct: bool | None) -> None:
        self.size = size
        first, where = torch.device(device, 0), torch.device(other)
        seed = int(torch.randint(1 << 30, ()))
        made = [
            random_matrix(QuantType.Q8_0, size, size, EXPERTS, other, seed + i) for i in (0, 1, 2)
        ]
        self.gate, self.up, self.down = (weights.cpu().double() for _, weights in made)
        self.device = first
        staging = Staging(first, 0, 0, 0)
        self.gpu = FurtherGpu(first, where, size, size, TOP_K, is_direct=is_direct)
        experts = ResidentExperts(staging, ExpertMatrices(*(matrix for matrix, _ in made)))
        self.experts = FurtherGpuExperts(self.gpu, staging, experts)

    def inputs(self, num_tokens: int) -> tuple[torch.Tensor, Routing]:
        """x, and tokens with their experts; a pair here and there is nobody's."""
        ids = torch.randint(-1, EXPERTS, (num_tokens, TOP_K), dtype=torch.int32)
        x = torch.randn(num_tokens, self.size).to(self.device)
        made = (
            torch.randn(num_tokens, self.size).bfloat16(),
            ids,
            torch.rand(num_tokens, TOP_K),
        )
        return x, Routing(*(tensor.to(self.device) for tensor in made))

    def expected(self, x, routing) -> torch.Tensor:
        y = x.cpu().double()
        h, ids, weights = routing
        for token, row in enumerate(h.cpu().double()):
            for expert, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
                if expert >= 0:
                    gated = torch.nn.functional.silu(self.gate[expert] @ row)
                    y[token] += weight * (self.down[expert] @ (gated * (self.up[expert] @ row)))
        return y


@pytest.fixture(params=[None, False], ids=["direct", "through RAM"])
def case(request, device, other_device) -> Case:
    return Case(device, other_device, 64, is_direct=request.param)


@pytest.fixture
def wide_case(device, other_device) -> Case:
    """Of a size that the kernels for prompts take."""
    return Case(device, other_device, 128, is_direct=None)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.cpu().double() - theirs).norm() / theirs.norm())


def test_tokens_get_what_their_experts_give_beside_what_is_done_meanwhile(case):
    for num_tokens in (2, 1):  # the second request finds what the first one left
        x, routing = case.inputs(num_tokens)
        expected = case.expected(x, routing) + 1
        case.experts.decode(x, routing, lambda x=x: x.add_(1), is_captured=False)
        assert error(x, expected) < BOUND


def test_a_prompt_gets_what_its_experts_give(wide_case):
    x, routing = wide_case.inputs(9)
    expected = wide_case.expected(x, routing) + 1
    wide_case.experts.prefill(x, routing, lambda: x.add_(1))
    assert error(x, expected) < BOUND


def test_a_prompt_without_any_expert_changes_nothing(wide_case):
    x, routing = wide_case.inputs(2)
    before = x.clone()
    nobody = torch.full_like(routing.expert_ids, -1)
    wide_case.experts.prefill(x, routing._replace(expert_ids=nobody), lambda: None)
    assert torch.equal(x, before)


def test_more_tokens_than_there_is_room_for_are_refused(case):
    x, routing = case.inputs(17)
    with pytest.raises(ValueError, match="17 tokens"):
        case.experts.decode(x, routing, lambda: None, is_captured=False)


@pytest.mark.parametrize(("hidden", "top_k"), [(64, 8), (1100, 6)])
def test_what_is_sent_arrives_and_nothing_beside_it(device, hidden, top_k):
    sent = Routing(
        torch.randn(3, hidden).bfloat16().to(device),
        torch.randint(-1, 256, (3, top_k), dtype=torch.int32).to(device),
        torch.rand(3, top_k).to(device),
    )
    whole = [torch.full((5, part.shape[1]), 7, dtype=part.dtype, device=device) for part in sent]
    send(sent, Routing(*(part[1:4] for part in whole)))
    for ours, part in zip(sent, whole, strict=True):
        assert torch.equal(part[1:4], ours)
        assert (part[0] == 7).all()
        assert (part[4] == 7).all()


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 4, 16])
def test_a_graph_of_the_first_gpu_has_the_other_ones_part(case, num_tokens):
    x, routing = case.inputs(num_tokens)
    case.experts.decode(x, routing, lambda: x.add_(1), is_captured=False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(2):
            case.experts.decode(x, routing, lambda: x.add_(1), is_captured=True)
    for _ in range(3):
        new = case.inputs(num_tokens)
        for held, value in zip((x, *routing), (new[0], *new[1]), strict=True):
            held.copy_(value)
        once = case.expected(*new)
        expected = once + (once - new[0].cpu().double()) + 2
        graph.replay()
        torch.cuda.synchronize()
        assert error(x, expected) < BOUND
