"""What one step of the hybrid model reads, in pinned memory and on the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ktops_engine.kv_cache import LatentCache
from ktops_engine.models.deepseek2_gpu import GpuStep, HybridModel
from ktops_engine.runner import tokens_of
from ktops_engine.types import Batch, BatchItem


class StepTensors:
    """The tensors of a step of fixed size; always at the same addresses, as a captured graph wants.

    Embeddings and integers (positions and cache rows of tokens, lengths and blocks of sequences)
    lie in one block, which crosses to the GPU in one copy: `fill` writes it, `send` copies it.
    Until then a step may run to compile what it needs: it writes to no row of the cache.
    """

    def __init__(
        self, model: HybridModel, cache: LatentCache, num_tokens: int, num_sequences: int
    ) -> None:
        self._model = model
        self._block_size = cache.block_size
        self._num_tokens, self._num_sequences = num_tokens, num_sequences
        max_blocks = cache.num_blocks
        device, is_cuda = model.device, model.device.type == "cuda"
        num_values = num_tokens * model.hidden_size
        num_words = num_values + 2 * num_tokens + num_sequences * (1 + max_blocks)
        self._host = torch.empty(num_words, dtype=torch.int32, pin_memory=is_cuda)
        self._host_x, *integers = self._parts(self._host)
        self._positions, self._slots, self._lengths, self._tables = (
            part.numpy() for part in integers
        )
        self._host[num_values:].zero_()
        self._slots.fill(-1)  # no row: another sequence may have any of them
        self._lengths.fill(1)  # as if every sequence read the first token of block 0
        self._device = torch.zeros(num_words, dtype=torch.int32, device=device)
        self._device[num_values:] = self._host[num_values:].to(device)
        # The block table that each row of `_tables` has, and how many of its blocks.
        self._written: list[tuple[list[int], int]] = [([], 0)] * num_sequences

    def fill(self, batch: Batch) -> None:
        """Take the tokens of a batch of this size. The block table of a request may grow from one
        step to the next; what stands in it stays."""
        token_ids: list[int] = []
        for sequence, item in enumerate(batch.items):
            self._write_blocks(sequence, item.request.block_table)
            self._lengths[sequence] = item.start + item.num_tokens
            self._write_rows(len(token_ids), item)
            token_ids += tokens_of(item)
        self._model.embed(token_ids, self._host_x)

    def send(self) -> None:
        """Queue the copy to the GPU, before what is launched next."""
        self._device.copy_(self._host, non_blocking=True)

    def back_to_host(self, x: torch.Tensor) -> torch.Tensor:
        """x of all tokens or fewer, for the CPU to go on with: valid from when the stream has done
        its work until the next `fill`."""
        return self._host_x[: len(x)].copy_(x, non_blocking=True)

    def step(self, num_tokens: Sequence[int], starts: Sequence[int]) -> GpuStep:
        """The step over the tensors; how many tokens each sequence has in it, and from where."""
        x, positions, slots, lengths, block_tables = self._parts(self._device)
        return GpuStep(
            x=x,
            positions=positions,
            slots=slots,
            lengths=lengths,
            block_tables=block_tables,
            num_tokens=tuple(num_tokens),
            starts=tuple(starts),
        )

    def _write_blocks(self, sequence: int, table: list[int]) -> None:
        """Blocks of the sequence that are not there already."""
        held, count = self._written[sequence]
        first = count if held is table else 0
        if first < len(table):
            self._tables[sequence, first : len(table)] = table[first:]
        self._written[sequence] = table, len(table)

    def _write_rows(self, row: int, item: BatchItem) -> None:
        """Positions and cache rows of the tokens of a sequence, from `row` on."""
        size, table, start = self._block_size, item.request.block_table, item.start
        if item.num_tokens == 1:  # single numbers are quicker than arrays of one
            self._positions[row] = start
            self._slots[row] = table[start // size] * size + start % size
            return
        rows = slice(row, row + item.num_tokens)
        at = np.arange(start, start + item.num_tokens, dtype=np.int32)
        self._positions[rows] = at
        self._slots[rows] = np.asarray(table, np.int32)[at // size] * size + at % size

    def _parts(self, block: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views: x, positions, slots, lengths, block tables (`GpuStep`)."""
        tokens, sequences = self._num_tokens, self._num_sequences
        num_x = tokens * self._model.hidden_size
        sizes = [num_x, tokens, tokens, sequences]
        x, positions, slots, lengths, blocks = torch.split(
            block, [*sizes, block.numel() - sum(sizes)]
        )
        x = x.view(torch.float32).view(tokens, -1)
        return x, positions, slots, lengths, blocks.view(sequences, -1)
