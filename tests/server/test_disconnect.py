"""A client that leaves frees the engine at once."""

from __future__ import annotations

import json
import socket
import threading
from urllib.parse import urlsplit

import pytest


def send(live, path, body):
    """A raw connection with the request sent."""
    data = json.dumps(body).encode()
    address = urlsplit(live.url)
    connection = socket.create_connection((address.hostname, address.port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_disconnect_while_waiting_aborts_the_request(live, engine, patience_s, path, stream):
    engine.say(threading.Event(), "never")
    body = {"messages": [{"role": "user", "content": "a"}], "prompt": "a", "stream": stream, "n": 2}
    with send(live, path, body):
        requests = [engine.submitted.get(timeout=patience_s) for _ in range(2)]
    assert all(played.aborted.wait(patience_s) for played in requests)


def test_a_disconnect_in_the_middle_of_a_stream_aborts_the_request(live, engine, patience_s):
    engine.say("some", threading.Event(), "never")
    body = {"messages": [{"role": "user", "content": "a"}], "stream": True}
    with send(live, "/v1/chat/completions", body) as connection:
        received = b""
        while b'"some' not in received and b'"e"' not in received:
            received += connection.recv(4096)
    assert engine.submitted.get(timeout=patience_s).aborted.wait(patience_s)


def test_a_finished_answer_aborts_nothing(live, engine):
    live.chat()
    live.chat(stream=True)
    assert not any(played.aborted.is_set() for played in engine.requests)
