"""The router's choice against float64, on the three methods of choosing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_reference import relative_error

from ktops_engine.kernels.matrix import MAX_FEW_TOKENS
from ktops_engine.kernels.router import route, route_logits
from ktops_engine.model_config import ModelConfig

_BASE = ModelConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=64, moe_intermediate_size=64,
    num_hidden_layers=2, num_attention_heads=2, n_shared_experts=1, n_routed_experts=256,
    num_experts_per_tok=8, first_k_dense_replace=1, n_group=8, topk_group=4,
    topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True,
    routed_scaling_factor=2.5, q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=16,
    qk_rope_head_dim=8, v_head_dim=16, rope_theta=1e4, rope_scaling=None, rms_norm_eps=1e-6,
    max_position_embeddings=1000, bos_token_id=None, eos_token_ids=(1,),
)  # fmt: skip
V3 = _BASE
V2 = dataclasses.replace(
    _BASE, n_routed_experts=160, num_experts_per_tok=6, topk_group=3, scoring_func="softmax",
    topk_method="group_limited_greedy", norm_topk_prob=False, routed_scaling_factor=16.0,
)  # fmt: skip
V2_LITE = dataclasses.replace(
    V2, n_routed_experts=64, topk_method="greedy", n_group=1, topk_group=1,
    routed_scaling_factor=1.0,
)  # fmt: skip
SMALL = dataclasses.replace(V3, n_routed_experts=12, n_group=3, topk_group=2, num_experts_per_tok=5)
MODELS = pytest.mark.parametrize(
    "config", [V3, V2, V2_LITE, SMALL], ids=["V3", "V2", "V2-Lite", "small"]
)


def _expected(
    logits: torch.Tensor, bias: torch.Tensor | None, config: ModelConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """A stable sort instead of top-k: of equal scores the smaller id comes first."""
    logits = logits.double().cpu()
    scores = logits.sigmoid() if config.scoring_func == "sigmoid" else logits.softmax(-1)
    choice = scores if bias is None else scores + bias.double().cpu()
    if config.topk_method != "greedy":
        groups = choice.view(choice.shape[0], config.n_group, -1)
        best = 2 if config.topk_method == "noaux_tc" else 1
        group_scores = groups.sort(-1, descending=True).values[..., :best].sum(-1)
        order = group_scores.sort(dim=-1, descending=True, stable=True).indices
        groups = groups.clone()
        groups.scatter_(
            1, order[:, config.topk_group :, None].expand(-1, -1, groups.shape[2]), float("-inf")
        )
        choice = groups.flatten(1)
    ids = choice.sort(dim=-1, descending=True, stable=True).indices[:, : config.num_experts_per_tok]
    weights = scores.gather(1, ids)
    if config.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids.int(), weights * config.routed_scaling_factor


def _separate_logits(num_tokens: int, config: ModelConfig, seed: int) -> torch.Tensor:
    """Scores no two of which are so near that float32 could mistake them."""
    torch.manual_seed(seed)
    steps = torch.stack([torch.randperm(config.n_routed_experts) for _ in range(num_tokens)])
    return (steps + torch.rand(steps.shape) * 0.5) * (6 / config.n_routed_experts) - 3


@MODELS
def test_experts_and_weights_are_those_of_float64(device: str, config: ModelConfig) -> None:
    logits = _separate_logits(20, config, seed=1)
    bias = torch.randn(config.n_routed_experts) * 0.1 if config.topk_method == "noaux_tc" else None

    ids, weights = route(logits.to(device), None if bias is None else bias.to(device), config)

    expected_ids, expected_weights = _expected(logits, bias, config)
    assert torch.equal(ids.cpu(), expected_ids)
    assert relative_error(weights, expected_weights) < 1e-5


@MODELS
def test_of_equal_scores_the_smaller_id_wins(device: str, config: ModelConfig) -> None:
    ids, _ = route(torch.zeros(1, config.n_routed_experts, device=device), None, config)

    assert ids[0].tolist() == list(range(config.num_experts_per_tok))


@MODELS
def test_logits_that_are_no_numbers_still_name_distinct_experts(
    device: str, config: ModelConfig
) -> None:
    logits = torch.full((1, config.n_routed_experts), float("nan"), device=device)
    logits[0, 3] = 0

    ids, _ = route(logits, None, config)

    assert len(set(ids[0].tolist())) == config.num_experts_per_tok
    assert 0 <= int(ids.min()) <= int(ids.max()) < config.n_routed_experts


@MODELS
def test_choices_are_counted_as_often_as_they_are_made(device: str, config: ModelConfig) -> None:
    counts = torch.zeros(config.n_routed_experts, dtype=torch.int32, device=device)
    chosen = []
    for seed in range(3):
        logits = _separate_logits(2 + 3 * seed, config, seed).to(device)
        chosen.append(route(logits, None, config, counts=counts)[0].flatten().cpu())
        route(logits, None, config)  # not counted

    expected = torch.bincount(torch.cat(chosen), minlength=config.n_routed_experts)
    assert torch.equal(counts.cpu(), expected.int())


def test_counts_of_another_size_or_type_are_refused(device: str) -> None:
    logits = torch.zeros(1, 256, device=device)
    for counts in (torch.zeros(255, dtype=torch.int32), torch.zeros(256, dtype=torch.int64)):
        with pytest.raises(ValueError, match="256 experts"):
            route(logits, None, V3, counts=counts.to(device))


@pytest.mark.gpu
def test_replays_of_a_graph_count(device: str) -> None:
    counts = torch.zeros(256, dtype=torch.int32, device=device)
    logits = _separate_logits(4, V3, seed=3).to(device)
    ids, _ = route(logits, None, V3, counts=counts)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        route(logits, None, V3, counts=counts)
    for _ in range(6):
        graph.replay()
    expected = 7 * torch.bincount(ids.flatten(), minlength=256)
    assert torch.equal(counts, expected.int())


def test_logits_for_another_number_of_experts_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="256 experts"):
        route(torch.zeros(1, 255, device=device), None, V3)


@pytest.mark.parametrize(
    ("num_tokens", "hidden", "num_experts"), [(1, 2048, 7), (3, 100, 5), (16, 300, 4), (17, 64, 6)]
)
def test_logits_have_the_precision_of_float32(
    device: str, num_tokens: int, hidden: int, num_experts: int
) -> None:
    x = torch.randn(num_tokens, hidden, device=device).bfloat16()
    weight = torch.randn(num_experts, hidden, device=device)

    logits = route_logits(x, weight)

    bound = 1e-6 if num_tokens <= MAX_FEW_TOKENS else 1e-5
    assert relative_error(logits, x.double() @ weight.double().t()) < bound
