"""Puts the routes together."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.server.auth import ApiKeyMiddleware
from ktops_engine.server.chat import chat_router
from ktops_engine.server.completions import completions_router
from ktops_engine.server.config import ServerConfig
from ktops_engine.server.disconnect import ClientGoneError
from ktops_engine.server.errors import ApiError
from ktops_engine.server.handle import ModelHandle
from ktops_engine.server.health import health_router
from ktops_engine.server.metrics import metrics_router
from ktops_engine.server.models import models_router
from ktops_engine.server.request_id import RequestIdMiddleware
from ktops_engine.server.service import Service
from ktops_engine.server.tokens import tokens_router
from ktops_engine.text import text

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is left to read it
HTTP_ERROR_CODES = {404: "unknown_route", 405: "method_not_allowed"}


def create_app(handle: ModelHandle, config: ServerConfig) -> FastAPI:
    """The server's routes. Answers 503 until `handle` has an engine.

    Raises KtopsError "empty-api-key": an empty key would look like protection.
    """
    if config.api_key is not None and not config.api_key.strip():
        raise KtopsError(
            "empty-api-key",
            text("The API key is empty, which would let everybody in."),
            text("ktops serve --api-key $(openssl rand -hex 16), or leave --api-key out"),
            exit_status=EXIT_USAGE,
        )
    service = Service(handle, config)
    app = FastAPI(
        title="ktops", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    for router in (models_router, chat_router, completions_router):
        app.include_router(router(service), prefix="/v1")
        app.include_router(router(service))  # clients whose base URL lacks /v1
    app.include_router(tokens_router(service))
    app.include_router(health_router(service))
    app.include_router(metrics_router(service.metrics))
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientGoneError, _on_client_gone)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    if config.api_key is not None:
        app.add_middleware(ApiKeyMiddleware, api_key=config.api_key)
    app.add_middleware(RequestIdMiddleware)  # added last: runs first
    return app


async def _on_api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error.response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    what = f"{request.method} {request.url.path[:200]}"
    messages = {
        404: f"There is no route {what}.",
        405: f"{what} is not allowed here.",
    }
    return ApiError(
        error.status_code,
        messages.get(error.status_code, str(error.detail)),
        code=HTTP_ERROR_CODES.get(error.status_code, "http_error"),
        headers=error.headers,
    ).response()


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
