"""Which experts a token goes to: the router's logits, and the choice among them in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.launch import is_compiling, launch
from ktops_engine.kernels.matrix import MAX_FEW_TOKENS
from ktops_engine.model_config import ModelConfig

_NO_KEY = tl.constexpr(-0x8000000000000000)


@triton.jit(do_not_specialize=["num_tokens"])
def _logits_kernel(
    x_ptr,
    weight_ptr,
    logits_ptr,
    num_tokens,
    hidden,
    num_experts,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tokens = tl.arange(0, BLOCK_TOKENS)[:, None]
    experts = tl.program_id(0) * BLOCK_EXPERTS + tl.arange(0, BLOCK_EXPERTS)[:, None]
    sums = tl.zeros((BLOCK_TOKENS, BLOCK_EXPERTS, BLOCK), dtype=tl.float32)
    for start in range(0, hidden, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        inside = columns < hidden
        weight = tl.load(
            weight_ptr + experts * hidden + columns, inside & (experts < num_experts), other=0.0
        )
        x = tl.load(x_ptr + tokens * hidden + columns, inside & (tokens < num_tokens), other=0.0)
        sums += x.to(tl.float32)[:, None, :] * weight[None, :, :]
    logits = tl.sum(sums, axis=2)
    columns = tl.program_id(0) * BLOCK_EXPERTS + tl.arange(0, BLOCK_EXPERTS)[None, :]
    inside = (tokens < num_tokens) & (columns < num_experts)
    tl.store(logits_ptr + tokens * num_experts + columns, logits, mask=inside)


def route_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x: [tokens, hidden_size] bf16, weight: [experts, hidden_size] float32 -> [tokens, experts]
    float32, products and sums in float32; for prompts with 16 bits of each weight's mantissa."""
    num_tokens, hidden = x.shape
    if num_tokens > MAX_FEW_TOKENS:
        return _prompt_logits(x, weight)
    if not x.is_contiguous() or not weight.is_contiguous() or weight.shape[1] != hidden:
        raise ValueError(f"router of {tuple(x.shape)} by {tuple(weight.shape)}")
    # One token: a program has all of its loads under way at once. More: their rows are loaded by
    # every program, so that a program has two experts, and as many columns as registers hold.
    if num_tokens == 1:
        return _few_logits(x, weight, 1, triton.next_power_of_2(hidden), 8)
    return _few_logits(x, weight, 2, max(8192 // triton.next_power_of_2(num_tokens), 512), 8)


def _few_logits(
    x: torch.Tensor, weight: torch.Tensor, program_experts: int, block: int, num_warps: int
) -> torch.Tensor:
    """Logits of a few tokens: each program adds up `program_experts` rows, `block` columns at a
    time."""
    num_tokens, hidden = x.shape
    num_experts = weight.shape[0]
    logits = torch.empty(num_tokens, num_experts, dtype=torch.float32, device=x.device)
    launch(
        _logits_kernel, (triton.cdiv(num_experts, program_experts),),
        x, weight, logits, num_tokens, hidden, num_experts,
        BLOCK_TOKENS=triton.next_power_of_2(num_tokens),
        BLOCK_EXPERTS=program_experts,
        BLOCK=block,
        num_warps=num_warps,
    )  # fmt: skip
    return logits


def _prompt_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The matrix units take bfloat16, so a weight goes in as the sum of two, in one product."""
    if x.device.type != "cuda":
        return torch.mm(x.float(), weight.t())
    high = weight.bfloat16()
    low = (weight - high).bfloat16()
    logits = torch.mm(x, torch.cat((high, low)).t(), out_dtype=torch.float32)
    return logits[:, : len(high)] + logits[:, len(high) :]


@triton.jit
def _sortable(values):
    """float32 -> int32 in the same order; what is no number has its place too."""
    bits = values.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _keys(values, numbers):
    """Keys whose maximum is the greatest value, and of equal ones the smallest number."""
    return (_sortable(values).to(tl.int64) << 32) + (0x7FFFFFFF - numbers)


@triton.jit
def _number(key):
    return 0x7FFFFFFF - (key & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def _route_kernel(
    logits_ptr,
    bias_ptr,
    ids_ptr,
    weights_ptr,
    counts_ptr,
    num_experts,
    group_size,
    scaling,
    COUNTS: tl.constexpr,
    SIGMOID: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    KEPT_GROUPS: tl.constexpr,
    BEST_OF_GROUP: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_TOP_K: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    logits_ptr += token * num_experts
    groups = tl.arange(0, BLOCK_GROUPS)
    members = tl.arange(0, BLOCK_SIZE)
    inside = (groups < NUM_GROUPS)[:, None] & (members < group_size)[None, :]
    ids = groups[:, None] * group_size + members[None, :]
    logits = tl.load(logits_ptr + ids, mask=inside, other=float("-inf"))
    if SIGMOID:
        choice = tl.sigmoid(logits)
    else:
        top = tl.max(tl.max(logits, axis=1), axis=0)
        total = tl.sum(tl.sum(tl.exp(logits - top), axis=1), axis=0)
        choice = tl.exp(logits - top) / total
    if HAS_BIAS:
        choice += tl.load(bias_ptr + ids, mask=inside, other=0.0)
    keys = tl.where(inside, _keys(choice, ids), _NO_KEY)

    if KEPT_GROUPS < NUM_GROUPS:
        left = keys
        group_scores = tl.zeros((BLOCK_GROUPS,), dtype=tl.float32)
        for _ in tl.static_range(BEST_OF_GROUP):
            best = tl.max(left, axis=1)
            is_best = left == best[:, None]
            group_scores += tl.sum(tl.where(is_best & inside, choice, 0.0), axis=1)
            left = tl.where(is_best, _NO_KEY, left)
        group_keys = tl.where(groups < NUM_GROUPS, _keys(group_scores, groups), _NO_KEY)
        kept = groups < 0
        for _ in tl.static_range(KEPT_GROUPS):
            is_best_group = group_keys == tl.max(group_keys, axis=0)
            kept = kept | is_best_group
            group_keys = tl.where(is_best_group, _NO_KEY, group_keys)
        keys = tl.where(kept[:, None], keys, _NO_KEY)

    ranks = tl.arange(0, BLOCK_TOP_K)
    chosen = tl.zeros((BLOCK_TOP_K,), dtype=tl.int32)
    for rank in tl.static_range(TOP_K):
        best_key = tl.max(tl.max(keys, axis=1), axis=0)
        chosen = tl.where(ranks == rank, _number(best_key), chosen)
        keys = tl.where(keys == best_key, _NO_KEY, keys)

    is_chosen = ranks < TOP_K
    chosen_logits = tl.load(logits_ptr + chosen, mask=is_chosen, other=float("-inf"))
    weights = tl.sigmoid(chosen_logits) if SIGMOID else tl.exp(chosen_logits - top) / total
    if NORMALIZE:
        weights = weights / (tl.sum(weights, axis=0) + 1e-20)
    tl.store(ids_ptr + token * TOP_K + ranks, chosen, mask=is_chosen)
    tl.store(weights_ptr + token * TOP_K + ranks, weights * scaling, mask=is_chosen)
    if COUNTS:
        tl.atomic_add(counts_ptr + chosen, 1, mask=is_chosen, sem="relaxed")


def route(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    config: ModelConfig,
    *,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each token, best first, of equal ones the smaller id, and their weights.

    logits: [tokens, experts] float32; bias: [experts] float32 -> expert_ids [tokens, top_k] int32,
    expert_weights [tokens, top_k] float32. `noaux_tc` (DeepSeek-V3 report,
    arXiv:2412.19437, section 2.1.2), `group_limited_greedy` (arXiv:2405.04434, section 2.2.2) and
    `greedy`, as layers/router.py has them. `counts`: [experts] int32, to which 1 is added for each
    token that goes to an expert; also when a captured graph is replayed.
    """
    num_tokens, num_experts = logits.shape
    top_k = config.num_experts_per_tok
    if not logits.is_contiguous() or num_experts != config.n_routed_experts:
        raise ValueError(f"logits {tuple(logits.shape)} for {config.n_routed_experts} experts")
    ids = torch.empty(num_tokens, top_k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(num_tokens, top_k, dtype=torch.float32, device=logits.device)
    if counts is not None and (counts.shape != (num_experts,) or counts.dtype != torch.int32):
        raise ValueError(f"counts {tuple(counts.shape)} {counts.dtype} for {num_experts} experts")
    num_groups = 1 if config.topk_method == "greedy" else config.n_group
    group_size = num_experts // num_groups
    launch(
        _route_kernel, (num_tokens,),
        logits, logits if bias is None else bias, ids, weights,
        ids if counts is None else counts,
        num_experts, group_size, config.routed_scaling_factor,
        COUNTS=counts is not None,
        SIGMOID=config.scoring_func == "sigmoid",
        HAS_BIAS=bias is not None,
        NORMALIZE=config.norm_topk_prob,
        NUM_GROUPS=num_groups,
        KEPT_GROUPS=min(config.topk_group, num_groups),
        BEST_OF_GROUP=2 if config.topk_method == "noaux_tc" else 1,
        TOP_K=top_k,
        BLOCK_GROUPS=triton.next_power_of_2(num_groups),
        BLOCK_SIZE=triton.next_power_of_2(group_size),
        BLOCK_TOP_K=triton.next_power_of_2(top_k),
        num_warps=1,
    )  # fmt: skip
    if is_compiling():
        # Whoever reads the choice finds experts that there are.
        ids.copy_(torch.arange(top_k, dtype=torch.int32, device=ids.device))
    return ids, weights
