"""Sends an answer, streamed or whole, and ends its generation however that goes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ktops_engine.server.disconnect import unless_disconnected
from ktops_engine.server.generation import Generation
from ktops_engine.server.openai_types import GenerationRequest
from ktops_engine.server.sse import EventStream, with_errors_in_band, with_keep_alive


class Answer(Protocol):
    """What one generation becomes on the wire."""

    def frames(self) -> AsyncGenerator[bytes]:
        """The events of a streamed answer, without the last [DONE]. May raise ApiError."""

    async def complete(self) -> dict[str, object]:
        """The body of a whole answer. May raise ApiError."""


class StreamUsage:
    """Where a stream reports usage: nowhere, at its end, or in every chunk as well."""

    def __init__(self, body: GenerationRequest) -> None:
        options = body.stream_options
        self.at_end = bool(options and options.include_usage)
        self.in_every_chunk = self.at_end and bool(options and options.continuous_usage_stats)


async def respond(
    request: Request,
    generation: Generation,
    answer: Answer,
    *,
    stream: bool,
    keep_alive_s: float,
) -> Response:
    """The response to `request`. Raises ApiError or ClientGoneError before anything is sent."""
    if stream:
        frames = with_keep_alive(with_errors_in_band(answer.frames()), keep_alive_s)
        return EventStream(frames, on_close=generation.close)
    try:
        return JSONResponse(await unless_disconnected(request, answer.complete()))
    finally:
        generation.close()
