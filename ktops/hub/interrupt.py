"""Signals that wait for a safe place.

An exception that a signal handler raises is lost when it lands in a destructor or a callback of a
library: Python prints it or drops it, and the program goes on. Here the handler only notes the
signal, and the loop that waits for the work raises where nothing can swallow it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Hold SIGINT and SIGTERM back; the value, when called, does what the first one would do.

    A second signal acts at once. Signals that the process ignores or that have no Python handler
    stay as they are; away from the main thread nothing changes.
    """
    received: list[Callable[[], object]] = []

    def act() -> None:
        if received:
            received[0]()

    if threading.current_thread() is not threading.main_thread():
        yield act
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def note(number: int, frame: object) -> None:
        handler = previous[signal.Signals(number)]
        if not callable(handler):
            return
        if received:
            handler(number, None)
        received.append(lambda: handler(number, None))

    handled = [number for number, handler in previous.items() if callable(handler)]
    for number in handled:
        signal.signal(number, note)
    try:
        yield act
    finally:
        for number in handled:
            signal.signal(number, previous[number])
        act()  # one that came when the work had just ended
