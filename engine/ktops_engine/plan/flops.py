"""Floating-point operations of tokens, by the shape of a model."""

from __future__ import annotations

from ktops_engine.model_config import ModelConfig


def token_flops(model: ModelConfig) -> tuple[float, float]:
    """Floating-point operations of one token: outside the routed experts, and inside them."""
    hidden, heads, rank = model.hidden_size, model.num_attention_heads, model.kv_lora_rank
    queries = heads * model.qk_head_dim
    lora = model.q_lora_rank
    attention = hidden * queries if lora is None else lora * (hidden + queries)
    attention += hidden * (rank + model.qk_rope_head_dim)
    attention += rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
    attention += heads * model.v_head_dim * hidden
    dense = model.first_k_dense_replace
    expert_layers = model.num_hidden_layers - dense
    expert = 3 * hidden * model.moe_intermediate_size
    always = model.num_hidden_layers * attention + dense * 3 * hidden * model.intermediate_size
    always += expert_layers * (model.n_shared_experts * expert + hidden * model.n_routed_experts)
    return 2.0 * always, 2.0 * expert_layers * model.num_experts_per_tok * expert


def score_flops(model: ModelConfig, num_tokens: int) -> float:
    """Operations of a prompt of `num_tokens` that grow with its square: every token's queries
    against the keys before it, and their values."""
    heads = model.num_attention_heads * (model.qk_head_dim + model.v_head_dim)
    return float(model.num_hidden_layers * heads) * num_tokens**2
