"""When the engine's thread hands out what it has computed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ktops_engine.kv_cache import BlockPool
from ktops_engine.loop import EngineLoop
from ktops_engine.scheduler import Scheduler, SchedulerLimits
from ktops_engine.types import Batch, FinishReason, Request, Sampled, SamplingParams, StepOutput


class Runner:
    """Draws 9s, and notes how many outputs the listener had before and after `meanwhile`."""

    def __init__(self, *, calls_back: bool) -> None:
        self.outputs: list[StepOutput] = []
        self.ended = threading.Event()
        self.seen: list[tuple[int, int]] = []
        self._calls_back = calls_back

    def run(self, batch: Batch, meanwhile: Callable[[], None]) -> list[Sampled]:
        before = len(self.outputs)
        if self._calls_back:
            meanwhile()
        self.seen.append((before, len(self.outputs)))
        return [Sampled(9) for item in batch.items if item.samples]

    def listen(self, output: StepOutput) -> None:
        self.outputs.append(output)
        if output.finish_reason is not None:
            self.ended.set()


@pytest.fixture
def run_three_tokens():
    loops = []

    def run(runner: Runner) -> None:
        limits = SchedulerLimits(64, prefill_chunk=16, max_running=1, max_waiting=1)
        loop = EngineLoop(Scheduler(BlockPool(16, block_size=4), limits, [1]), runner)
        loops.append(loop)
        loop.submit(Request("a", [5, 6], SamplingParams(max_tokens=3)), runner.listen)
        assert runner.ended.wait(60)

    yield run
    for loop in loops:
        loop.shutdown()


def test_outputs_are_delivered_while_the_next_step_runs_and_the_last_at_once(run_three_tokens):
    runner = Runner(calls_back=True)
    run_three_tokens(runner)
    assert runner.seen == [(0, 0), (0, 1), (1, 2)]
    assert [output.token_id for output in runner.outputs] == [9, 9, 9]


def test_outputs_that_a_step_did_not_let_through_come_with_the_last(run_three_tokens):
    runner = Runner(calls_back=False)
    run_three_tokens(runner)
    assert runner.seen == [(0, 0)] * 3
    assert [output.token_id for output in runner.outputs] == [9, 9, 9]
    assert runner.outputs[-1].finish_reason is FinishReason.LENGTH
