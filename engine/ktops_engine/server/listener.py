"""The listening socket, opened before anything slow so that a taken port is found at once."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from ktops_engine.errors import EXIT_USAGE, KtopsError
from ktops_engine.text import text

BACKLOG = 1024


@dataclass(frozen=True)
class Address:
    """Where the server really listens: with port 0 asked for, `port` is the one it was given."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The base URL a client on this machine can use."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def open_listener(host: str, port: int) -> socket.socket:
    """Bind and listen on `host`:`port` (0: any free port).

    Raises KtopsError: "invalid-port", "port-in-use", "port-not-permitted" or
    "address-unavailable".
    """
    if not 0 <= port <= 65535:
        raise KtopsError(
            "invalid-port",
            text("{port} is not a port number (0 to 65535).", port=port),
            "ktops serve --port 10002",
            exit_status=EXIT_USAGE,
        )
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise KtopsError(
            "address-unavailable",
            text("Cannot listen on {host!r}: {error}.", host=host, error=error),
            f"ktops serve --host 127.0.0.1 --port {port}",
        ) from error
    family, kind, protocol, _, address = infos[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A port whose last connections are still closing (TIME_WAIT) counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _explain(error, host, port) from error
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> Address:
    """The address a listening socket is bound to."""
    host, port = listener.getsockname()[:2]
    return Address(str(host), int(port))


def _explain(error: OSError, host: str, port: int) -> KtopsError:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else port - 1
        return KtopsError(
            "port-in-use",
            text(
                "Port {port} on {host} is already in use by another process.", port=port, host=host
            ),
            text(
                "ktops serve --port {other}   (what holds it: ss -ltnp 'sport = :{port}')",
                other=other,
                port=port,
            ),
        )
    if error.errno == errno.EACCES:
        return KtopsError(
            "port-not-permitted",
            text(
                "This user may not listen on port {port}: ports below 1024 belong to root.",
                port=port,
            ),
            "ktops serve --port 10002",
        )
    return KtopsError(
        "address-unavailable",
        text(
            "Cannot listen on {host}:{port}: {reason}.",
            host=host,
            port=port,
            reason=error.strerror or error,
        ),
        f"ktops serve --host 127.0.0.1 --port {port}",
    )
