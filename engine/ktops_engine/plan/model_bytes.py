"""What a model weighs, part by part: exact from its files, else by the rules of Q4_K_M."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from ktops_engine.gguf import GgufModel, QuantType
from ktops_engine.model_config import ModelConfig
from ktops_engine.plan.hot_experts import ExpertUse
from ktops_engine.text import Text, text

_BLOCK = re.compile(r"blk\.(\d+)\.(.*)")


class Part(StrEnum):
    """A kind of bytes that a device can hold; the first seven are the model's weights."""

    ATTENTION = "attention"
    ROUTER = "norms_and_routers"
    SHARED_EXPERTS = "shared_experts"
    OUTPUT_HEAD = "output_head"
    DENSE_LAYERS = "dense_layers"
    TOKEN_EMBEDDING = "token_embedding"
    ROUTED_EXPERTS = "routed_experts"
    KV_CACHE = "kv_cache"
    KV_UP = "kv_up_float32"
    BUFFERS = "buffers"
    HOT_EXPERTS = "copies_of_most_used_experts"


WEIGHT_PARTS = tuple(Part)[:7]


@dataclass(frozen=True)
class LayerBytes:
    """Bytes of one layer's weights. A layer has either a dense feed-forward or experts."""

    attention: int = 0
    router: int = 0
    dense: int = 0
    shared_experts: int = 0
    routed_experts: int = 0


@dataclass(frozen=True)
class ModelBytes:
    """Bytes of a model's weights as its files hold them.

    A tied embedding (no output head of its own) counts as `head`: it is read for every token.
    `left_out` are tensors for multi-token prediction, which nothing reads.
    """

    embedding: int
    head: int
    final_norm: int
    layers: tuple[LayerBytes, ...]
    left_out: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_part().values())

    @property
    def routed_experts(self) -> int:
        return sum(layer.routed_experts for layer in self.layers)

    def by_part(self) -> dict[Part, int]:
        """Bytes of each part of the weights."""
        return {
            Part.ATTENTION: sum(layer.attention for layer in self.layers),
            Part.ROUTER: sum(layer.router for layer in self.layers) + self.final_norm,
            Part.SHARED_EXPERTS: sum(layer.shared_experts for layer in self.layers),
            Part.OUTPUT_HEAD: self.head,
            Part.DENSE_LAYERS: sum(layer.dense for layer in self.layers),
            Part.TOKEN_EMBEDDING: self.embedding,
            Part.ROUTED_EXPERTS: self.routed_experts,
        }


@dataclass(frozen=True)
class ModelFacts:
    """A model to plan for. `source`: its files, or a description by the rules of Q4_K_M.

    `gpu_obstacle` says why its experts cannot go to a GPU, None when they can; without one, those
    that `can_stay_on_gpu` need not lie in RAM. `expert_use` is how often each was chosen, None
    while too little is known of that.
    """

    config: ModelConfig
    bytes: ModelBytes
    source: Literal["files", "description"] = "files"
    gpu_obstacle: Text | None = None
    can_stay_on_gpu: bool = True
    expert_use: ExpertUse | None = None


def facts_of_files(
    gguf: GgufModel, config: ModelConfig, expert_use: ExpertUse | None = None
) -> ModelFacts:
    """The facts of a model whose files are here; every tensor is counted once."""
    sizes = {name: tensor.nbytes for name, tensor in gguf.tensors.items()}
    return ModelFacts(
        config,
        sum_tensors(sizes, config.num_hidden_layers),
        gpu_obstacle=_find_gpu_obstacle(gguf),
        can_stay_on_gpu=_can_stay_on_gpu(gguf),
        expert_use=expert_use,
    )


def _find_gpu_obstacle(gguf: GgufModel) -> Text | None:
    """The first matrix of experts that the GPU's kernels cannot take: they unpack quantised panels
    of 16 rows in steps of 64 columns."""
    for name, tensor in gguf.tensors.items():
        *_, rows, columns = (1, *tensor.shape)
        is_packed = tensor.type.block_size > 1 and rows % 16 == 0 and columns % 64 == 0
        if "_exps." in name and not is_packed:
            return text(
                "it has no kernels for experts of {type} with {rows} rows and {columns} columns",
                type=tensor.type.name,
                rows=rows,
                columns=columns,
            )
    return None


def _can_stay_on_gpu(gguf: GgufModel) -> bool:
    """Whether the GPU's kernels for prompts take all experts: tiles of 64 rows, and 128 columns at
    least. The CPU computes prompts of others, and has to have them for that."""
    shapes = (tensor.shape for name, tensor in gguf.tensors.items() if "_exps." in name)
    return all(rows % 64 == 0 and columns % 128 == 0 for *_, rows, columns in shapes)


def describe_q4_k_m(config: ModelConfig) -> ModelFacts:
    """The facts of a Q4_K_M file of `config`, from the rules of the quantiser alone.

    llama.cpp's rules (llama_tensor_get_type, `use_more_bits`), as the files of 2024 and early 2025
    were made: Q4_K for matrices, Q6_K for the output head and for every down projection in about
    half of the layers, Q5_0 and Q8_0 in their place where rows are not whole blocks of 256, F32 for
    norms and routers.
    """
    sizes = {name: type.nbytes(math.prod(shape)) for name, shape, type in tensors_q4_k_m(config)}
    return ModelFacts(config, sum_tensors(sizes, config.num_hidden_layers), "description")


