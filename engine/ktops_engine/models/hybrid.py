"""Builds the model that computes on GPU and CPU: what goes where, and the layers over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import MappingProxyType

import torch

from ktops_engine.gguf import GgufModel
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.layers.gpu_attention import (
    GpuAttentionWeights,
    GpuMlaAttention,
    QueryCompression,
)
from ktops_engine.layers.gpu_kv_up import KvUp, OneMatrixKvUp, TwoMatrixKvUp
from ktops_engine.layers.gpu_linear import GpuGateUp, GpuLinear, GpuStacked
from ktops_engine.model_config import ModelConfig
from ktops_engine.models.deepseek2 import EMBEDDING, HEAD, NORM, CpuTail, stays_in_ram
from ktops_engine.models.deepseek2_gpu import (
    DenseLayer,
    ExpertLayer,
    GpuFeedForward,
    GpuHead,
    GpuLayer,
    HybridModel,
    RoutedExperts,
)
from ktops_engine.models.gpu_weights import GpuWeights
from ktops_engine.models.hybrid_weights import HybridWeights, feed_forward_names
from ktops_engine.models.routed import place_routed
from ktops_engine.models.weights import Weights
from ktops_engine.native.load import Native, Pool


def load_gpu_weights(
    native: Native,
    gguf: GgufModel,
    names: Iterable[str],
    fill: Callable[[Weights], None],
    device: torch.device,
    expert_devices: Mapping[int, torch.device] = MappingProxyType({}),
) -> GpuWeights:
    """What every token uses of the tensors `names` on `device`, and the routed experts of the
    layers that `expert_devices` has on the devices it gives; `fill` gives them their values. With
    devices that are no GPUs, kernels are interpreted: slow, and the same arithmetic.

    Raises KtopsError as `fill`, and torch.OutOfMemoryError.
    """
    gpu_names = [name for name in names if not stays_in_ram(name, expert_devices)]
    if NORM in gpu_names and HEAD not in gguf.tensors:
        gpu_names.append(EMBEDDING)  # tied: looked up in RAM, multiplied with on the GPU
    on_gpu = GpuWeights(device, expert_devices)
    on_gpu.load(native, gguf, gpu_names, fill)
    return on_gpu


def build_hybrid(
    weights: HybridWeights,
    config: ModelConfig,
    max_positions: int,
    pool: Pool,
    resources: ExitStack,
    on_note: Callable[[str], None],
) -> HybridModel:
    """The layers over weights that lie where they belong; the CPU computes those after the ones on
    the GPU. `resources` gets what is to be given back, `on_note` what is not as it should be.

    Raises KtopsError out-of-memory, and torch.OutOfMemoryError.
    """
    in_ram, on_gpu = weights.in_ram, weights.on_gpu
    device = on_gpu.device
    num_layers = sum(_norm_name(index) in on_gpu for index in range(config.num_hidden_layers))
    expert_layers = range(config.first_k_dense_replace, num_layers)
    routed, handoff = place_routed(weights, expert_layers, config, pool, resources, on_note)
    counts = torch.zeros(
        len(expert_layers), config.n_routed_experts, dtype=torch.int32, device=device
    )
    counts_of = dict(zip(expert_layers, counts, strict=True))
    layers = [
        GpuLayer(
            attention_norm=on_gpu.float32(_norm_name(index)),
            attention=_attention(on_gpu, config, index),
            feed_forward_norm=on_gpu.float32(f"blk.{index}.ffn_norm.weight"),
            feed_forward=_feed_forward(
                on_gpu, config, index, routed.get(index), counts_of.get(index)
            ),
        )
        for index in range(num_layers)
    ]
    end: GpuHead | CpuTail
    if NORM in on_gpu:
        head = GpuLinear(on_gpu.matrix(HEAD if HEAD in on_gpu else EMBEDDING))
        end = GpuHead(on_gpu.float32(NORM), head, config)
    else:
        end = CpuTail(in_ram, config, pool, max_positions, num_layers)
    return HybridModel(in_ram, layers, end, handoff, counts, config, max_positions, device)


def _norm_name(index: int) -> str:
    """The norm that a layer begins with: where it is, there is the layer."""
    return f"blk.{index}.attn_norm.weight"


def _feed_forward(
    on_gpu: GpuWeights,
    config: ModelConfig,
    index: int,
    routed: RoutedExperts | None,
    counts: torch.Tensor | None,
) -> DenseLayer | ExpertLayer:
    if routed is None or counts is None:
        return DenseLayer(_gpu_feed_forward(on_gpu, index, ""))
    shared = _gpu_feed_forward(on_gpu, index, "_shexp") if config.n_shared_experts else None
    return ExpertLayer(_router(on_gpu, index), shared, routed, counts, config)


def _router(on_gpu: GpuWeights, index: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    bias = f"blk.{index}.exp_probs_b.bias"
    return (
        on_gpu.float32(f"blk.{index}.ffn_gate_inp.weight"),
        on_gpu.float32(bias) if bias in on_gpu else None,
    )


def _gpu_feed_forward(on_gpu: GpuWeights, index: int, suffix: str) -> GpuFeedForward:
    gate, up, down = (on_gpu.matrix(name) for name in feed_forward_names(index, suffix))
    return GpuFeedForward(GpuGateUp(gate, up), GpuLinear(down))


def _attention(on_gpu: GpuWeights, config: ModelConfig, index: int) -> GpuMlaAttention:
    def matrix(name: str) -> GpuMatrix:
        return on_gpu.matrix(f"blk.{index}.attn_{name}.weight")

    down: QueryCompression | GpuLinear
    if config.q_lora_rank is None:
        down, query_b = GpuLinear(matrix("kv_a_mqa")), matrix("q")
    else:
        norm = on_gpu.float32(f"blk.{index}.attn_q_a_norm.weight")
        down = QueryCompression(GpuStacked(matrix("q_a"), matrix("kv_a_mqa")), norm)
        query_b = matrix("q_b")
    return GpuMlaAttention(
        GpuAttentionWeights(
            down=down,
            query_b=GpuLinear(query_b),
            kv_norm=on_gpu.float32(f"blk.{index}.attn_kv_a_norm.weight"),
            kv_up=_kv_up(on_gpu, config, index),
            output=GpuLinear(matrix("output")),
        ),
        config,
    )


def _kv_up(on_gpu: GpuWeights, config: ModelConfig, index: int) -> KvUp:
    key, value = f"blk.{index}.attn_k_b.weight", f"blk.{index}.attn_v_b.weight"
    if key in on_gpu:
        return TwoMatrixKvUp(on_gpu.matrix(key), on_gpu.matrix(value))
    both = on_gpu.matrix(f"blk.{index}.attn_kv_b.weight")
    return OneMatrixKvUp(both, config.num_attention_heads, config.qk_nope_head_dim)
