"""One HTTP call's sequences on the engine, brought from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ktops_engine.errors import KtopsError
from ktops_engine.server.errors import ApiError, engine_dead, engine_failed, from_engine
from ktops_engine.server.handle import Engine, ModelHandle
from ktops_engine.server.metrics import Metrics, RequestWatch
from ktops_engine.types import FinishReason, SamplingParams, StepOutput

LIVENESS_S = 2.0  # how soon a client learns of an engine that died without a word


@dataclass(frozen=True)
class Job:
    """One sequence to generate."""

    prompt_token_ids: list[int]
    params: SamplingParams


class Generation:
    """The running jobs of one call. Belongs to the event loop it was started on.

    `close` must be called, however the call ends: it aborts what still runs.
    """

    def __init__(self, handle: ModelHandle, engine: Engine, metrics: Metrics) -> None:
        self._handle = handle
        self._engine = engine
        self._metrics = metrics
        self._watches: list[RequestWatch] = []
        self._loop = asyncio.get_running_loop()
        self._request_ids: list[str] = []
        self._open: set[int] = set()
        self._outputs: deque[tuple[int, StepOutput]] = deque()
        self._error: ApiError | None = None
        self._news = asyncio.Event()

    @classmethod
    def start(cls, handle: ModelHandle, jobs: Sequence[Job], metrics: Metrics) -> Generation:
        """Submit all jobs or, when one is refused, none. Raises ApiError."""
        generation = cls(handle, handle.engine(), metrics)
        try:
            for job in jobs:
                generation._submit(job)
        except BaseException as error:
            generation.close()
            if isinstance(error, KtopsError):
                raise from_engine(error) from error
            raise
        handle.add_call(generation)
        return generation

    def _submit(self, job: Job) -> None:
        index = len(self._request_ids)
        clock = self._metrics.clock
        watch = self._metrics.watch(len(job.prompt_token_ids))

        def on_output(output: StepOutput) -> None:  # on the engine's thread
            # RuntimeError: the loop is closed, nobody listens any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._receive, index, output, clock())

        request_id = self._engine.submit(job.prompt_token_ids, job.params, on_output)
        self._request_ids.append(request_id)
        self._watches.append(watch)
        self._open.add(index)

    def _receive(self, index: int, output: StepOutput, at: float) -> None:
        if index in self._open:
            self._watches[index].output(output, at)
            self._outputs.append((index, output))
            self._news.set()

    async def next(self) -> tuple[int, StepOutput] | None:
        """The next step of any job, with the job's index; None when all have ended.

        Raises ApiError when the engine failed or the server cuts the call short.
        """
        while True:
            if self._error is not None:
                raise self._error
            while self._outputs:
                index, output = self._outputs.popleft()
                if index in self._open:  # a job ended by its stop string may still have sent some
                    return index, self._check(index, output)
            if not self._open:
                return None
            await self._wait()

    async def _wait(self) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(LIVENESS_S):
                await self._news.wait()
        except TimeoutError:
            if not self._engine.is_alive and not self._outputs:
                raise engine_dead(self._engine.dead_reason) from None

    def _check(self, index: int, output: StepOutput) -> StepOutput:
        if output.finish_reason is not None:
            self._open.discard(index)
        if output.finish_reason is FinishReason.ERROR:
            if not self._engine.is_alive:
                raise engine_dead(self._engine.dead_reason or output.error)
            raise engine_failed(output.error or "The engine could not finish this request.")
        if output.finish_reason is FinishReason.ABORT:
            raise engine_failed("The engine ended this request.", code="request_aborted")
        return output

    def finish(self, index: int) -> None:
        """End one job early: its text is complete."""
        self._end(index, FinishReason.STOP)

    def _end(self, index: int, reason: FinishReason) -> None:
        if index in self._open:
            self._open.discard(index)
            self._watches[index].end(reason)
            self._engine.abort(self._request_ids[index])

    def fail(self, error: ApiError) -> None:
        """Make `next` raise `error`."""
        self._error = error
        self._news.set()

    def close(self) -> None:
        """Abort the jobs that still run. Idempotent."""
        for index in tuple(self._open):
            self._end(index, FinishReason.ABORT)
        self._handle.remove_call(self)