def tensors_q4_k_m(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], QuantType]]:
    """Name, shape (row-major) and type of every tensor of a Q4_K_M file of `config`, by the rules
    that `describe_q4_k_m` names."""
    for name, shape, wanted in _tensors(config):
        yield name, shape, wanted if shape[-1] % wanted.block_size == 0 else _FALLBACK[wanted]


def sum_tensors(sizes: Mapping[str, int], num_layers: int) -> ModelBytes:
    """`ModelBytes` of tensors by name, under the names that GGUF gives them."""
    per_layer: list[Counter[str]] = [Counter() for _ in range(num_layers)]
    model: Counter[str] = Counter()
    for name, size in sizes.items():
        block = _BLOCK.fullmatch(name)
        if block is None:
            model[name] += size
        elif int(block[1]) >= num_layers or block[2].startswith("nextn."):
            model["left_out"] += size
        else:
            per_layer[int(block[1])][_layer_part(block[2])] += size
    embedding, head = model.pop("token_embd.weight", 0), model.pop("output.weight", 0)
    left_out = model.pop("left_out", 0)
    return ModelBytes(
        embedding=embedding if head else 0,
        head=head or embedding,
        final_norm=sum(model.values()),
        layers=tuple(LayerBytes(**parts) for parts in per_layer),
        left_out=left_out,
    )


def _layer_part(name: str) -> str:
    if "_exps." in name:
        return "routed_experts"
    if "_shexp." in name:
        return "shared_experts"
    if "norm" in name or name.startswith(("ffn_gate_inp", "exp_probs_b")):
        return "router"
    return "attention" if name.startswith("attn_") else "dense"


_FALLBACK: Mapping[QuantType, QuantType] = {
    QuantType.Q4_K: QuantType.Q5_0,
    QuantType.Q6_K: QuantType.Q8_0,
}


def _more_bits(layer: int, num_layers: int) -> bool:
    """Whether the quantiser gives this layer's down projections six bits: the first and last
    eighth, and every third between."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], QuantType]]:
    """Name, shape and wanted type of every tensor of the file."""
    hidden = config.hidden_size
    yield "token_embd.weight", (config.vocab_size, hidden), QuantType.Q4_K
    yield "output_norm.weight", (hidden,), QuantType.F32
    if not config.tie_word_embeddings:
        yield "output.weight", (config.vocab_size, hidden), QuantType.Q6_K
    for layer in range(config.num_hidden_layers):
        six = _more_bits(layer, config.num_hidden_layers)
        down = QuantType.Q6_K if six else QuantType.Q4_K
        is_dense = config.is_dense_layer(layer)
        feed_forward = _dense(config, down) if is_dense else _experts(config, down)
        for name, shape, type in (*_attention(config), *feed_forward):
            yield f"blk.{layer}.{name}", shape, type


def _attention(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], QuantType]]:
    hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    for norm in ("attn_norm", "ffn_norm"):
        yield f"{norm}.weight", (hidden,), QuantType.F32
    queries = heads * config.qk_head_dim
    if config.q_lora_rank is None:
        yield "attn_q.weight", (queries, hidden), QuantType.Q4_K
    else:
        yield "attn_q_a.weight", (config.q_lora_rank, hidden), QuantType.Q4_K
        yield "attn_q_a_norm.weight", (config.q_lora_rank,), QuantType.F32
        yield "attn_q_b.weight", (queries, config.q_lora_rank), QuantType.Q4_K
    yield "attn_kv_a_mqa.weight", (rank + config.qk_rope_head_dim, hidden), QuantType.Q4_K
    yield "attn_kv_a_norm.weight", (rank,), QuantType.F32
    up = heads * (config.qk_nope_head_dim + config.v_head_dim)
    yield "attn_kv_b.weight", (up, rank), QuantType.Q4_K
    yield "attn_output.weight", (hidden, heads * config.v_head_dim), QuantType.Q4_K


def _dense(
    config: ModelConfig, down: QuantType
) -> Iterator[tuple[str, tuple[int, ...], QuantType]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    for name in ("ffn_gate", "ffn_up"):
        yield f"{name}.weight", (inner, hidden), QuantType.Q4_K
    yield "ffn_down.weight", (hidden, inner), down


def _experts(
    config: ModelConfig, down: QuantType
) -> Iterator[tuple[str, tuple[int, ...], QuantType]]:
    hidden, experts = config.hidden_size, config.n_routed_experts
    inner = config.moe_intermediate_size
    yield "ffn_gate_inp.weight", (experts, hidden), QuantType.F32
    if config.scoring_func == "sigmoid":
        yield "exp_probs_b.bias", (experts,), QuantType.F32
    for name in ("ffn_gate_exps", "ffn_up_exps"):
        yield f"{name}.weight", (experts, inner, hidden), QuantType.Q4_K
    yield "ffn_down_exps.weight", (experts, hidden, inner), down
    if shared := inner * config.n_shared_experts:
        for name in ("ffn_gate_shexp", "ffn_up_shexp"):
            yield f"{name}.weight", (shared, hidden), QuantType.Q4_K
        yield "ffn_down_shexp.weight", (hidden, shared), down
