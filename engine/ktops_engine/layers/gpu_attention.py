"""Multi-head latent attention on a GPU (DeepSeek-V2 report, arXiv:2405.04434, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch

from ktops_engine.kernels.latent import (
    rotate_query,
    store_latent,
    store_latent_and_norm_query,
)
from ktops_engine.kernels.matrix import MAX_FEW_TOKENS
from ktops_engine.kernels.mla_decode import BLOCK_SIZE, mla_decode
from ktops_engine.kernels.mla_prefill import mla_prefill
from ktops_engine.layers.gpu_kv_up import KvUp
from ktops_engine.layers.rotary import attention_scale
from ktops_engine.model_config import ModelConfig

# What a prompt's queries, outputs and expanded keys and values may take, in bytes; the latter get
# so much at least, because few heads do not fill a GPU.
MAX_SCRATCH_BYTES = 512 << 20
MIN_EXPANDED_BYTES = 128 << 20


class Projection(Protocol):
    """y = x @ W^T; x: [tokens, cols] bf16 -> [tokens, rows], added to `add_to` when given."""

    def __call__(
        self,
        x: torch.Tensor,
        *,
        add_to: torch.Tensor | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class QueryCompression:
    """`down`: x: [tokens, cols] bf16 -> compressed queries [tokens, q_lora_rank] and latents
    [tokens, kv_lora_rank + rope], float32; norm: [q_lora_rank] float32, cuda."""

    down: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    norm: torch.Tensor


@dataclass(frozen=True)
class GpuAttentionWeights:
    """Weights of one layer. `down` gives compressed queries and latents; in models without query
    compression it is a projection to latents, and query_b takes its x.

    kv_norm: [kv_lora_rank] float32, cuda.
    """

    down: QueryCompression | Projection
    query_b: Projection
    kv_norm: torch.Tensor
    kv_up: KvUp
    output: Projection


class SequenceRows(Protocol):
    """Whose the rows of a step are: its sequences' tokens follow one another.

    positions: [tokens] int32, block_tables: [sequences, max_blocks] int32, cuda; on the host, how
    many tokens each sequence has in the step and the position of its first.
    """

    @property
    def positions(self) -> torch.Tensor: ...
    @property
    def block_tables(self) -> torch.Tensor: ...
    @property
    def num_tokens(self) -> tuple[int, ...]: ...
    @property
    def starts(self) -> tuple[int, ...]: ...


class GpuMlaAttention:
    """Attention whose cache holds one latent and one rotary key a token, shared by all heads.

    As `MlaAttention` computes it on the CPU, but absorbed for a few tokens too, because expanding
    keys and values costs as much as some fifty of them; per head for more. Results are added to the
    residual stream.
    """

    def __init__(self, weights: GpuAttentionWeights, config: ModelConfig) -> None:
        self._w = weights
        self._heads = config.num_attention_heads
        self._nope, self._rope = config.qk_nope_head_dim, config.qk_rope_head_dim
        self._rank = config.kv_lora_rank
        self._v_dim = config.v_head_dim
        self._eps = config.rms_norm_eps
        self._scale = attention_scale(config)

    def decode(
        self,
        h: torch.Tensor,
        x: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: torch.Tensor,
        slots: torch.Tensor,
        block_tables: torch.Tensor,
        lengths: torch.Tensor,
    ) -> None:
        """One token of each sequence; nothing depends on the host, so that it can be captured.

        h: [tokens, hidden_size] bf16, normalised; x: the same shape, float32, added to; cos_sin:
        [tokens, rope / 2, 2] float32; cache: [num_slots, rank + rope] bf16 of this layer, written;
        slots: [tokens] int64, where each token's entry goes; block_tables: [tokens, max_blocks]
        int32; lengths: [tokens] int32, this token included.
        """
        q = self._project(h, cos_sin, cache, slots)
        self._output(self._absorbed(q, cos_sin, cache, block_tables, lengths), x)

    def prefill(
        self,
        h: torch.Tensor,
        x: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: torch.Tensor,
        slots: torch.Tensor,
        step: SequenceRows,
    ) -> None:
        """Any number of tokens of each sequence; tensors as in `decode`."""
        q = self._project(h, cos_sin, cache, slots)
        shape = (h.shape[0], self._heads, self._v_dim)
        out = torch.empty(shape, dtype=torch.bfloat16, device=h.device)
        for rows, sequences in _runs(step.num_tokens):
            counts = step.num_tokens[sequences]
            if max(counts) <= MAX_FEW_TOKENS:
                tables = _table_of_each(step.block_tables[sequences], counts)
                seen = step.positions[rows] + 1
                out[rows] = self._absorbed(q[rows], cos_sin[rows], cache, tables, seen)
            else:
                num_context = step.starts[sequences.start] + counts[0]
                context = _context(cache, step.block_tables[sequences.start], num_context)
                rotate_query(q[rows, :, self._nope :], cos_sin[rows])
                self._per_head(q[rows], context, out[rows])
        self._output(out, x)

    def enter(
        self, h: torch.Tensor, cos_sin: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """Write the cache entries of all tokens; tensors as in `decode` -> what their queries are
        projected from, bf16."""
        w = self._w
        if isinstance(w.down, QueryCompression):
            compressed, kv = w.down.down(h)
            return store_latent_and_norm_query(
                kv, w.kv_norm, self._eps, cos_sin, cache, slots, compressed, w.down.norm
            )
        kv = w.down(h, out_dtype=torch.float32)
        store_latent(kv, w.kv_norm, self._eps, cos_sin, cache, slots)
        return h

    def _project(
        self, h: torch.Tensor, cos_sin: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        """The cache entries of all tokens, written; their queries [tokens, heads, nope + rope]
        bf16, not yet rotated."""
        query = self._w.query_b(self.enter(h, cos_sin, cache, slots))
        return query.view(h.shape[0], self._heads, -1)

    def _absorbed(
        self,
        q: torch.Tensor,
        cos_sin: torch.Tensor,
        cache: torch.Tensor,
        block_tables: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Each token by itself, in the latent space -> [tokens, heads, v] bf16. Tables and lengths
        are those of tokens."""
        q_latent = self._w.kv_up.absorb_key(q[..., : self._nope])
        q_rope = q[..., self._nope :]
        latent = mla_decode(q_latent, q_rope, cos_sin, cache, block_tables, lengths, self._scale)
        return self._w.kv_up.absorb_value(latent)

    def _per_head(self, q: torch.Tensor, context: torch.Tensor, out: torch.Tensor) -> None:
        """Many tokens of one sequence: keys and values expanded from the latent for some heads at a
        time. context: [tokens so far, rank + rope] bf16; out: [new, heads, v] bf16, written."""
        latent, k_rope = context[:, : self._rank], context[:, self._rank :]
        for heads in self._head_groups(q.shape[0], context.shape[0]):
            num_heads = heads.stop - heads.start
            key_up, value_up = self._w.kv_up.expand(heads.start, num_heads)
            same = latent.expand(num_heads, -1, -1)
            k_nope = torch.bmm(same, key_up)
            value = torch.bmm(same, value_up.transpose(1, 2))
            mla_prefill(q[:, heads], k_nope, k_rope, value, self._scale, out[:, heads])

    def _head_groups(self, num_new: int, num_context: int) -> Iterator[slice]:
        """As few groups of equal size as the scratch memory allows."""
        head_bytes = 2 * num_context * (self._nope + self._v_dim)
        taken = 2 * num_new * self._heads * (self._nope + self._rope + self._v_dim)
        at_most = max(1, max(MAX_SCRATCH_BYTES - taken, MIN_EXPANDED_BYTES) // head_bytes)
        num_groups = -(-self._heads // at_most)
        size = -(-self._heads // num_groups)
        for first in range(0, self._heads, size):
            yield slice(first, min(first + size, self._heads))

    def _output(self, out: torch.Tensor, x: torch.Tensor) -> None:
        self._w.output(out.reshape(out.shape[0], -1), add_to=x)


def _runs(num_tokens: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Rows and sequences that are computed at once: neighbours of few tokens each together, any
    other sequence alone."""
    row = sequence = 0
    for are_few, run in groupby(num_tokens, key=lambda count: count <= MAX_FEW_TOKENS):
        counts = list(run)
        for group in [counts] if are_few else [[count] for count in counts]:
            yield slice(row, row + sum(group)), slice(sequence, sequence + len(group))
            row += sum(group)
            sequence += len(group)


def _table_of_each(block_tables: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Every sequence's table for each of its tokens, [tokens, max_blocks]."""
    return torch.cat([table.expand(n, -1) for table, n in zip(block_tables, counts, strict=True)])


def _context(cache: torch.Tensor, block_table: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """A sequence's entries in their order, [num_tokens, rank + rope]."""
    blocks = block_table[: -(-num_tokens // BLOCK_SIZE)].long()
    slots = blocks[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=cache.device)
    return cache[slots.flatten()[:num_tokens]]
