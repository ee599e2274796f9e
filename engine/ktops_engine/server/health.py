"""GET /health and /version: open to everybody, answered from the event loop alone."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from ktops_engine.server.errors import ApiError
from ktops_engine.server.service import Service


def health_router(service: Service) -> APIRouter:
    """The routes that watch over the server."""
    router = APIRouter()

    @router.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        """200 when a request would be taken, else the error that it would get."""
        try:
            service.handle.engine()
        except ApiError as error:
            body = {"status": service.handle.state, **error.body()}
            return JSONResponse(body, status_code=error.status, headers=error.headers)
        return JSONResponse({"status": "ok"})

    @router.get("/version")
    async def show_version() -> dict[str, str]:
        return {"version": _version()}

    return router


def _version() -> str:
    try:
        return version("ktops")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
