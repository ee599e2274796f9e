"""Who runs next: admits waiting requests when the cache has room and picks each step's batch.

Knows token ids and cache blocks; knows no tensors, no text and no threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from ktops_engine.errors import KtopsError
from ktops_engine.kv_cache import BlockPool
from ktops_engine.text import text
from ktops_engine.types import (
    Batch,
    BatchItem,
    FinishReason,
    Request,
    Sampled,
    StepOutput,
)


@dataclass(frozen=True)
class SchedulerLimits:
    """`max_model_len`: tokens one request may span; `prefill_chunk`: prompt tokens a step computes;
    `max_running`, `max_waiting`: requests in flight and in the queue."""

    max_model_len: int
    prefill_chunk: int
    max_running: int
    max_waiting: int


class Scheduler:
    """First come, first served. A request is admitted once every block it may ever need is free,
    so that a running request never has to give way."""

    def __init__(
        self,
        pool: BlockPool,
        limits: SchedulerLimits,
        eos_token_ids: Sequence[int],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._eos_token_ids = frozenset(eos_token_ids)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._clock = clock

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache."""
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no request holds."""
        return self._pool.num_free

    def add(self, request: Request) -> None:
        """Queue a request. Raises KtopsError: queue-full."""
        about_to_run = self._limits.max_running - len(self._running)
        if len(self._waiting) >= self._limits.max_waiting + about_to_run:
            raise KtopsError(
                "queue-full",
                text("{count} requests are waiting already", count=len(self._waiting)),
                text("try again later"),
            )
        request.arrived_at = self._clock()
        self._waiting.append(request)

    def remove(self, request_id: str) -> bool:
        """Forget a request wherever it is and free its blocks; false when it is not here."""
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                return True
        for request in self._running:
            if request.id == request_id:
                self._release(request)
                return True
        return False

    def remove_all(self) -> list[str]:
        """Forget every request; their ids."""
        ids = [request.id for request in (*self._running, *self._waiting)]
        for request_id in ids:
            self.remove(request_id)
        return ids

    def next_batch(self) -> Batch | None:
        """All running decodes and one chunk of the first unfinished prompt; None: nothing to do."""
        self._admit()
        items, chunk_taken = [], False
        for request in self._running:
            pending = request.num_tokens - request.num_computed_tokens
            if pending > 1:
                if chunk_taken:
                    continue
                chunk_taken = True
            num_tokens = min(pending, self._limits.prefill_chunk)
            items.append(
                BatchItem(
                    request, request.num_computed_tokens, num_tokens, samples=num_tokens == pending
                )
            )
        return Batch(tuple(items)) if items else None

    def update(self, batch: Batch, sampled: Sequence[Sampled]) -> list[StepOutput]:
        """Record what a step computed; `sampled` has one entry for each item that samples.

        A request that was removed while the step ran gets no output.
        """
        outputs, answers = [], iter(sampled)
        for item in batch.items:
            answer = next(answers) if item.samples else None
            if item.request not in self._running:
                continue
            item.request.num_computed_tokens += item.num_tokens
            if answer is not None:
                outputs.append(self._record(item.request, answer))
        return outputs

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._limits.max_running:
            request = self._waiting[0]
            num_blocks = self._pool.blocks_for(self._max_tokens(request))
            if not self._pool.can_allocate(num_blocks):
                return
            self._waiting.popleft()
            request.queue_seconds = self._clock() - request.arrived_at
            request.block_table = self._pool.allocate(num_blocks)
            self._running.append(request)

    def _max_tokens(self, request: Request) -> int:
        limit = self._limits.max_model_len
        if request.params.max_tokens is None:
            return limit
        return min(limit, len(request.prompt_token_ids) + request.params.max_tokens)

    def _record(self, request: Request, answer: Sampled) -> StepOutput:
        if answer.token_id is None:
            reason: FinishReason | None = FinishReason.ERROR
        else:
            request.output_token_ids.append(answer.token_id)
            reason = self._finish_reason(request, answer.token_id)
        if reason is not None:
            self._release(request)
        return StepOutput(
            request.id, answer.token_id, answer.logprobs, reason, answer.error,
            request.num_cached_tokens, request.queue_seconds,
        )  # fmt: skip

    def _finish_reason(self, request: Request, token_id: int) -> FinishReason | None:
        params = request.params
        if len(request.output_token_ids) >= params.min_tokens and (
            (token_id in self._eos_token_ids and not params.ignore_eos)
            or token_id in params.stop_token_ids
        ):
            return FinishReason.STOP
        if request.num_tokens >= self._max_tokens(request):
            return FinishReason.LENGTH
        return None

    def _release(self, request: Request) -> None:
        """End a request. Its block table stays: a step that runs meanwhile still reads it, and the
        blocks go to nobody else before that step is over."""
        self._running.remove(request)
        self._pool.release(request.block_table)
