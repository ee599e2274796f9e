"""DeepSeek-V2, V3 and R1: the layers, and the names their tensors have in a GGUF."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import torch

from ktops_engine.gguf import GgufModel, QuantType
from ktops_engine.kv_cache import LatentCache
from ktops_engine.layers.attention import (
    AttentionWeights,
    MlaAttention,
    SequenceInput,
    single_tokens,
)
from ktops_engine.layers.decode import AttentionDecode, DecodeStep, FeedForwardDecode
from ktops_engine.layers.linear import HeadLinear, Linear
from ktops_engine.layers.norm import RmsNorm
from ktops_engine.layers.rotary import Rotary
from ktops_engine.layers.router import Router
from ktops_engine.model_config import ModelConfig
from ktops_engine.models.weights import Weights
from ktops_engine.moe.cpu_experts import CpuExperts, FeedForward
from ktops_engine.native.load import Matrix, Pool
from ktops_engine.stats import ExpertTraffic

EMBEDDING, NORM, HEAD = "token_embd.weight", "output_norm.weight", "output.weight"


@dataclass(frozen=True)
class StepInput:
    """What one forward pass reads: tokens and their positions, row by row, and whose they are.

    `sampled_rows` are the rows whose logits are wanted.
    """

    token_ids: list[int]
    positions: torch.Tensor
    sequences: tuple[SequenceInput, ...]
    sampled_rows: list[int]


class MoeFeedForward:
    """Routed experts beside the shared ones, which every token takes (V2 report, section 2.2)."""

    def __init__(self, router: Router, experts: CpuExperts, shared: FeedForward) -> None:
        self.router = router
        self.experts = experts
        self.shared = shared

    @property
    def traffic(self) -> ExpertTraffic:
        return self.experts.traffic

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(x, *self.router(x)).add_(self.shared(x))


@dataclass(frozen=True)
class DecoderLayer:
    attention_norm: RmsNorm
    attention: MlaAttention
    feed_forward_norm: RmsNorm
    feed_forward: FeedForward | MoeFeedForward
    attention_decode: AttentionDecode
    feed_forward_decode: FeedForwardDecode


CachedLayer = tuple[DecoderLayer, torch.Tensor]  # with its cache, [slots, rank + rope] float32


class CpuTail:
    """Decoder layers from some one on, norm and head, on the CPU: of all a model has, or what a GPU
    has no room for, which may be the head alone."""

    def __init__(
        self,
        weights: Weights,
        config: ModelConfig,
        pool: Pool,
        max_positions: int,
        first_layer: int = 0,
    ) -> None:
        self._rotary = Rotary(config, max_positions)
        self._layers = [
            _build_layer(weights, config, pool, index)
            for index in range(first_layer, config.num_hidden_layers)
        ]
        self._norm = RmsNorm(weights.float32(NORM), config.rms_norm_eps)
        head = HEAD if HEAD in weights else EMBEDDING
        self._head = Linear(pool, weights.matrix(head))

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def expert_traffic(self) -> ExpertTraffic:
        """What has been read of the routed experts of all layers."""
        feed_forwards = (layer.feed_forward for layer in self._layers)
        traffic = (part.traffic for part in feed_forwards if isinstance(part, MoeFeedForward))
        return sum(traffic, ExpertTraffic())

    def __call__(
        self, x: torch.Tensor, step: StepInput, caches: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """x: [tokens, hidden_size] float32, the residual stream so far, overwritten; that of the
        sampled rows alone will do where there are no layers. caches: of these layers, [slots,
        rank + rope] float32 each, written in place -> logits [len(sampled_rows), vocab_size]
        float32."""
        rotations = self._rotary.at(step.positions)
        layers = list(zip(self._layers, caches, strict=True))
        if len(step.sequences) == x.shape[0]:
            self._decode(DecodeStep(x, rotations, step.sequences), layers)
        elif len(step.sampled_rows) == x.shape[0]:
            self._prefill(x, rotations, step.sequences, layers)
        else:
            self._prefill(x, rotations, step.sequences, layers[:-1])
            x = self._narrow(x, rotations, step, layers[-1:])
        if len(step.sampled_rows) < x.shape[0]:
            x = x[step.sampled_rows]
        return self._head(self._norm(x))

    def _decode(self, step: DecodeStep, layers: Sequence[CachedLayer]) -> None:
        """Layers for one new token of each sequence."""
        for layer, cache in layers:
            layer.attention_decode(step, cache)
            layer.feed_forward_decode(step)

    def _prefill(
        self,
        x: torch.Tensor,
        rotations: torch.Tensor,
        sequences: tuple[SequenceInput, ...],
        layers: Sequence[CachedLayer],
    ) -> None:
        """Layers for any number of new tokens; x is changed in place."""
        for layer, cache in layers:
            x += layer.attention(layer.attention_norm(x), rotations, cache, sequences)
            x += layer.feed_forward(layer.feed_forward_norm(x))

    def _narrow(
        self, x: torch.Tensor, rotations: torch.Tensor, step: StepInput, last: Sequence[CachedLayer]
    ) -> torch.Tensor:
        """The last layer of a prompt, none or one, -> x of the sampled rows. Tokens to come need
        nothing of it but its cache entries: all enter them, and the sampled rows go on alone, as
        single new tokens do."""
        for layer, cache in last:
            layer.attention.enter(layer.attention_norm(x), rotations, cache, step.sequences)
        rows = step.sampled_rows
        x = x[rows]
        if rows:
            tokens = single_tokens(step.sequences, rows)
            self._decode(DecodeStep(x, rotations[rows], tokens), last)
        return x


class Deepseek2Model:
    """Embedding, decoder layers, norm and head, on the CPU."""

    cache_kind = (torch.float32, torch.device("cpu"))

    def __init__(
        self, weights: Weights, config: ModelConfig, pool: Pool, max_positions: int
    ) -> None:
        self._weights = weights
        self._tail = CpuTail(weights, config, pool, max_positions)

    def expert_traffic(self) -> ExpertTraffic:
        """What has been read of the routed experts of all layers."""
        return self._tail.expert_traffic()

    def forward(self, step: StepInput, cache: LatentCache) -> torch.Tensor:
        """-> logits [len(sampled_rows), vocab_size] float32; the cache is written in place."""
        x = self._weights.float32_rows(EMBEDDING, step.token_ids)
        return self._tail(x, step, cache.layers)


def wanted_tensors(gguf: GgufModel, config: ModelConfig) -> tuple[list[str], list[str]]:
    """Names of the tensors the model uses, and of those it leaves out (multi-token prediction)."""
    wanted: list[str] = []
    left_out: list[str] = []
    for name in gguf.tensors:
        block = re.match(r"blk\.(\d+)\.", name)
        is_extra = block is not None and int(block[1]) >= config.num_hidden_layers
        (left_out if is_extra or ".nextn." in name else wanted).append(name)
    return wanted, left_out


def stays_in_ram(name: str, resident_layers: Container[int] = ()) -> bool:
    """Whether a tensor lies in RAM also where a GPU holds all that every token uses: the embedding,
    of which a token needs one row, and the routed experts but those of `resident_layers`."""
    experts = re.match(r"blk\.(\d+)\.\w+_exps\.", name)
    return name == EMBEDDING or (experts is not None and int(experts[1]) not in resident_layers)


def is_in_tail(name: str, gpu_layers: int, *, gpu_head: bool) -> bool:
    """Whether a tensor belongs to what the CPU computes after the `gpu_layers` of a GPU: the layers
    after them, and norm and head, unless there is the head too."""
    block = re.match(r"blk\.(\d+)\.", name)
    if block is not None:
        return int(block[1]) >= gpu_layers
    return name != EMBEDDING and not gpu_head


def _build_layer(weights: Weights, config: ModelConfig, pool: Pool, index: int) -> DecoderLayer:
    block = f"blk.{index}."

    def norm(name: str) -> RmsNorm:
        return RmsNorm(weights.float32(f"{block}{name}.weight"), config.rms_norm_eps)

    attention_norm, feed_forward_norm = norm("attn_norm"), norm("ffn_norm")
    attention = _attention_weights(weights, config, pool, block)
    feed_forward: FeedForward | MoeFeedForward
    if index < config.first_k_dense_replace:
        feed_forward = _dense(weights, pool, block)
        feed_forward_decode = FeedForwardDecode(pool, feed_forward_norm, feed_forward)
    else:
        feed_forward = _moe(weights, config, pool, block)
        parts = feed_forward.shared, feed_forward.router, feed_forward.experts
        feed_forward_decode = FeedForwardDecode(pool, feed_forward_norm, *parts)
    return DecoderLayer(
        attention_norm,
        MlaAttention(attention, config),
        feed_forward_norm,
        feed_forward,
        AttentionDecode(pool, attention_norm, attention, config),
        feed_forward_decode,
    )


def _attention_weights(
    weights: Weights, config: ModelConfig, pool: Pool, block: str
) -> AttentionWeights:
    def linear(name: str) -> Linear:
        return Linear(pool, weights.matrix(f"{block}{name}.weight"))

    def norm(name: str) -> RmsNorm:
        return RmsNorm(weights.float32(f"{block}{name}.weight"), config.rms_norm_eps)

    compressed = config.q_lora_rank is not None
    key_up, value_up, absorb_key, absorb_value = _kv_up(weights, config, block)
    return AttentionWeights(
        query_a=linear("attn_q_a") if compressed else None,
        query_norm=norm("attn_q_a_norm") if compressed else None,
        query_b=linear("attn_q_b" if compressed else "attn_q"),
        kv_a=linear("attn_kv_a_mqa"),
        kv_norm=norm("attn_kv_a_norm"),
        key_up=key_up,
        value_up=value_up,
        absorb_key=HeadLinear(pool, absorb_key),
        absorb_value=HeadLinear(pool, absorb_value),
        output=linear("attn_output"),
    )


def _kv_up(
    weights: Weights, config: ModelConfig, block: str
) -> tuple[torch.Tensor, torch.Tensor, Matrix, Matrix]:
    """Key and value up-projection, [heads, rank, nope] and [heads, v, rank]: float32 for prompts,
    and as matrices for single tokens.

    The new form of the file has just these two, quantised; the old form is one matrix with the
    key's part the other way round, from which float32 ones are made.
    """
    key, value = f"{block}attn_k_b.weight", f"{block}attn_v_b.weight"
    if key in weights:
        return (
            weights.float32(key), weights.float32(value), weights.matrix(key), weights.matrix(value)
        )  # fmt: skip
    both = weights.float32(f"{block}attn_kv_b.weight")
    both = both.view(config.num_attention_heads, -1, config.kv_lora_rank)
    nope = config.qk_nope_head_dim
    key_up = both[:, :nope].transpose(1, 2).contiguous()
    value_up = both[:, nope:].contiguous()
    return key_up, value_up, _float32_matrix(key_up), _float32_matrix(value_up)


def _float32_matrix(tensor: torch.Tensor) -> Matrix:
    """A view of [heads, rows, cols] float32; the tensor must outlive it."""
    heads, rows, cols = tensor.shape
    return Matrix(tensor.data_ptr(), QuantType.F32, rows, cols, heads)


def _dense(weights: Weights, pool: Pool, block: str) -> FeedForward:
    names = ("ffn_gate", "ffn_up", "ffn_down")
    return FeedForward(pool, *_matrices(weights, block, names))


def _moe(weights: Weights, config: ModelConfig, pool: Pool, block: str) -> MoeFeedForward:
    bias = f"{block}exp_probs_b.bias"
    router = Router(
        weights.float32(f"{block}ffn_gate_inp.weight"),
        weights.float32(bias) if bias in weights else None,
        config,
    )
    routed = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    shared = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
    return MoeFeedForward(
        router,
        CpuExperts(pool, *_matrices(weights, block, routed)),
        FeedForward(pool, *_matrices(weights, block, shared)),
    )


def _matrices(weights: Weights, block: str, names: Iterable[str]) -> list[Matrix]:
    return [weights.matrix(f"{block}{name}.weight") for name in names]
