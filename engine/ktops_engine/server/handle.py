"""The server's view of its engine: loading, ready or draining, and the calls in flight."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Literal, Protocol

from ktops_engine.errors import KtopsError
from ktops_engine.server.errors import (
    RETRY_LOADING_S,
    RETRY_STUCK_S,
    ApiError,
    draining,
    engine_dead,
    unavailable,
)
from ktops_engine.stats import EngineStats
from ktops_engine.text import text
from ktops_engine.tokenizer import Tokenizer
from ktops_engine.types import SamplingParams, StepOutput

State = Literal["loading", "ready", "draining"]


class Engine(Protocol):
    """The part of `LLM` that the server uses."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def is_alive(self) -> bool: ...
    @property
    def dead_reason(self) -> str | None: ...
    @property
    def stuck_reason(self) -> str | None: ...
    def stats(self) -> EngineStats: ...
    def submit(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        on_output: Callable[[StepOutput], None],
    ) -> str: ...
    def abort(self, request_id: str) -> None: ...
    def shutdown(self) -> None: ...


class Call(Protocol):
    """An answer being written, which the end of the server can cut short."""

    def fail(self, error: ApiError) -> None: ...


class ModelHandle:
    """Starts as "loading"; the thread that loads calls `set_ready`.

    The state may be read and set from any thread. The calls in flight belong to the event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may interrupt its holder
        self._engine: Engine | None = None
        self._num_stops = 0
        self._on_stop: Callable[[int], None] | None = None
        self._calls: set[Call] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def state(self) -> State:
        with self._lock:
            if self._num_stops:
                return "draining"
            return "loading" if self._engine is None else "ready"

    def set_ready(self, engine: Engine) -> None:
        """The engine answers from now on."""
        with self._lock:
            self._engine = engine

    @property
    def loaded_engine(self) -> Engine | None:
        """The engine, whatever its state; None while it is loading."""
        with self._lock:
            return self._engine

    def engine(self) -> Engine:
        """The engine, if a new request may use it now. Raises ApiError 503 or 500."""
        with self._lock:
            engine, num_stops = self._engine, self._num_stops
        if num_stops:
            raise draining()
        if engine is None:
            raise unavailable(
                "The model is still loading.",
                code="model_loading",
                retry_after_s=RETRY_LOADING_S,
            )
        if not engine.is_alive:
            raise engine_dead(engine.dead_reason)
        if (reason := engine.stuck_reason) is not None:
            raise unavailable(
                f"The engine does not answer: {reason}",
                code="engine_stuck",
                retry_after_s=RETRY_STUCK_S,
            )
        return engine

    def check_stop(self) -> None:
        """Raises KtopsError "interrupted" once the server is told to stop: ends a long load."""
        if self.state == "draining":
            raise KtopsError(
                "interrupted", text("Stopped while the model was loading."), "ktops serve"
            )

    def request_stop(self) -> None:
        """What a first signal does: no new requests, and the server ends when those in flight have.

        Asked again, it ends at once, as after a second signal. Callable from any thread.
        """
        with self._lock:
            self._num_stops += 1
            num_stops, on_stop = self._num_stops, self._on_stop
        if on_stop is not None:
            on_stop(num_stops)

    def on_stop(self, callback: Callable[[int], None] | None) -> None:
        """Have `callback` called with the number of stops asked for, those before now included."""
        with self._lock:
            self._on_stop = callback
            num_stops = self._num_stops
        if callback is not None and num_stops:
            callback(num_stops)

    def add_call(self, call: Call) -> None:
        self._calls.add(call)
        self._idle.clear()

    def remove_call(self, call: Call) -> None:
        """Idempotent."""
        self._calls.discard(call)
        if not self._calls:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when no call is in flight."""
        await self._idle.wait()

    def fail_calls(self, error: ApiError) -> None:
        """End every call in flight with `error`."""
        for call in tuple(self._calls):
            call.fail(error)

    def shutdown(self) -> None:
        """Stop the engine, if there is one."""
        with self._lock:
            engine = self._engine
        if engine is not None:
            engine.shutdown()
