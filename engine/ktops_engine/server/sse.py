"""Server-sent events: frames, keep-alive comments, and a response that notices a lost client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ktops_engine.server.disconnect import wait_for_disconnect
from ktops_engine.server.errors import ApiError, internal_error

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

# JSON allows these raw, but clients that split lines as str.splitlines does would cut a frame.
_LINE_BREAKS = str.maketrans({"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})

logger = logging.getLogger(__name__)


def frame(data: object) -> bytes:
    """One event: `data: {json}` and an empty line."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_LINE_BREAKS)
    return f"data: {text}\n\n".encode()


async def with_errors_in_band(frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """`frames`, then [DONE]; a failure on the way is sent as an error frame before it."""
    try:
        async with contextlib.aclosing(frames):
            async for data in frames:
                yield data
    except ApiError as error:
        yield frame(error.body())
    except Exception:
        logger.exception("a stream failed")
        yield frame(internal_error().body())
    yield DONE


async def with_keep_alive(
    frames: AsyncGenerator[bytes], interval_s: float
) -> AsyncGenerator[bytes]:
    """`frames`, with a comment whenever `interval_s` seconds pass without one."""
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(_next(frames))
            while not (await asyncio.wait({pending}, timeout=interval_s))[0]:
                yield KEEP_ALIVE
            data = pending.result()
            if not data:
                return
            yield data
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.wait({pending})
        await frames.aclose()


async def _next(frames: AsyncIterator[bytes]) -> bytes:
    return await anext(frames, b"")


class EventStream(Response):
    """Sends `frames` until they end or the client goes; `on_close` is called in any case."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes], on_close: Callable[[], None]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._on_close()
            sending.cancel()
            gone.cancel()
            await asyncio.wait({sending, gone})
            await self._frames.aclose()
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with contextlib.suppress(OSError):  # the client went while we wrote
            await send(start)
            async for data in self._frames:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
