"""The HTTP server on a thread of its own, so that the main thread keeps the signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

    from ktops_engine.server import Address, Engine, ModelHandle

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class BackgroundServer:
    """Runs the engine's server. `start`, then `wait` for its end or `stop` it.

    Without `load` the handle must have its engine already. `grace_s` is the time that answers in
    flight get when the server stops. The listener is closed and the engine shut down at the end.
    """

    def __init__(
        self,
        app: FastAPI,
        handle: ModelHandle,
        listener: socket.socket,
        *,
        grace_s: float,
        load: Callable[[], Engine] | None = None,
        on_ready: Callable[[Address], None] | None = None,
    ) -> None:
        self._app = app
        self._handle = handle
        self._listener = listener
        self._grace_s = grace_s
        self._load = load
        self._on_ready = on_ready
        self._answers = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ktops-server", daemon=True)

    def start(self) -> None:
        """Start, and return when the port answers. Raises what the server failed with."""
        self._thread.start()
        self._answers.wait()
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Return when the server has ended. Raises what it, or loading, failed with."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ask the server to end, and wait for it. Nothing happens when it never started."""
        if self._thread.ident is not None:
            self._handle.request_stop()
            self._thread.join()

    def _run(self) -> None:
        from ktops_engine.server import run_server

        try:
            run_server(
                self._app,
                self._handle,
                self._listener,
                load=self._load,
                grace_s=self._grace_s,
                on_listening=lambda address: self._answers.set(),
                on_ready=self._on_ready,
            )
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._failure = error
        finally:
            self._answers.set()


@contextmanager
def signals_stop(
    handle: ModelHandle, on_first: Callable[[signal.Signals], None]
) -> Iterator[list[signal.Signals]]:
    """Let SIGINT and SIGTERM stop `handle`'s server instead of the process; yields those received.

    `on_first` hears of the first one. A second signal ends the answers in flight at once.
    """
    received: list[signal.Signals] = []

    def stop(signum: int, frame: object) -> None:
        received.append(signal.Signals(signum))
        handle.request_stop()
        if len(received) == 1:
            on_first(received[0])

    previous = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
