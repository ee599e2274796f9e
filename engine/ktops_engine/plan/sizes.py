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
# What is left of memory beside the model, as a share of what it takes: below this, anything else
# that grows on the machine makes the kernel swap or kill.
SPARE_RAM_SHARE = 0.03
# Buffers that experts stream through on a GPU: three in turn, and one that is filled ahead.
STAGED_EXPERTS = 3 * 4 + 16
# Pairs of a token and an expert that one launch on a GPU computes.
BATCH_PAIRS = 4096


def cache_bytes_per_token(model: ModelConfig, value_bytes: int = FLOAT32_BYTES) -> int:
    """Bytes of latent cache a token takes over all layers: one latent and one rotary key each."""
    return model.num_hidden_layers * (model.kv_lora_rank + model.qk_rope_head_dim) * value_bytes


def kv_up_bytes(model: ModelConfig) -> int:
    """Bytes of the key/value up-projection of all layers in float32."""
    rows = model.num_attention_heads * (model.qk_nope_head_dim + model.v_head_dim)
    return model.num_hidden_layers * rows * model.kv_lora_rank * FLOAT32_BYTES


def gpu_buffer_bytes(facts: ModelFacts, chunk: int) -> int:
    """Bytes on a GPU besides weights and cache, with prompts computed `chunk` tokens at a time.

    A token of a chunk takes its residual stream and what experts add to it (float32, and bfloat16
    copies), its heads' queries, keys, values and outputs in bfloat16. Beside that are the buffers
    that experts stream through, and the inner (bfloat16) and outer (float32) values of the pairs
    that are computed at a time.
    """
    model = facts.config
    heads = 2 * model.qk_head_dim + 2 * model.v_head_dim
    token = BFLOAT16_BYTES * (6 * model.hidden_size + model.num_attention_heads * heads)
    staged = STAGED_EXPERTS * max(expert_sizes(facts), default=0)
    return GPU_RUNTIME_BYTES + chunk * token + _pair_bytes(model, chunk) + staged


def further_gpu_buffer_bytes(facts: ModelFacts, chunk: int) -> int:
    """The same on a GPU that holds nothing but routed experts: a token of a chunk comes there in
    bfloat16, is put in another order, and what its experts make of it goes back as float32."""
    model = facts.config
    token = (2 * BFLOAT16_BYTES + FLOAT32_BYTES) * model.hidden_size
    return GPU_RUNTIME_BYTES + chunk * token + _pair_bytes(model, chunk)


def _pair_bytes(model: ModelConfig, chunk: int) -> int:
    """Bytes of the pairs of a token and an expert that are computed at a time."""
    pair = BFLOAT16_BYTES * model.moe_intermediate_size + FLOAT32_BYTES * model.hidden_size
    return min(chunk * model.num_experts_per_tok, BATCH_PAIRS) * pair


def handed_bytes(model: ModelConfig, chunk: int) -> int:
    """Pinned bytes in RAM between CPU and GPU: a chunk's embeddings, with places and blocks, and
    what the CPU's share of its experts reads and gives back, all in float32.

    torch takes pinned memory in powers of two and keeps what is given back for requests of the same
    size: after chunks of all sizes, twice the largest.
    """
    step = FLOAT32_BYTES * chunk * (model.hidden_size + 3)
    handed = FLOAT32_BYTES * chunk * model.hidden_size
    return 2 * (_power_of_two(step) + 2 * _power_of_two(handed))


def _power_of_two(num_bytes: int) -> int:
    """The smallest that is not less."""
    return 1 << (num_bytes - 1).bit_length()


def expert_sizes(facts: ModelFacts) -> list[int]:
    """Bytes of every routed expert, layer by layer."""
    count = facts.config.n_routed_experts
    return [
        layer.routed_experts // count
        for layer in facts.bytes.layers
        if layer.routed_experts
        for _ in range(count)
    ]


def gib(num_bytes: int) -> str:
    """Bytes as a sentence has them before "GiB": 14_000_000_000 -> '13.0'."""
    return f"{num_bytes / (1 << 30):.1f}"
