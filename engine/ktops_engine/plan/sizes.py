"""Bytes that a model takes besides its weights: caches, float32 copies, buffers."""

from __future__ import annotations

from ktops_engine.model_config import ModelConfig
from ktops_engine.plan.model_bytes import ModelFacts

BLOCK_SIZE = 64  # tokens a cache block holds
FLOAT32_BYTES = 4
BFLOAT16_BYTES = 2
# What the process needs besides weights and cache: interpreter, torch, activations of one chunk,
# work memory of the kernels (at most 435 MiB for a known model: docs/kernels-prefill.md); while
# loading, 192 MiB that are being read in place of the last two.
RUNTIME_BYTES = 768 << 20
# The same on a GPU: the CUDA context, its libraries' workspaces and kernels.
GPU_RUNTIME_BYTES = 768 << 20
# Experts in one of the two buffers that they stream through on their way to the GPU.
STAGED_EXPERTS = 8


def cache_bytes_per_token(model: ModelConfig, value_bytes: int = FLOAT32_BYTES) -> int:
    """Bytes of latent cache a token takes over all layers: one latent and one rotary key each."""
    return model.num_hidden_layers * (model.kv_lora_rank + model.qk_rope_head_dim) * value_bytes


def kv_up_bytes(model: ModelConfig) -> int:
    """Bytes of the key/value up-projection of all layers in float32."""
    rows = model.num_attention_heads * (model.qk_nope_head_dim + model.v_head_dim)
    return model.num_hidden_layers * rows * model.kv_lora_rank * FLOAT32_BYTES


def gpu_buffer_bytes(facts: ModelFacts, chunk: int) -> int:
    """Bytes on a GPU besides weights and cache, with prompts computed `chunk` tokens at a time.

    A token of a chunk takes its residual stream (float32 and four bfloat16 copies), its heads'
    queries, keys and values in bfloat16, and the inner and outer values of its experts.
    """
    model = facts.config
    heads = 2 * model.qk_head_dim + 2 * model.v_head_dim
    inner = model.num_experts_per_tok * (2 * model.moe_intermediate_size + model.hidden_size)
    values = 6 * model.hidden_size + model.num_attention_heads * heads + inner
    return GPU_RUNTIME_BYTES + chunk * values * BFLOAT16_BYTES + staging_bytes(facts)


def staging_bytes(facts: ModelFacts) -> int:
    """Bytes of the double buffer that streams experts: once on the GPU, once pinned in RAM."""
    return 2 * STAGED_EXPERTS * max(expert_sizes(facts), default=0)


def expert_sizes(facts: ModelFacts) -> list[int]:
    """Bytes of every routed expert, layer by layer."""
    count = facts.config.n_routed_experts
    return [
        layer.routed_experts // count
        for layer in facts.bytes.layers
        if layer.routed_experts
        for _ in range(count)
    ]
