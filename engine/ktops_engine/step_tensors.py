"""What one step of the hybrid model reads, in pinned memory and on the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ktops_engine.kv_cache import LatentCache
from ktops_engine.models.deepseek2_gpu import GpuStep, HybridModel
from ktops_engine.runner import tokens_of
from ktops_engine.types import Batch


class StepTensors:
    """The tensors of a step of fixed size; always at the same addresses, as a captured graph wants.

    The integers (positions and cache rows of tokens, lengths and blocks of sequences) cross to the
    GPU in one copy, the embeddings in another.
    """

    def __init__(
        self, model: HybridModel, cache: LatentCache, num_tokens: int, num_sequences: int
    ) -> None:
        self._model = model
        self._block_size = cache.block_size
        max_blocks = cache.num_blocks
        device, is_cuda = model.device, model.device.type == "cuda"
        num_integers = 2 * num_tokens + num_sequences * (1 + max_blocks)
        self._host_integers = torch.zeros(num_integers, dtype=torch.int32, pin_memory=is_cuda)
        self._host_x = torch.zeros(num_tokens, model.hidden_size, pin_memory=is_cuda)
        self._integers = torch.zeros(num_integers, dtype=torch.int32, device=device)
        self._x = torch.zeros(num_tokens, model.hidden_size, device=device)
        self._num_tokens, self._num_sequences = num_tokens, num_sequences
        self._host = self._parts(self._host_integers)
        self._host[2].fill_(1)  # as if every sequence had its first token in block 0

    def fill(self, batch: Batch) -> None:
        """Take the tokens of a batch of this size; the copies are ordered before what is launched
        next."""
        token_ids: list[int] = []
        positions, slots, lengths, tables = (part.numpy() for part in self._host)
        size = self._block_size
        for i, item in enumerate(batch.items):
            end = item.start + item.num_tokens
            blocks = np.asarray(item.request.block_table, np.int32)
            lengths[i] = end
            tables[i, : len(blocks)] = blocks
            rows = slice(len(token_ids), len(token_ids) + item.num_tokens)
            at = np.arange(item.start, end, dtype=np.int32)
            positions[rows] = at
            slots[rows] = blocks[at // size] * size + at % size
            token_ids += tokens_of(item)
        self._model.embed(token_ids, self._host_x)
        self._integers.copy_(self._host_integers, non_blocking=True)
        self._x.copy_(self._host_x, non_blocking=True)

    def step(self, num_tokens: Sequence[int], starts: Sequence[int]) -> GpuStep:
        """The step over the tensors; how many tokens each sequence has in it, and from where."""
        positions, slots, lengths, block_tables = self._parts(self._integers)
        return GpuStep(
            x=self._x,
            positions=positions,
            slots=slots,
            lengths=lengths,
            block_tables=block_tables,
            num_tokens=tuple(num_tokens),
            starts=tuple(starts),
        )

    def _parts(self, integers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens, sequences = self._num_tokens, self._num_sequences
        sizes = (tokens, tokens, sequences, integers.numel() - 2 * tokens - sequences)
        positions, slots, lengths, blocks = torch.split(integers, list(sizes))
        return positions, slots, lengths, blocks.view(sequences, -1)
