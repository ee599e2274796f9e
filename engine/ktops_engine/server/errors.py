"""One shape for everything that goes wrong: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from ktops_engine.errors import KtopsError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"

RETRY_LOADING_S = 10
RETRY_DRAINING_S = 30
RETRY_QUEUE_S = 5
RETRY_STUCK_S = 30


class ApiError(Exception):
    """A failure with its HTTP status; `param` names the field of the request at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = INVALID_REQUEST if status < 500 else SERVER_ERROR
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        """The JSON body, also sent in-band once a stream has begun."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request itself is wrong and repeating it will not help."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, *, code: str, retry_after_s: int) -> ApiError:
    """503: not now; clients wait `retry_after_s` seconds and ask again."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(retry_after_s)})


def engine_failed(message: str, *, code: str = "generation_failed") -> ApiError:
    """500 that clients must not repeat: the same request would fail again."""
    return ApiError(500, message, code=code, headers={"x-should-retry": "false"})


def engine_dead(reason: str | None) -> ApiError:
    """500 for every request once the engine has stopped for good."""
    why = f": {reason}" if reason else ""
    return engine_failed(
        f"The engine has stopped{why}. Restart the server and read its log.", code="engine_dead"
    )


def draining() -> ApiError:
    """503 while the server finishes its last answers."""
    return unavailable(
        "The server is shutting down.", code="server_draining", retry_after_s=RETRY_DRAINING_S
    )


def internal_error() -> ApiError:
    """500 for a bug of ours; the log has the details under the request's id."""
    return ApiError(500, "Internal error; the server's log has the details.", code="internal_error")


def from_engine(error: KtopsError) -> ApiError:
    """What a failed `submit` means to a client."""
    if error.code == "queue-full":
        return unavailable(error.message, code="queue_full", retry_after_s=RETRY_QUEUE_S)
    if error.code == "engine-dead":
        return engine_dead(error.message)
    if error.code in {"context-length-exceeded", "empty-prompt", "invalid-token"}:
        return bad_request(error.message, code=error.code.replace("-", "_"))
    return engine_failed(error.message, code=error.code.replace("-", "_"))
