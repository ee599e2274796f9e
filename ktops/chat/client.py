"""A small client of the OpenAI chat API: what `ktops chat` needs, over plain HTTP."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ktops.server_client import ServerClient
from ktops_engine.errors import KtopsError
from ktops_engine.text import text

if TYPE_CHECKING:
    import httpx

# The server sends a comment every few seconds while it computes: a longer silence is a dead peer.
READ_TIMEOUT_S = 120.0

Message = Mapping[str, str]


@dataclass(frozen=True)
class ChatPiece:
    """A piece of an answer as it streams in: `kind` says what `text` belongs to.

    The last piece has kind "end", its `text` the finish reason and `usage` the token counts.
    """

    kind: Literal["reasoning", "answer", "end"]
    text: str
    usage: Mapping[str, Any] | None = None


class ChatClient(ServerClient):
    """Talks to one server. Raises KtopsError "invalid-url"."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        super().__init__(url, api_key, command="ktops chat", read_timeout_s=READ_TIMEOUT_S)

    def model_id(self) -> str:
        """The first model the server lists. Raises KtopsError when there is no such server."""
        import httpx

        try:
            response = self._http.get("/v1/models")
            _check(response, self.url)
            return str(response.json()["data"][0]["id"])
        except httpx.TransportError as error:
            raise _unreachable(self.url, error) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _not_openai(self.url) from error

    def stream(
        self,
        model: str,
        messages: Sequence[Message],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> Generator[ChatPiece]:
        """Ask for an answer and yield its pieces; closing the iterator early stops the server."""
        import httpx

        body: dict[str, object] = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if temperature is not None:
            body["temperature"] = temperature
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    _check(response, self.url)
                yield from _pieces(response.iter_lines())
        except httpx.TransportError as error:
            raise _unreachable(self.url, error) from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _not_openai(self.url) from error


def _pieces(lines: Iterator[str]) -> Iterator[ChatPiece]:
    """The pieces in a stream of server-sent events; comments and empty lines are skipped."""
    reason, usage = "", None
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            break
        chunk = json.loads(data)
        if "error" in chunk:
            raise _server_error(chunk["error"].get("message", text("no reason given")))
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            delta = choice.get("delta", {})
            if delta.get("reasoning_content"):
                yield ChatPiece("reasoning", delta["reasoning_content"])
            if delta.get("content"):
                yield ChatPiece("answer", delta["content"])
            reason = choice.get("finish_reason") or reason
    yield ChatPiece("end", reason, usage)


def _check(response: httpx.Response, url: str) -> None:
    """Raise what an answer with an error status means."""
    if response.is_success:
        return
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = text("status {status}", status=response.status_code)
    if response.status_code == 401:
        raise KtopsError(
            "invalid-api-key",
            text("the server at {url} wants another API key: {message}", url=url, message=message),
            text("ktops chat --api-key KEY   (or set KTOPS_API_KEY)"),
        )
    raise _server_error(message)


def _server_error(message: str) -> KtopsError:
    return KtopsError(
        "server-error",
        text("the server answered: {message}", message=message),
        "ktops chat --help",
    )


def _unreachable(url: str, error: Exception) -> KtopsError:
    return KtopsError(
        "server-unreachable",
        text("no answer from {url}: {reason}", url=url, reason=str(error) or type(error).__name__),
        text("ktops serve   (in another terminal), or ktops chat without --url"),
    )


def _not_openai(url: str) -> KtopsError:
    return KtopsError(
        "not-a-model-server",
        text("{url} answers, but not as an OpenAI server does", url=url),
        text("ktops chat --url http://127.0.0.1:10002   (the address that ktops serve printed)"),
    )
