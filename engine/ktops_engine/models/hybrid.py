"""Builds the model that computes on GPU and CPU: what goes where, and the layers over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import pairwise

import torch

from ktops_engine.gguf import GgufModel
from ktops_engine.layers.gpu_attention import GpuAttentionWeights, GpuMlaAttention
from ktops_engine.layers.gpu_kv_up import KvUp, OneMatrixKvUp, TwoMatrixKvUp
from ktops_engine.layers.gpu_linear import GpuGateUp, GpuLinear
from ktops_engine.model_config import ModelConfig
from ktops_engine.models.deepseek2 import EMBEDDING, HEAD, stays_in_ram
from ktops_engine.models.deepseek2_gpu import (
    DenseLayer,
    ExpertLayer,
    GpuFeedForward,
    GpuLayer,
    HybridModel,
)
from ktops_engine.models.gpu_weights import GpuWeights
from ktops_engine.models.weights import Weights
from ktops_engine.moe.gpu_experts import expert_bytes
from ktops_engine.moe.handoff import Handoff
from ktops_engine.moe.host_memory import register, unregister
from ktops_engine.moe.streamed_experts import ExpertStream, StreamedExperts
from ktops_engine.native.load import Matrix, Native, Pool


def load_gpu_weights(
    native: Native,
    gguf: GgufModel,
    names: Iterable[str],
    fill: Callable[[Weights], None],
    device: torch.device,
) -> GpuWeights:
    """What every token uses of the tensors `names`, on `device`; `fill` gives them their values.
    With a device that is no GPU, kernels are interpreted: slow, and the same arithmetic.

    Raises KtopsError as `fill`, and "gpu-out-of-memory".
    """
    gpu_names = [name for name in names if not stays_in_ram(name)]
    if HEAD not in gguf.tensors:  # tied: looked up in RAM, multiplied with on the GPU
        gpu_names.append(EMBEDDING)
    on_gpu = GpuWeights(device)
    on_gpu.load(native, gguf, gpu_names, fill)
    return on_gpu


def build_hybrid(
    native: Native,
    pool: Pool,
    in_ram: Weights,
    on_gpu: GpuWeights,
    config: ModelConfig,
    max_positions: int,
    resources: ExitStack,
) -> HybridModel:
    """The layers over weights that lie where they belong; `resources` gets what is to be given
    back."""
    device = on_gpu.device
    expert_layers = range(config.first_k_dense_replace, config.num_hidden_layers)
    experts = {index: _routed_experts(in_ram, index) for index in expert_layers}
    handoff = Handoff(
        native, pool, list(experts.values()),
        config.hidden_size, config.num_experts_per_tok, device,
    )  # fmt: skip
    most_bytes = max((sum(map(expert_bytes, matrices)) for matrices in experts.values()), default=0)
    stream = ExpertStream(pool, device, most_bytes)
    resources.callback(stream.close)
    if device.type == "cuda":
        _register(in_ram, resources)
    streamed = {index: StreamedExperts(stream, *experts[index]) for index in experts}
    for index, following in pairwise(streamed):
        streamed[index].next_layer = streamed[following]
    layers = []
    for index in range(config.num_hidden_layers):
        feed_forward: DenseLayer | ExpertLayer
        if index in experts:
            feed_forward = ExpertLayer(
                index - config.first_k_dense_replace,
                _router(on_gpu, index),
                _feed_forward(on_gpu, index, "_shexp") if config.n_shared_experts else None,
                streamed[index],
                handoff,
                config,
            )
        else:
            feed_forward = DenseLayer(_feed_forward(on_gpu, index, ""))
        layers.append(
            GpuLayer(
                attention_norm=on_gpu.float32(f"blk.{index}.attn_norm.weight"),
                attention=_attention(on_gpu, config, index),
                feed_forward_norm=on_gpu.float32(f"blk.{index}.ffn_norm.weight"),
                feed_forward=feed_forward,
            )
        )
    head = GpuLinear(on_gpu.matrix(HEAD if HEAD in on_gpu else EMBEDDING))
    norm = on_gpu.float32("output_norm.weight")
    return HybridModel(in_ram, layers, norm, head, handoff, config, max_positions, device)


def _routed_experts(in_ram: Weights, index: int) -> tuple[Matrix, Matrix, Matrix]:
    gate, up, down = (
        in_ram.matrix(f"blk.{index}.ffn_{name}_exps.weight") for name in ("gate", "up", "down")
    )
    return gate, up, down


def _router(on_gpu: GpuWeights, index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    bias = f"blk.{index}.exp_probs_b.bias"
    return (
        on_gpu.float32(f"blk.{index}.ffn_gate_inp.weight"),
        on_gpu.float32(bias) if bias in on_gpu else None,
    )


def _feed_forward(on_gpu: GpuWeights, index: int, suffix: str) -> GpuFeedForward:
    gate, up, down = (
        on_gpu.matrix(f"blk.{index}.ffn_{name}{suffix}.weight") for name in ("gate", "up", "down")
    )
    return GpuFeedForward(GpuGateUp(gate, up), GpuLinear(down))


def _attention(on_gpu: GpuWeights, config: ModelConfig, index: int) -> GpuMlaAttention:
    def linear(name: str) -> GpuLinear:
        return GpuLinear(on_gpu.matrix(f"blk.{index}.attn_{name}.weight"))

    compressed = config.q_lora_rank is not None
    query_norm = f"blk.{index}.attn_q_a_norm.weight"
    return GpuMlaAttention(
        GpuAttentionWeights(
            query_a=linear("q_a") if compressed else None,
            query_norm=on_gpu.float32(query_norm) if compressed else None,
            query_b=linear("q_b" if compressed else "q"),
            kv_a=linear("kv_a_mqa"),
            kv_norm=on_gpu.float32(f"blk.{index}.attn_kv_a_norm.weight"),
            kv_up=_kv_up(on_gpu, config, index),
            output=linear("output"),
        ),
        config,
    )


def _kv_up(on_gpu: GpuWeights, config: ModelConfig, index: int) -> KvUp:
    key, value = f"blk.{index}.attn_k_b.weight", f"blk.{index}.attn_v_b.weight"
    if key in on_gpu:
        return TwoMatrixKvUp(on_gpu.matrix(key), on_gpu.matrix(value))
    both = on_gpu.matrix(f"blk.{index}.attn_kv_b.weight")
    return OneMatrixKvUp(both, config.num_attention_heads, config.qk_nope_head_dim)


def _register(in_ram: Weights, resources: ExitStack) -> None:
    """Let the GPU read the experts where they lie, as far as the driver goes along."""
    address, num_bytes = in_ram.span
    resources.callback(unregister, address, register(address, num_bytes).num_bytes)
