"""What a step reads on the GPU is what its batch says, in whatever order steps come."""

from __future__ import annotations

import random

import pytest
import torch

from ktops_engine.kv_cache import LatentCache
from ktops_engine.step_tensors import StepTensors
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

HIDDEN, BLOCK_SIZE, NUM_BLOCKS = 8, 4, 12


class Embedding:
    """The embedding of token t is t, t, ..., t."""

    hidden_size = HIDDEN

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def embed(self, token_ids: list[int], out: torch.Tensor) -> None:
        out.copy_(torch.tensor(token_ids, dtype=torch.float32)[:, None].expand(-1, HIDDEN))


@pytest.fixture
def new_tensors(device):
    cache = LatentCache(1, NUM_BLOCKS, BLOCK_SIZE, 8, torch.float32, torch.device(device))
    return lambda tokens, sequences: StepTensors(Embedding(device), cache, tokens, sequences)


def item(blocks: list[int], start: int, num_tokens: int = 1, num_prompt: int = 20) -> BatchItem:
    request = Request("r", list(range(100, 100 + num_prompt)), SamplingParams(), block_table=blocks)
    request.output_token_ids = list(range(500, 500 + 30))
    return BatchItem(request, start, num_tokens, samples=True)


def check(tensors: StepTensors, *items: BatchItem) -> None:
    """Fill, send, and compare with what the batch says, token by token."""
    tensors.fill(Batch(items))
    tensors.send()
    step = tensors.step([each.num_tokens for each in items], [each.start for each in items])
    row = 0
    for sequence, each in enumerate(items):
        table = each.request.block_table
        assert step.block_tables[sequence, : len(table)].tolist() == table
        assert step.lengths[sequence] == each.start + each.num_tokens
        for position in range(each.start, each.start + each.num_tokens):
            assert step.positions[row] == position
            slot = table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
            assert step.slots[row] == slot
            assert step.x[row].tolist() == [each.request.token_ids[position]] * HIDDEN
            row += 1
    assert row == len(step.x)


def test_a_prompt_and_pieces_of_it_are_laid_out(new_tensors):
    check(new_tensors(20, 1), item([7, 2, 9, 0, 4], 0, 20))
    check(new_tensors(5, 1), item([7, 2, 9, 0, 4], 6, 5))


def test_a_piece_of_a_prompt_beside_single_tokens_is_laid_out(new_tensors):
    check(new_tensors(9, 3), item([1, 2], 7), item([3, 4, 5], 2, 7), item([6] * 6, 21))


def test_sequences_come_and_go_in_the_tensors_of_a_graph(new_tensors):
    tensors = new_tensors(2, 2)
    first, second = item([3, 1, 8, 5, 7, 2], 20), item([11], 2)
    check(tensors, first, second)
    check(tensors, first, item([9, 10, 6], 9))  # another one in the second's place
    check(tensors, second, first)


def test_a_block_table_that_grows_is_followed(new_tensors):
    tensors = new_tensors(1, 1)
    growing = item([5], 0)
    for start in range(24):
        if start % BLOCK_SIZE == 0 and start:
            growing.request.block_table.append(random.randrange(NUM_BLOCKS))
        check(tensors, BatchItem(growing.request, start, 1, samples=True))


def test_before_the_first_step_every_sequence_reads_block_0_and_writes_to_no_row(new_tensors):
    step = new_tensors(3, 3).step((1, 1, 1), (0, 0, 0))
    assert step.lengths.tolist() == [1, 1, 1]
    assert step.slots.tolist() == [-1, -1, -1]
    for tensor in (step.x, step.positions, step.block_tables):
        assert not tensor.any()
