"""How far a connection gets: name, proxy, TCP, TLS, HTTP. One request, and a limit that holds."""

from __future__ import annotations

import base64
import socket
import ssl
import time
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import SplitResult, unquote, urlsplit

from ktops_doctor.host import Reach, Stage

_PORTS = {"http": 80, "https": 443}


def reach(url: str, proxy: str, time_limit: float) -> Reach:
    """Ask for the head of `url`, through `proxy` ("http://user:password@host:port") unless ''.

    The name service has no time limit of its own, so a thread is left behind that waits for it.
    """
    attempt = _Attempt(urlsplit(url), urlsplit(proxy) if proxy else None, time_limit)
    done: SimpleQueue[Reach] = SimpleQueue()
    Thread(target=lambda: done.put(attempt.run()), name=f"reach {url}", daemon=True).start()
    try:
        return done.get(timeout=time_limit)
    except Empty:
        return Reach(attempt.stage, "timed out", seconds=time_limit)


class _Attempt:
    """One request; `stage` is what it is at."""

    def __init__(self, url: SplitResult, proxy: SplitResult | None, time_limit: float) -> None:
        self.stage = Stage.NAME
        self._url = url
        self._proxy = proxy
        self._began = time.monotonic()
        self._deadline = self._began + time_limit

    def run(self) -> Reach:
        try:
            with ExitStack() as stack:
                return self._ask(stack)
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return Reach(self.stage, " ".join(str(reason).split()), seconds=self._seconds())

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _left(self) -> float:
        return max(0.05, self._deadline - time.monotonic())

    def _ask(self, stack: ExitStack) -> Reach:
        host, secure = self._url.hostname or "", self._url.scheme == "https"
        connection = stack.enter_context(self._connect(self._proxy or self._url))
        if self._proxy is not None and secure:
            self.stage = Stage.PROXY
            self._tunnel(connection, host)
        if secure:
            self.stage = Stage.TLS
            context = ssl.create_default_context()
            connection.settimeout(self._left())
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=host))
        self.stage = Stage.HTTP
        connection.settimeout(self._left())
        http = HTTPConnection(self._url.netloc)
        http.sock = connection
        through = self._proxy is not None and not secure
        target = self._url.geturl() if through else self._url.path or "/"
        http.request("HEAD", target, headers={"User-Agent": "ktops-doctor", **self._credentials()})
        answer = http.getresponse()
        return Reach(
            Stage.DONE,
            status=answer.status,
            seconds=self._seconds(),
            clock_skew=_skew(answer.headers.get("Date")),
        )

    def _connect(self, to: SplitResult) -> socket.socket:
        """A TCP connection to the first address that takes one; IPv4 first, since where IPv6 has
        no way out it hangs."""
        if to is self._proxy:
            self.stage = Stage.PROXY
        host, port = to.hostname or "", to.port or _PORTS.get(to.scheme, 80)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if to is self._url:
            self.stage = Stage.CONNECT
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        failure: OSError = OSError("the name has no address")
        for index, (family, kind, protocol, _, address) in enumerate(found):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(self._left() / (len(found) - index))
                connection.connect(address)
            except OSError as error:
                connection.close()
                failure = error
            else:
                return connection
        raise failure

    def _tunnel(self, connection: socket.socket, host: str) -> None:
        where = f"{host}:{self._url.port or _PORTS['https']}"
        lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
        lines += [f"{name}: {value}" for name, value in self._credentials().items()]
        connection.settimeout(self._left())
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))
        answer = HTTPResponse(connection, method="CONNECT")
        answer.begin()
        if answer.status != 200:
            raise OSError(f"{answer.status} {answer.reason}")

    def _credentials(self) -> dict[str, str]:
        if self._proxy is None or not self._proxy.username:
            return {}
        pair = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
        coded = base64.b64encode(pair.encode()).decode("ascii")
        return {"Proxy-Authorization": f"Basic {coded}"}


def _skew(date: str | None) -> float | None:
    """Seconds that this machine's clock is ahead of an HTTP date; None when there is none."""
    if not date:
        return None
    try:
        return round(time.time() - parsedate_to_datetime(date).timestamp(), 1)
    except ValueError:
        return None
