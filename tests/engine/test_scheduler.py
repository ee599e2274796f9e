"""The scheduler's promises, on token ids alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktops_engine.errors import KtopsError
from ktops_engine.kv_cache import BlockPool
from ktops_engine.scheduler import Sampled, Scheduler, SchedulerLimits
from ktops_engine.types import FinishReason, Request, SamplingParams, StepOutput

EOS = 1


def make(max_running=1, max_waiting=8, chunk=16, max_model_len=64, num_blocks=None):
    pool = BlockPool(num_blocks or max_running * max_model_len // 4, block_size=4)
    limits = SchedulerLimits(max_model_len, chunk, max_running, max_waiting)
    return Scheduler(pool, limits, [EOS]), pool


def request(name, num_prompt=5, **params):
    return Request(name, list(range(10, 10 + num_prompt)), SamplingParams(**params))


def run(scheduler, token_for=lambda request: 9) -> list[StepOutput]:
    outputs = []
    while batch := scheduler.next_batch():
        sampled = [Sampled(token_for(item.request)) for item in batch.items if item.samples]
        outputs += scheduler.update(batch, sampled)
    return outputs


def test_a_long_prompt_is_computed_in_chunks_and_sampled_once_at_its_end():
    scheduler, _ = make(chunk=16)
    scheduler.add(request("a", num_prompt=40, max_tokens=1))
    spans = []
    while batch := scheduler.next_batch():
        (item,) = batch.items
        spans.append((item.start, item.num_tokens, item.samples))
        scheduler.update(batch, [Sampled(9)] if item.samples else [])
    assert spans == [(0, 16, False), (16, 16, False), (32, 8, True)]


def test_requests_run_in_the_order_they_came_when_one_may_run():
    scheduler, _ = make()
    for name in "abc":
        scheduler.add(request(name, max_tokens=2))
    assert [output.request_id for output in run(scheduler)] == list("aabbcc")


def test_running_decodes_share_a_step_with_one_chunk_of_a_prompt():
    scheduler, _ = make(max_running=3, chunk=16)
    scheduler.add(request("a"))
    scheduler.update(scheduler.next_batch(), [Sampled(9)])
    scheduler.add(request("b", num_prompt=30))
    scheduler.add(request("c", num_prompt=30))
    batch = scheduler.next_batch()
    assert [(item.request.id, item.num_tokens) for item in batch.items] == [("a", 1), ("b", 16)]


@pytest.mark.parametrize(
    ("params", "token", "reason", "count"),
    [
        ({"max_tokens": 3}, 9, FinishReason.LENGTH, 3),
        ({}, EOS, FinishReason.STOP, 1),
        ({"stop_token_ids": (9,)}, 9, FinishReason.STOP, 1),
        ({"ignore_eos": True, "max_tokens": 4}, EOS, FinishReason.LENGTH, 4),
        ({"min_tokens": 3}, EOS, FinishReason.STOP, 3),
        ({}, 9, FinishReason.LENGTH, 64 - 5),
    ],
)
def test_a_request_ends_for_the_right_reason(params, token, reason, count):
    scheduler, pool = make()
    scheduler.add(request("a", **params))
    outputs = run(scheduler, lambda _: token)
    assert len(outputs) == count
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (count - 1)
    assert outputs[-1].finish_reason == reason
    assert pool.num_free == pool.num_blocks


def test_a_full_queue_refuses_and_keeps_what_it_has():
    scheduler, _ = make(max_waiting=2)
    scheduler.add(request("runs"))
    scheduler.add(request("a"))
    scheduler.add(request("b"))
    with pytest.raises(KtopsError) as caught:
        scheduler.add(request("c"))
    assert caught.value.code == "queue-full"
    scheduler.next_batch()
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    with pytest.raises(KtopsError):
        scheduler.add(request("c"))


def test_a_request_waits_until_the_cache_has_room_for_all_it_may_need():
    scheduler, _ = make(max_running=4, num_blocks=16)
    scheduler.add(request("a"))  # no limit: the whole context, all sixteen blocks
    scheduler.add(request("b", max_tokens=1))
    batch = scheduler.next_batch()
    assert [item.request.id for item in batch.items] == ["a"]
    assert scheduler.num_waiting == 1


def test_a_step_can_still_read_the_blocks_of_a_request_removed_during_it():
    scheduler, pool = make()
    scheduler.add(request("a", num_prompt=10))
    (item,) = scheduler.next_batch().items
    scheduler.remove("a")
    assert len(item.request.block_table) >= pool.blocks_for(item.start + item.num_tokens)
    assert pool.num_free == pool.num_blocks


def test_a_request_removed_during_its_step_gets_no_output():
    scheduler, pool = make(max_running=2)
    scheduler.add(request("a", max_tokens=4))
    scheduler.add(request("b", max_tokens=4))
    scheduler.update(scheduler.next_batch(), [Sampled(9)])
    batch = scheduler.next_batch()
    assert scheduler.remove("a")
    assert not scheduler.remove("a")
    outputs = scheduler.update(batch, [Sampled(9)] * len(batch.items))
    assert [output.request_id for output in outputs] == ["b"]
    assert scheduler.remove_all() == ["b"]
    assert pool.num_free == pool.num_blocks


def test_a_failed_sample_ends_its_request_with_the_error():
    scheduler, pool = make()
    scheduler.add(request("a"))
    (output,) = scheduler.update(scheduler.next_batch(), [Sampled(None, error="not finite")])
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, "not finite")
    assert pool.num_free == pool.num_blocks


@given(
    prompts=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=8),
    max_running=st.integers(1, 4),
    chunk=st.integers(1, 24),
)
def test_every_request_gets_its_tokens_whatever_else_runs(prompts, max_running, chunk):
    scheduler, pool = make(max_running=max_running, chunk=chunk)
    for i, (num_prompt, max_tokens) in enumerate(prompts):
        scheduler.add(request(str(i), num_prompt=num_prompt, max_tokens=max_tokens))
    outputs = run(scheduler)
    for i, (num_prompt, max_tokens) in enumerate(prompts):
        mine = [output for output in outputs if output.request_id == str(i)]
        assert len(mine) == min(max_tokens, 64 - num_prompt)
        assert [bool(output.finish_reason) for output in mine] == [False] * (len(mine) - 1) + [True]
    assert pool.num_free == pool.num_blocks
