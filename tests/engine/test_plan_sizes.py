"""The buffers that the plan counts are those that the engine takes."""

from __future__ import annotations

import inspect

from ktops_engine.moe.expert_pairs import MAX_BATCH_PAIRS
from ktops_engine.moe.staging import NUM_BUFFERS
from ktops_engine.moe.streamed_experts import ExpertStream
from ktops_engine.plan.sizes import BATCH_PAIRS, STAGED_EXPERTS


def test_the_buffers_that_experts_stream_through_are_counted():
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(ExpertStream).parameters.items()
    }
    assert NUM_BUFFERS * given["group_experts"] + given["ahead_experts"] == STAGED_EXPERTS


def test_the_pairs_of_one_launch_are_counted():
    assert BATCH_PAIRS == MAX_BATCH_PAIRS
