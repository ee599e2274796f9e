"""Multi-head latent attention (DeepSeek-V2 report, arXiv:2405.04434, section 2.1)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ktops_engine.layers.linear import HeadLinear, Linear
from ktops_engine.layers.norm import RmsNorm
from ktops_engine.layers.rotary import attention_scale, rotate
from ktops_engine.model_config import ModelConfig


@dataclass(frozen=True)
class SequenceInput:
    """One sequence of a step. `rows` are its rows of the activations; `new` and `context` the cache
    rows of those tokens and of all tokens up to the last of them; `start` the first one's position.
    """

    rows: slice
    new: slice | torch.Tensor
    context: slice | torch.Tensor
    start: int

    @property
    def num_tokens(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def token(self, row: int, new_row: int) -> SequenceInput:
        """What ends with the token in `row`, as a sequence of which only that one is new; its
        activations are in `new_row` then."""
        index = row - self.rows.start
        position = self.start + index
        return SequenceInput(
            rows=slice(new_row, new_row + 1),
            new=part_of(self.new, index, index + 1),
            context=part_of(self.context, 0, position + 1),
            start=position,
        )


def single_tokens(
    sequences: Sequence[SequenceInput], rows: Sequence[int]
) -> tuple[SequenceInput, ...]:
    """Some rows of a step, each as a sequence with one new token."""
    ends = [sequence.rows.stop for sequence in sequences]
    return tuple(
        sequences[bisect_right(ends, row)].token(row, new_row) for new_row, row in enumerate(rows)
    )


def part_of(slots: slice | torch.Tensor, first: int, end: int) -> slice | torch.Tensor:
    """Cache rows `first` to `end` of those that a sequence has."""
    if isinstance(slots, slice):
        return slice(slots.start + first, slots.start + end)
    return slots[first:end]


@dataclass(frozen=True)
class AttentionWeights:
    """Weights of one layer. query_a and query_norm are None in models without query compression.

    key_up: [heads, kv_lora_rank, qk_nope_head_dim], value_up: [heads, v_head_dim, kv_lora_rank],
    both float32; `absorb_key` and `absorb_value` multiply with the same matrices, head by head.
    """

    query_a: Linear | None
    query_norm: RmsNorm | None
    query_b: Linear
    kv_a: Linear
    kv_norm: RmsNorm
    key_up: torch.Tensor
    value_up: torch.Tensor
    absorb_key: HeadLinear
    absorb_value: HeadLinear
    output: Linear


class MlaAttention:
    """Attention whose cache holds one latent and one rotary key a token, shared by all heads.

    A single new token is computed in the latent space (the up-projections absorbed into query and
    output: nothing is expanded); several new tokens expand keys and values once for all of them.
    """

    def __init__(self, weights: AttentionWeights, config: ModelConfig) -> None:
        self._w = weights
        self._heads = config.num_attention_heads
        self._nope, self._rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self._rank = config.kv_lora_rank
        self._v_dim = config.v_head_dim
        self._scale = attention_scale(config)
        self._value_up_t = weights.value_up.transpose(1, 2)  # [heads, rank, v_head_dim]

    def __call__(
        self,
        x: torch.Tensor,
        rotations: torch.Tensor,
        cache: torch.Tensor,
        sequences: tuple[SequenceInput, ...],
    ) -> torch.Tensor:
        """x: [tokens, hidden_size]; rotations: [tokens, 1, rope / 2] complex64; cache: [slots,
        rank + rope] of this layer, written in place -> [tokens, hidden_size]."""
        self.enter(x, rotations, cache, sequences)
        q = self._query(x)
        q_rope = rotate(q[..., self._nope :], rotations)
        out = torch.empty(x.shape[0], self._heads * self._v_dim)
        for sequence in sequences:
            rows = sequence.rows
            attend = self._absorbed if sequence.num_tokens == 1 else self._per_head
            out[rows] = attend(
                q[rows, :, : self._nope], q_rope[rows], cache[sequence.context], sequence.start
            )
        return self._w.output(out)

    def enter(
        self,
        x: torch.Tensor,
        rotations: torch.Tensor,
        cache: torch.Tensor,
        sequences: tuple[SequenceInput, ...],
    ) -> None:
        """Write the cache entries of all tokens, without attending to any; arguments as above."""
        kv = self._w.kv_a(x)
        k_rope = rotate(kv[:, None, self._rank :], rotations).squeeze(1)
        entries = torch.cat((self._w.kv_norm(kv[:, : self._rank]), k_rope), dim=-1)
        for sequence in sequences:
            cache[sequence.new] = entries[sequence.rows]

    def _query(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden_size] -> [tokens, heads, nope + rope]"""
        if self._w.query_a is not None and self._w.query_norm is not None:
            x = self._w.query_norm(self._w.query_a(x))
        return self._w.query_b(x).view(x.shape[0], self._heads, -1)

    def _absorbed(
        self, q_nope: torch.Tensor, q_rope: torch.Tensor, context: torch.Tensor, start: int
    ) -> torch.Tensor:
        """q_nope: [1, heads, nope], q_rope: [1, heads, rope], context: [ctx, rank + rope] ->
        [1, heads * v]. The last token sees every row of the context."""
        del start
        q_latent = self._w.absorb_key(q_nope.transpose(0, 1).contiguous())  # [heads, 1, rank]
        query = torch.cat((q_latent.squeeze(1), q_rope[0]), dim=-1)
        probs = (torch.mm(query, context.t()) * self._scale).softmax(-1)  # [heads, ctx]
        latent = torch.mm(probs, context[:, : self._rank])
        return self._w.absorb_value(latent.unsqueeze(1)).view(1, -1)

    def _per_head(
        self, q_nope: torch.Tensor, q_rope: torch.Tensor, context: torch.Tensor, start: int
    ) -> torch.Tensor:
        """q_nope: [new, heads, nope], q_rope: [new, heads, rope], context: [ctx, rank + rope] ->
        [new, heads * v]. Token i sees the context up to row start + i."""
        latent, k_rope = context[:, : self._rank], context[:, self._rank :]
        k_nope = torch.matmul(latent, self._w.key_up)  # [heads, ctx, nope]
        value = torch.matmul(latent, self._value_up_t)  # [heads, ctx, v]
        key = torch.cat((k_nope, k_rope.expand(self._heads, -1, -1)), dim=-1)
        query = torch.cat((q_nope, q_rope), dim=-1).transpose(0, 1)
        mask = None
        if start > 0:
            mask = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).tril(start)
        # The fused kernel, which never holds all scores at once, wants heads of one size.
        padded = functional.pad(value, (0, key.shape[-1] - self._v_dim))
        out = functional.scaled_dot_product_attention(
            query[None], key[None], padded[None], mask, is_causal=start == 0, scale=self._scale
        )
        return out[0, :, :, : self._v_dim].transpose(0, 1).reshape(query.shape[1], -1)
