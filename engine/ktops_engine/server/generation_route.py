"""The way of a generating request, whatever it asks for: checked, started, answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from ktops_engine.server.body import read_json
from ktops_engine.server.generation import Generation
from ktops_engine.server.openai_types import GenerationRequest, validate
from ktops_engine.server.respond import Answer, respond
from ktops_engine.server.service import Service

Body = TypeVar("Body", bound=GenerationRequest)


def generation_router(
    path: str,
    service: Service,
    kind: type[Body],
    start: Callable[[Service, Body], Awaitable[tuple[Generation, Answer]]],
) -> APIRouter:
    """POST `path` with a body of `kind`. `start` checks the rest of it and hands it to the engine;
    it raises ApiError."""
    router = APIRouter()

    @router.post(path)
    async def generate(request: Request) -> Response:
        service.handle.engine()  # not ready: say so before anything else
        body = validate(kind, await read_json(request, service.config.max_body_bytes))
        service.check_model(body.model)
        generation, answer = await start(service, body)
        return await respond(
            request,
            generation,
            answer,
            stream=bool(body.stream),
            keep_alive_s=service.config.keep_alive_s,
        )

    return router
