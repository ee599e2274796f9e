"""X-Request-Id on every response, and the last border that a failure can reach."""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ktops_engine.server.errors import internal_error

MAX_LENGTH = 128

logger = logging.getLogger(__name__)


def request_id_of(headers: Headers) -> str:
    """The client's id without characters that could forge a log line, else a new one."""
    given = re.sub(r"[^A-Za-z0-9._:@/+=-]", "", headers.get("x-request-id", ""))[:MAX_LENGTH]
    return given or f"req-{uuid.uuid4().hex}"


class RequestIdMiddleware:
    """Outermost: names every request, and turns a bug into a logged 500 of the common shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if started:
                raise
            await internal_error().response()(scope, receive, send_with_id)
