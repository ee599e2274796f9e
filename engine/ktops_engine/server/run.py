"""Runs the server from the first connection to the last byte: load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from ktops_engine.errors import KtopsError
from ktops_engine.server.errors import draining
from ktops_engine.server.handle import Engine, ModelHandle
from ktops_engine.server.listener import BACKLOG, Address, address_of

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IDLE_CONNECTION_S = 75  # longer than the proxies in front of us keep theirs
LAST_BYTES_S = 5  # for clients that read slowly, once all answers are complete
FORCE_S = 1.0  # for the in-band errors to leave, when told to stop at once


def run_server(
    app: FastAPI,
    handle: ModelHandle,
    listener: socket.socket,
    *,
    load: Callable[[], Engine] | None = None,
    grace_s: float = 30.0,
    on_listening: Callable[[Address], None] | None = None,
    on_ready: Callable[[Address], None] | None = None,
) -> None:
    """Serve `app` on `listener` until SIGTERM, SIGINT or `handle.request_stop`.

    `load` runs in a thread of its own while the port already answers (503, "loading"); what it
    raises ends the server and is raised here. `on_listening` is called on the server's thread,
    `on_ready` on the loading one. At the end answers in flight get `grace_s` seconds, then an
    in-band error; the listener is closed and the engine shut down. Signals are handled only when
    called in the main thread; a second one ends the answers at once.
    """
    address = address_of(listener)
    started = (lambda: on_listening(address)) if on_listening is not None else None
    server = _Server(app, started)
    loading = None if load is None else _Loading(handle, load, on_ready, address)
    try:
        asyncio.run(_Stopping(handle, server, grace_s).serve(listener, loading))
    finally:
        listener.close()
        if loading is not None:
            loading.wait(grace_s)
        handle.shutdown()
    if loading is not None and loading.failure is not None:
        raise loading.failure


class _Server(uvicorn.Server):
    """uvicorn, with signals left to us and a word when the port answers."""

    def __init__(self, app: FastAPI, on_started: Callable[[], None] | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=IDLE_CONNECTION_S,
                timeout_graceful_shutdown=LAST_BYTES_S,
            )
        )
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_started is not None:
            self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _Loading:
    """The thread that loads the model."""

    def __init__(
        self,
        handle: ModelHandle,
        load: Callable[[], Engine],
        on_ready: Callable[[Address], None] | None,
        address: Address,
    ) -> None:
        self._handle = handle
        self._load = load
        self._on_ready = on_ready
        self._address = address
        self._thread = threading.Thread(target=self._run, name="ktops-load", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._handle.set_ready(self._load())
            if self._on_ready is not None and self._handle.state == "ready":
                self._on_ready(self._address)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            if not (isinstance(error, KtopsError) and error.code == "interrupted"):
                self.failure = error
            self._handle.request_stop()


class _Stopping:
    """One server's way from the first signal to the end."""

    def __init__(self, handle: ModelHandle, server: _Server, grace_s: float) -> None:
        self._handle = handle
        self._server = server
        self._grace_s = grace_s
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, listener: socket.socket, loading: _Loading | None) -> None:
        """Returns when the server has ended."""
        loop = asyncio.get_running_loop()
        serving = asyncio.ensure_future(self._server.serve(sockets=[listener]))

        def on_stop(num_stops: int) -> None:  # on any thread
            with contextlib.suppress(RuntimeError):  # the loop is closed: all is over already
                loop.call_soon_threadsafe(self._stop, num_stops, serving)

        self._handle.on_stop(on_stop)
        if loading is not None:
            loading.start()
        with _signals(loop, self._handle.request_stop), contextlib.suppress(asyncio.CancelledError):
            await serving
        self._handle.on_stop(None)

    def _stop(self, num_stops: int, serving: asyncio.Task[None]) -> None:
        if num_stops == 1:
            self._draining = asyncio.ensure_future(self._drain())
            return
        self._handle.fail_calls(draining())
        self._server.should_exit = True
        asyncio.get_running_loop().call_later(FORCE_S, serving.cancel)

    async def _drain(self) -> None:
        """Let the answers in flight finish, as long as the grace time lasts."""
        try:
            async with asyncio.timeout(self._grace_s):
                await self._handle.wait_idle()
        except TimeoutError:
            self._handle.fail_calls(draining())
        self._server.should_exit = True


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Generator[None]:
    """Call `callback` on SIGINT and SIGTERM, where this thread may handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in SIGNALS:
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
