"""Real connections on this machine: each way they end is told from the others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from ktops_doctor.host import Stage
from ktops_doctor.network import reach

LIMIT = 20.0
OK = b"HTTP/1.1 200 OK\r\nDate: Sun, 22 Nov 2026 12:00:00 GMT\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """`serve(answers, heard)` answers one connection: each request by the next of `answers`."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def start(answers: list[bytes], heard: list[bytes]) -> int:
            def run() -> None:
                connection, _ = listener.accept()
                with connection:
                    for words in answers:
                        heard.append(connection.recv(65536))
                        connection.sendall(words)

            threading.Thread(target=run, daemon=True).start()
            return listener.getsockname()[1]

        yield start


@pytest.fixture
def closed_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_answer_is_an_answer_and_tells_the_time(serve):
    heard: list[bytes] = []
    port = serve([OK], heard)
    answer = reach(f"http://127.0.0.1:{port}", "", LIMIT)
    assert (answer.stage, answer.status, answer.reason) == (Stage.DONE, 200, "")
    assert answer.clock_skew is not None
    assert heard[0].startswith(b"HEAD / HTTP/1.1\r\n")


def test_a_refused_connection_and_an_unknown_name_are_told_apart(closed_port, monkeypatch):
    refused = reach(f"https://127.0.0.1:{closed_port}", "", LIMIT)
    assert (refused.stage, refused.reason) == (Stage.CONNECT, "Connection refused")

    def unknown(*args: object, **more: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    nowhere = reach("https://no-such-host.invalid", "", LIMIT)
    assert (nowhere.stage, nowhere.reason) == (Stage.NAME, "Name or service not known")


def test_a_server_that_speaks_no_tls_or_no_http_is_named(serve):
    port = serve([b"SSH-2.0-OpenSSH_9.2\r\n"], [])
    assert reach(f"https://127.0.0.1:{port}", "", LIMIT).stage is Stage.TLS
    port = serve([b"220 mail ready\r\n"], [])
    assert reach(f"http://127.0.0.1:{port}", "", LIMIT).stage is Stage.HTTP


def test_a_server_that_never_answers_is_given_up():
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        answer = reach(f"http://127.0.0.1:{silent.getsockname()[1]}", "", 0.2)
    assert answer.stage is Stage.HTTP
    assert answer.reason == "timed out"


def test_a_proxy_gets_the_whole_address_and_its_password(serve):
    heard: list[bytes] = []
    port = serve([OK], heard)
    answer = reach("http://hub.example/a", f"http://me:s%20cret@127.0.0.1:{port}", LIMIT)
    assert answer.answered
    assert heard[0].startswith(b"HEAD http://hub.example/a HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6cyBjcmV0\r\n" in heard[0]


@pytest.mark.parametrize(
    "refusal", [b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", b""]
)
def test_a_proxy_that_lets_nothing_through_is_named(serve, refusal):
    heard: list[bytes] = []
    port = serve([refusal], heard)
    answer = reach("https://hub.example", f"http://127.0.0.1:{port}", LIMIT)
    assert answer.stage is Stage.PROXY
    assert heard[0].startswith(b"CONNECT hub.example:443 HTTP/1.1\r\n")
    if refusal:
        assert answer.reason == "407 Proxy Authentication Required"


def test_a_dead_proxy_is_named(closed_port):
    answer = reach("https://hub.example", f"http://127.0.0.1:{closed_port}", LIMIT)
    assert (answer.stage, answer.reason) == (Stage.PROXY, "Connection refused")


def test_behind_a_proxy_tls_can_fail_too(serve):
    port = serve([b"HTTP/1.1 200 OK\r\n\r\n", b"no tls\r\n"], [])
    answer = reach("https://hub.example", f"http://127.0.0.1:{port}", LIMIT)
    assert answer.stage is Stage.TLS
