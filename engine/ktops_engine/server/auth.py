"""The API key: asked for on every route but the open ones, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ktops_engine.server.errors import ApiError

OPEN_PATHS = frozenset({"/health", "/version"})


class ApiKeyMiddleware:
    """Refuses requests without `Authorization: Bearer <api_key>`."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._digest = _digest(api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"] not in OPEN_PATHS
            and not self._allows(Headers(scope=scope).get("authorization", ""))
        ):
            await _refusal().response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allows(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        # Header bytes arrive as latin-1. Digests have one length, so that none is given away.
        same = hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._digest)
        return same and scheme.lower() == "bearer"


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _refusal() -> ApiError:
    return ApiError(
        401,
        "The API key is missing or wrong. Send it as 'Authorization: Bearer <key>'.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
