"""The buffers that the plan counts are those that the engine takes."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import replace

import pytest
from planned_models import described

from ktops_engine.moe.expert_pairs import MAX_BATCH_PAIRS
from ktops_engine.moe.expert_stream import ExpertStream
from ktops_engine.moe.staging import NUM_BUFFERS
from ktops_engine.plan.sizes import BATCH_PAIRS, STAGED_EXPERTS, handed_bytes


def test_the_buffers_that_experts_stream_through_are_counted():
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(ExpertStream).parameters.items()
    }
    assert NUM_BUFFERS * given["group_experts"] + given["ahead_experts"] == STAGED_EXPERTS


def test_the_pairs_of_one_launch_are_counted():
    assert BATCH_PAIRS == MAX_BATCH_PAIRS


@pytest.mark.parametrize("hidden_size", [7168, 2048])
def test_pinned_memory_of_chunks_of_all_sizes_is_counted(hidden_size):
    model = replace(described().config, hidden_size=hidden_size)
    taken = Counter()
    for chunk in (5, 32, 512, 2048, 3000, 4096):  # torch keeps blocks of each power of two
        values, blocks = chunk * hidden_size, 8192 // 64
        for words in (values + 2 * chunk + 1 + blocks, values):
            size = 1 << (4 * words - 1).bit_length()
            taken[size] = max(taken[size], 1 + 2 * (words == values))
    total = sum(size * count for size, count in taken.items())
    assert total <= handed_bytes(model, 4096) < 2 * total
