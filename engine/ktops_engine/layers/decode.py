"""The halves of a decoder layer for single new tokens, a native call each.

What a decode computes beside its matrices is small: done in torch, one operation after another, it
took a fifth of the time. Prompts go through the layers of torch, which these agree with.
"""

from __future__ import annotations

import ctypes

import torch

from ktops_engine.gguf import QuantType
from ktops_engine.layers.attention import AttentionWeights, SequenceInput
from ktops_engine.layers.norm import RmsNorm
from ktops_engine.layers.rotary import attention_scale
from ktops_engine.layers.router import Router
from ktops_engine.model_config import ModelConfig
from ktops_engine.moe.cpu_experts import CpuExperts, FeedForward
from ktops_engine.native.load import Matrix, Pool
from ktops_engine.native.structs import ContextStruct, FfnDecodeArgs, MlaDecodeArgs, RouterStruct
from ktops_engine.tensors import float32_ptr


class DecodeStep:
    """One new token of each sequence: activations, which all layers change in place, rotations, and
    what each token attends to. Checked and turned into addresses once for all layers."""

    def __init__(
        self, x: torch.Tensor, rotations: torch.Tensor, sequences: tuple[SequenceInput, ...]
    ) -> None:
        """x: [tokens, hidden_size] float32; rotations: [tokens, 1, rope / 2] complex64."""
        self.x, self.rotations, self.sequences = x, rotations, sequences  # kept alive
        self.num_tokens, self.hidden_size = x.shape
        self.x_ptr = float32_ptr(x, self.hidden_size)
        self.rotations_ptr = rotations.data_ptr()
        self._contexts = (ContextStruct * len(sequences))(*(_context(s.context) for s in sequences))
        self.contexts_ptr = ctypes.addressof(self._contexts)


def _context(slots: slice | torch.Tensor) -> ContextStruct:
    if isinstance(slots, slice):
        return ContextStruct(None, slots.start, slots.stop - slots.start)
    return ContextStruct(slots.data_ptr(), 0, len(slots))


class AttentionDecode:
    """x += attention(norm(x)), the new tokens entered in the cache."""

    def __init__(
        self, pool: Pool, norm: RmsNorm, weights: AttentionWeights, config: ModelConfig
    ) -> None:
        self._pool = pool
        self._weights = norm, weights  # kept alive: the arguments have their addresses
        args = MlaDecodeArgs(
            query_b=weights.query_b.weight.struct,
            kv_a=weights.kv_a.weight.struct,
            key_up=weights.absorb_key.weight.struct,
            value_up=weights.absorb_value.weight.struct,
            output=weights.output.weight.struct,
            input_norm=norm.weight.data_ptr(),
            latent_norm=weights.kv_norm.weight.data_ptr(),
            norm_eps=norm.eps,
            score_scale=attention_scale(config),
        )
        if weights.query_a is not None and weights.query_norm is not None:
            args.query_a = weights.query_a.weight.struct
            args.query_norm = weights.query_norm.weight.data_ptr()
        self._args = args
        self._width = weights.kv_a.weight.rows

    def __call__(self, step: DecodeStep, cache: torch.Tensor) -> None:
        """cache: [slots, rank + rope] float32 of this layer."""
        args = self._args
        args.x = step.x_ptr
        args.rotations = step.rotations_ptr
        args.cache = float32_ptr(cache, self._width)
        args.cache_slots = cache.shape[0]
        args.contexts = step.contexts_ptr
        args.num_tokens = step.num_tokens
        self._pool.mla_decode(args)


class FeedForwardDecode:
    """x += feed_forward(norm(x)): of a dense layer, or of routed and shared experts."""

    def __init__(
        self,
        pool: Pool,
        norm: RmsNorm,
        shared: FeedForward,
        router: Router | None = None,
        experts: CpuExperts | None = None,
    ) -> None:
        self._pool = pool
        self._experts = experts
        self._weights = norm, router  # kept alive: the arguments have their addresses
        self._expert_ids = (ctypes.c_int32 * 0)()
        args = FfnDecodeArgs(
            shared_gate=shared.gate.struct,
            shared_up=shared.up.struct,
            shared_down=shared.down.struct,
            input_norm=norm.weight.data_ptr(),
            norm_eps=norm.eps,
        )
        if router is not None and experts is not None:
            args.router = _router_struct(router)
            args.gate, args.up, args.down = (
                matrix.struct for matrix in (experts.gate, experts.up, experts.down)
            )
        self._args = args

    def __call__(self, step: DecodeStep) -> None:
        args = self._args
        args.x = step.x_ptr
        args.num_tokens = step.num_tokens
        num_chosen = step.num_tokens * args.router.top_k
        if len(self._expert_ids) < num_chosen:
            self._expert_ids = (ctypes.c_int32 * num_chosen)()
            args.expert_ids = ctypes.addressof(self._expert_ids)
        self._pool.ffn_decode(args)
        if self._experts is not None:
            self._experts.count(self._expert_ids[:num_chosen], args.expert_ns * 1e-9)


def _router_struct(router: Router) -> RouterStruct:
    weight, bias, config = router.weight, router.bias, router.config
    rows, cols = weight.shape
    limited = config.topk_method != "greedy"
    return RouterStruct(
        weight=Matrix(weight.data_ptr(), QuantType.F32, rows, cols).struct,
        bias=None if bias is None else bias.data_ptr(),
        top_k=config.num_experts_per_tok,
        num_groups=config.n_group if limited else 1,
        chosen_groups=config.topk_group if limited else 1,
        group_best=2 if config.topk_method == "noaux_tc" else 1,
        is_sigmoid=config.scoring_func == "sigmoid",
        is_normalised=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
    )
