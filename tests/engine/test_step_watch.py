"""Steps that do not end are noticed, said once, and forgotten when they end after all."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from ktops_engine.kv_cache import BlockPool
from ktops_engine.loop import EngineLoop
from ktops_engine.scheduler import Scheduler, SchedulerLimits
from ktops_engine.step_watch import StepWatch
from ktops_engine.types import Request, Sampled, SamplingParams

PATIENCE_S = 60


class Said(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.came.set()


@pytest.fixture
def said():
    handler, logger = Said(), logging.getLogger("ktops_engine.step_watch")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def test_a_step_within_the_limit_is_none_of_its_business(said):
    now = [0.0]
    watch = StepWatch(limit_s=0.02, clock=lambda: now[0])
    with watch.step():
        now[0] = 0.019
        assert watch.stuck_reason is None
    now[0] = 1e6  # between steps nothing is to be done
    assert watch.stuck_reason is None
    watch.close()
    watch.close()
    assert said.lines == []


def test_a_step_that_does_not_end_is_said_once_with_what_to_do(said):
    now = [0.0]
    watch = StepWatch(limit_s=0.02, clock=lambda: now[0])
    for count in (1, 2):
        with watch.step():
            now[0] += 700.4
            assert said.came.wait(PATIENCE_S)
            assert "running for 700 s" in watch.stuck_reason
            said.came.clear()
            assert not said.came.wait(0.02)
        assert watch.stuck_reason is None
        assert len(said.lines) == count
    watch.close()
    assert f"/proc/{os.getpid()}/task/*/status" in said.lines[0]
    assert f"kill -9 {os.getpid()}" in said.lines[0]


def test_a_loop_whose_runner_waits_forever_says_so_until_it_goes_on(said, monkeypatch):
    monkeypatch.setattr("ktops_engine.loop.StepWatch", lambda: StepWatch(limit_s=0.02))
    held, ended = threading.Event(), threading.Event()

    class Runner:
        def run(self, batch, meanwhile):
            assert held.wait(PATIENCE_S)
            return [Sampled(9)]

    limits = SchedulerLimits(64, prefill_chunk=16, max_running=1, max_waiting=1)
    loop = EngineLoop(Scheduler(BlockPool(16, block_size=4), limits, [1]), Runner())
    assert loop.stuck_reason is None
    loop.submit(Request("a", [5, 6], SamplingParams(max_tokens=1)), lambda output: ended.set())
    assert said.came.wait(PATIENCE_S)
    assert loop.stuck_reason is not None
    held.set()
    assert ended.wait(PATIENCE_S)
    assert loop.stuck_reason is None
    loop.shutdown()
