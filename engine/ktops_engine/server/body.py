"""A request's JSON body, read with limits: size, encoding, depth, finite numbers, whole text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NoReturn

from starlette.requests import Request

from ktops_engine.server.errors import ApiError, bad_request

MAX_DEPTH = 64


async def read_json(request: Request, max_bytes: int) -> dict[str, object]:
    """The body as an object. Raises ApiError 400, 413 or 415."""
    media_type = request.headers.get("content-type", "application/json").split(";")[0].strip()
    if media_type.lower() != "application/json":
        raise ApiError(
            415,
            f"The content type is {media_type!r}; send the body as JSON with the header "
            "'Content-Type: application/json'.",
            code="unsupported_media_type",
        )
    return parse_json(await _read(request, max_bytes))


def parse_json(data: bytes) -> dict[str, object]:
    """Raises ApiError 400 for whatever is not one JSON object of sane values."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"it is not valid UTF-8 (byte {error.start})") from None
    try:
        body = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _malformed(f"{error.msg} at {where}") from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    except ValueError as error:  # NaN, infinities, integers of thousands of digits
        raise _malformed(str(error).partition(":")[0]) from None
    if not isinstance(body, dict):
        raise _malformed("it must be an object")
    _check_depth(body)
    if "\\ud" in text.lower():
        _check_surrogates(body)
    return body


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
        elif size > 4 * max_bytes:  # read on for a while: a client still sending hears no answer
            break
    if size > max_bytes:
        raise ApiError(
            413,
            f"The request body is larger than the {max_bytes} bytes this server accepts.",
            code="request_too_large",
            headers={"Connection": "close"},
        )
    return b"".join(chunks)


def _check_depth(body: object) -> None:
    """Bounds the depth, without recursion: later steps recurse over the values."""
    level: list[object] = [body]
    for _ in range(MAX_DEPTH):
        level = [value for parent in level for value in _containers_in(parent)]
        if not level:
            return
    raise _malformed(f"it is nested deeper than {MAX_DEPTH} levels")


def _containers_in(parent: object) -> Iterable[object]:
    values: Iterable[object] = ()
    if isinstance(parent, dict):
        values = parent.values()
    elif isinstance(parent, list):
        values = parent
    return (value for value in values if isinstance(value, dict | list))


def _check_surrogates(body: object) -> None:
    r"""`\ud83d` without its partner parses, yet is no text: no tokenizer can take it."""
    try:
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _malformed("it contains half of a surrogate pair") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value


def _malformed(why: str) -> ApiError:
    return bad_request(f"The request body is not valid JSON: {why}.", code="invalid_json")
