"""A connection to a server that the user names by URL, over plain HTTP."""

from __future__ import annotations

from typing import Self

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

CONNECT_TIMEOUT_S = 10.0
EXAMPLE_URL = "http://127.0.0.1:10002"


class ServerClient:
    """One server, asked by `command` ("ktops chat"). A context manager: leaving it closes the
    connections.

    An answer may pause for `read_timeout_s`. Raises KtopsError "invalid-url".
    """

    def __init__(
        self, url: str, api_key: str | None, *, command: str, read_timeout_s: float
    ) -> None:
        import httpx

        self.url = url.rstrip("/").removesuffix("/v1")
        # As bytes: httpx takes a string for ASCII, and a key may hold any character.
        headers = {b"Authorization": f"Bearer {api_key}".encode()} if api_key else {}
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S),
                trust_env=False,  # a proxy for the internet must not catch a server next door
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise _bad_url(url, command) from error
        if self._http.base_url.scheme not in ("http", "https") or not self._http.base_url.host:
            raise _bad_url(url, command)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._http.close()


def _bad_url(url: str, command: str) -> KtopsError:
    return KtopsError(
        "invalid-url",
        text("--url {url!r} is not the URL of a server", url=url),
        f"{command} --url {EXAMPLE_URL}",
        exit_status=EXIT_USAGE,
    )
