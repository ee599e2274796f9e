"""The engine's thread: takes requests in, steps, hands every output to its request's listener."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from ktops_engine.errors import KtopsError
from ktops_engine.runner import Runner
from ktops_engine.scheduler import Scheduler
from ktops_engine.speed_meter import SpeedMeter, Speeds
from ktops_engine.stats import EngineStats, ExpertTraffic, StepCounts
from ktops_engine.step_watch import StepWatch
from ktops_engine.text import text
from ktops_engine.types import Batch, FinishReason, Request, Sampled, StepOutput

OnOutput = Callable[[StepOutput], None]

logger = logging.getLogger(__name__)


class EngineLoop:
    """Owns scheduler and runner. Every public method may be called from any thread."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._lock = threading.Lock()  # guards the scheduler and everything below
        self._wake = threading.Condition(self._lock)
        self._listeners: dict[str, OnOutput] = {}
        self._outbox: deque[tuple[OnOutput, StepOutput]] = deque()
        self._stopping = False
        self._dead_reason: str | None = None
        self._counts = StepCounts()
        self._meter = SpeedMeter()
        self._watch = StepWatch()
        self._thread = threading.Thread(target=self._run, name="ktops-engine", daemon=True)
        self._thread.start()

    @property
    def dead_reason(self) -> str | None:
        return self._dead_reason

    @property
    def stuck_reason(self) -> str | None:
        """Why nothing moves, None while something does or nothing is to be done."""
        return self._watch.stuck_reason

    @property
    def num_waiting(self) -> int:
        with self._lock:
            return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        with self._lock:
            return self._scheduler.num_running

    def stats(self, experts: ExpertTraffic) -> EngineStats:
        """What this loop does and has done; `experts` is what its model has read."""
        with self._lock:
            return EngineStats(
                num_running=self._scheduler.num_running,
                num_waiting=self._scheduler.num_waiting,
                num_blocks=self._scheduler.num_blocks,
                num_free_blocks=self._scheduler.num_free_blocks,
                steps=replace(self._counts),
                experts=experts,
            )

    def speeds(self) -> Speeds:
        """How fast this loop was with one request."""
        with self._lock:
            return self._meter.speeds()

    def submit(self, request: Request, on_output: OnOutput) -> None:
        """Queue a request. Raises KtopsError: queue-full, engine-dead."""
        with self._lock:
            if self._dead_reason is not None or self._stopping:
                raise KtopsError(
                    "engine-dead",
                    text(
                        "the engine has stopped: {reason}",
                        reason=self._dead_reason or text("it is shutting down"),
                    ),
                    text("restart it: ktops serve"),
                )
            if request.id in self._listeners:
                raise ValueError(f"request {request.id} is running already")
            self._scheduler.add(request)
            self._listeners[request.id] = on_output
            self._wake.notify()

    def abort(self, request_id: str) -> None:
        """End a request before the next step. Nothing happens when it has ended already."""
        with self._lock:
            if self._scheduler.remove(request_id):
                self._post(StepOutput(request_id, finish_reason=FinishReason.ABORT))
                self._wake.notify()

    def shutdown(self) -> None:
        """Abort every request, end the thread and wait for it."""
        with self._lock:
            self._stopping = True
            self._wake.notify()
        self._thread.join()
        self._watch.close()

    def _run(self) -> None:
        reason: str = text("it is shutting down")
        finish = FinishReason.ABORT
        try:
            while self._step():
                pass
        except Exception as error:  # whatever it was, waiting callers must hear of it
            logger.exception("a step failed; the engine stops")
            reason, finish = f"{type(error).__name__}: {error}", FinishReason.ERROR
        with self._lock:
            self._dead_reason = reason
            for request_id in self._scheduler.remove_all():
                self._post(StepOutput(request_id, finish_reason=finish, error=reason))
        self._deliver()

    def _step(self) -> bool:
        """Compute one batch and, while it runs, deliver what the one before gave; false once the
        loop is to end."""
        with self._lock:
            while not (self._stopping or self._outbox or self._scheduler.num_running
                       or self._scheduler.num_waiting):  # fmt: skip
                self._wake.wait()
            if self._stopping:
                return False
            batch = self._scheduler.next_batch()
        if batch is None:
            self._deliver()
            return True
        started = perf_counter()
        with self._watch.step():
            sampled = self._runner.run(batch, self._deliver)
        seconds = perf_counter() - started
        with self._lock:
            self._count(batch, sampled, seconds)
            for output in self._scheduler.update(batch, sampled):
                self._post(output)
        return True

    def _count(self, batch: Batch, sampled: list[Sampled], seconds: float) -> None:
        """Add one step to the counts (lock held)."""
        counts = self._counts
        in_prompt = [i for i in batch.items if i.start < len(i.request.prompt_token_ids)]
        counts.prompt_tokens += sum(item.num_tokens for item in in_prompt)
        counts.generation_tokens += sum(answer.token_id is not None for answer in sampled)
        if in_prompt:
            counts.prefill_seconds += seconds
        else:
            counts.decode_seconds += seconds
        self._meter.add(batch, sampled, seconds)

    def _post(self, output: StepOutput) -> None:
        """Queue an output for its listener (lock held); the last one ends the listening."""
        ended = output.finish_reason is not None
        listeners = self._listeners
        listener = listeners.pop(output.request_id) if ended else listeners[output.request_id]
        self._outbox.append((listener, output))

    def _deliver(self) -> None:
        """Call listeners without the lock, so that they may call back."""
        while self._outbox:
            listener, output = self._outbox.popleft()
            try:
                listener(output)
            except Exception:  # its fault must not stop other requests
                logger.exception("a listener of request %s failed", output.request_id)
