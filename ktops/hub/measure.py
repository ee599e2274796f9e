"""Asks several hubs at once: do they answer, and how fast do their bytes come?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from ktops.hub.planning import DownloadPlan
from ktops.hub.remote import Hub
from ktops_engine.errors import KtopsError

SAMPLE_BYTES = 2 << 20
SAMPLE_S = 1.5

T = TypeVar("T")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What asking one hub gave: a value, an error, or neither when it stayed silent."""

    value: T | None = None
    error: Exception | None = None


def ask_all(hubs: Sequence[Hub], ask: Callable[[Hub], T], grace_s: float) -> list[Answer[T]]:
    """Call `ask` for all hubs at once; the answers in their order.

    Waits for as long as nobody has succeeded, then `grace_s` more. Raises what `ask` raises unless
    it is a KtopsError.
    """
    results: SimpleQueue[tuple[int, Answer[T]]] = SimpleQueue()

    def call(index: int, hub: Hub) -> None:
        try:
            results.put((index, Answer(value=ask(hub))))
        except Exception as error:  # noqa: BLE001 - the thread that waits judges it
            results.put((index, Answer(error=error)))

    for index, hub in enumerate(hubs):
        threading.Thread(target=call, args=(index, hub), daemon=True).start()
    answers: list[Answer[T]] = [Answer() for _ in hubs]
    deadline: float | None = None
    for _ in hubs:
        try:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            index, answer = results.get(timeout=timeout)
        except Empty:
            break
        if answer.error is not None and not isinstance(answer.error, KtopsError):
            raise answer.error
        answers[index] = answer
        if answer.error is None and deadline is None:
            deadline = time.monotonic() + grace_s
    return answers


def measure_all(plans: Sequence[DownloadPlan]) -> list[float]:
    """Bytes a second that each plan's hub sends, by reading a little; 0 for one that does not."""
    by_hub = {plan.hub: plan for plan in plans}
    answers = ask_all([plan.hub for plan in plans], lambda hub: _rate(by_hub[hub]), SAMPLE_S)
    return [answer.value or 0.0 for answer in answers]


def _rate(plan: DownloadPlan) -> float:
    """Read from the largest file for a moment. The wait for its first byte counts."""
    item = max(plan.items, key=lambda item: item.file.size)
    started = time.monotonic()
    received = 0
    sample = plan.hub.sample(item.listing, item.file, min(SAMPLE_BYTES, item.file.size))
    with closing(sample):
        for piece in sample:
            received += len(piece)
            if received >= SAMPLE_BYTES or time.monotonic() - started > SAMPLE_S:
                break
    return received / max(time.monotonic() - started, 1e-6)
