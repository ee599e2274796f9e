"""What benchmarks time of answers."""

from __future__ import annotations

import time

import pytest
from answer_times import answer_times, batch_rate

from ktops_engine import LLM, EngineConfig, KtopsError
from ktops_engine.config import DummyWeights
from ktops_engine.demo import demo_path

DEMO = EngineConfig(
    demo_path(), demo_path(), ctx_size=64, max_running=3, max_waiting=0, dummy=DummyWeights()
)


@pytest.fixture
def llm(native_build):
    llm = LLM.load(DEMO)
    yield llm
    llm.shutdown()


def test_an_answer_has_a_time_for_its_first_token_and_one_for_each_other(llm):
    first, gaps = answer_times(llm, [5, 6, 7], 5)
    assert first > 0
    assert len(gaps) == 4


def test_answers_together_have_one_rate_and_leave_nothing_behind(llm):
    began = time.perf_counter()
    rate = batch_rate(llm, [[5, 6, 7], [8, 9], [10]], 8)
    passed = time.perf_counter() - began
    assert rate > 3 / passed
    deadline = time.monotonic() + 10
    while llm.num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert llm.num_running == 0


def test_a_prompt_that_does_not_fit_is_no_time(llm):
    with pytest.raises(KtopsError, match="the prompt has 64 tokens"):
        batch_rate(llm, [[5] * 64], 8)
