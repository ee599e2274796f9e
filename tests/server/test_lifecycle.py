"""Loading, serving, draining, stopping."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import httpx
import pytest

from ktops_engine.errors import KtopsError
from ktops_engine.server import ModelHandle, ServerConfig, create_app, open_listener, run_server
from ktops_engine.server.listener import Address


class Running:
    """A `run_server` on a thread, with what it raised."""

    def __init__(self, load, handle=None, **options):
        self.handle = handle or ModelHandle()
        self.listening: queue.SimpleQueue[Address] = queue.SimpleQueue()
        self.ready: queue.SimpleQueue[Address] = queue.SimpleQueue()
        self.raised: BaseException | None = None
        app = create_app(self.handle, ServerConfig("m"))
        listener = open_listener("127.0.0.1", 0)

        def run():
            try:
                run_server(
                    app, self.handle, listener, load=load, on_listening=self.listening.put,
                    on_ready=self.ready.put, **options,
                )  # fmt: skip
            except KtopsError as error:
                self.raised = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def join(self, patience_s):
        self.thread.join(patience_s)
        assert not self.thread.is_alive()


def error_code(response):
    return response.json()["error"]["code"]


def test_while_loading_every_request_is_told_to_come_back(serve):
    with serve(None) as live:
        health = live.client.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == "loading"
        for response in (health, live.chat(), live.complete(), live.client.get("/v1/models")):
            assert response.status_code == 503
            assert error_code(response) == "model_loading"
            assert int(response.headers["retry-after"]) > 0
        assert live.client.get("/version").status_code == 200


def test_the_model_is_loaded_while_the_port_answers(new_engine, patience_s):
    engine, gate = new_engine(), threading.Event()

    def load():
        gate.wait(patience_s)
        return engine

    running = Running(load)
    address = running.listening.get(timeout=patience_s)
    assert httpx.get(f"{address.url}/health").json()["status"] == "loading"
    gate.set()
    assert running.ready.get(timeout=patience_s) == address
    assert httpx.get(f"{address.url}/health").json() == {"status": "ok"}
    running.handle.request_stop()
    running.join(patience_s)
    assert engine.num_shutdowns == 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address.url}/health")


def test_what_loading_raises_ends_the_server_and_is_raised(patience_s):
    def load():
        raise KtopsError("gguf-truncated", "The file is cut off.", "ktops download")

    running = Running(load)
    running.join(patience_s)
    assert running.raised.code == "gguf-truncated"
    assert running.ready.empty()


def test_a_stop_while_loading_ends_the_load(patience_s):
    handle, loading = ModelHandle(), threading.Event()

    def load():
        loading.set()
        while True:
            handle.check_stop()

    running = Running(load, handle)
    assert loading.wait(patience_s)
    handle.request_stop()
    running.join(patience_s)
    assert running.raised is None


def test_a_stop_lets_answers_finish_and_refuses_new_ones(serve, new_engine, events):
    engine, gate = new_engine(), threading.Event()
    engine.say("</think>a", gate, "b")
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    with serve(engine) as live:
        with live.client.stream("POST", "/v1/chat/completions", json=body) as stream:
            parts = stream.iter_text()
            text = next(parts)
            live.handle.request_stop()
            health = httpx.get(f"{live.url}/health")
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            refused = httpx.post(f"{live.url}/v1/chat/completions", json=body)
            assert (refused.status_code, error_code(refused)) == (503, "server_draining")
            assert refused.headers["retry-after"]
            gate.set()
            text += "".join(parts)
        contents = [c["choices"][0]["delta"].get("content", "") for c in events(Text(text))]
        assert "".join(contents) == "ab"


class Text:
    def __init__(self, text):
        self.text = text


def test_after_the_grace_time_streams_end_with_an_error_in_band(serve, new_engine, patience_s):
    engine = new_engine()
    engine.say("</think>a", threading.Event(), "never")
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    with (
        serve(engine, grace_s=0) as live,
        live.client.stream("POST", "/v1/chat/completions", json=body) as stream,
    ):
        parts = stream.iter_text()
        text = next(parts)
        live.handle.request_stop()
        *_, error, done = (text + "".join(parts)).strip().split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(error[5:])["error"]["code"] == "server_draining"
    assert engine.requests[0].aborted.wait(patience_s)


@pytest.mark.parametrize(("grace_s", "num_stops"), [(0, 1), (1000, 2)])
def test_whole_answers_cut_short_become_a_503(serve, new_engine, patience_s, grace_s, num_stops):
    engine = new_engine()
    engine.say(threading.Event(), "never")
    answers: queue.SimpleQueue[httpx.Response] = queue.SimpleQueue()
    with serve(engine, grace_s=grace_s) as live:
        threading.Thread(target=lambda: answers.put(live.chat()), daemon=True).start()
        engine.submitted.get(timeout=patience_s)
        for _ in range(num_stops):
            live.handle.request_stop()
        response = answers.get(timeout=patience_s)
    assert (response.status_code, error_code(response)) == (503, "server_draining")


def test_an_engine_that_dies_without_a_word_fails_its_requests(
    serve, new_engine, patience_s, monkeypatch
):
    monkeypatch.setattr("ktops_engine.server.generation.LIVENESS_S", 0.01)
    engine = new_engine()
    engine.say(threading.Event(), "never")
    answers: queue.SimpleQueue[httpx.Response] = queue.SimpleQueue()
    with serve(engine) as live:
        threading.Thread(target=lambda: answers.put(live.chat()), daemon=True).start()
        engine.submitted.get(timeout=patience_s)
        engine.dead_reason = "the thread is gone"
        response = answers.get(timeout=patience_s)
    assert (response.status_code, error_code(response)) == (500, "engine_dead")


def test_a_step_that_does_not_end_is_told_by_health_and_refuses_requests(serve, new_engine):
    engine = new_engine()
    with serve(engine) as live:
        engine.stuck_reason = "a thread is held"
        for response in (live.client.get("/health"), live.chat()):
            assert (response.status_code, error_code(response)) == (503, "engine_stuck")
            assert "a thread is held" in response.text
            assert int(response.headers["Retry-After"]) > 0
        engine.stuck_reason = None
        assert live.client.get("/health").json() == {"status": "ok"}


SERVER = textwrap.dedent(
    """
    import time
    from ktops_engine.server import (
        ModelHandle, ServerConfig, create_app, open_listener, run_server,
    )

    handle = ModelHandle()

    def load():
        while True:
            handle.check_stop()
            time.sleep(0.01)

    run_server(
        create_app(handle, ServerConfig("m")), handle, open_listener("127.0.0.1", 0),
        load=load, on_listening=lambda address: print(address.url, flush=True),
    )
    print("ended")
    """
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(number, patience_s):
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/health").status_code == 503
        process.send_signal(number)
        out, err = process.communicate(timeout=patience_s)
    assert (process.returncode, out, err) == (0, "ended\n", "")


def test_a_taken_port_is_found_at_once_with_another_to_try():
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            KtopsError, match=f"Port {port} on 127.0.0.1 is already in use"
        ) as caught:
            open_listener("127.0.0.1", port)
    assert caught.value.code == "port-in-use"
    assert "--port" in caught.value.hint
    open_listener("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "port", "code"),
    [
        ("127.0.0.1", 70000, "invalid-port"),
        ("127.0.0.1", -1, "invalid-port"),
        ("no such host", 0, "address-unavailable"),
        ("203.0.113.7", 0, "address-unavailable"),
        ("x" * 300, 0, "address-unavailable"),
    ],
)
def test_an_address_that_cannot_be_had_is_explained(host, port, code, monkeypatch):
    with pytest.raises(KtopsError) as caught:
        open_listener(host, port)
    assert caught.value.code == code
    assert caught.value.hint.startswith("ktops serve")


def test_a_port_without_permission_is_explained(monkeypatch):
    def forbidden(self, address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", forbidden)
    with pytest.raises(KtopsError) as caught:
        open_listener("127.0.0.1", 80)
    assert caught.value.code == "port-not-permitted"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5"),
        ("0.0.0.0", "http://127.0.0.1:5"),
        ("::", "http://[::1]:5"),
        ("10.0.0.1", "http://10.0.0.1:5"),
    ],
)
def test_an_address_names_a_url_that_works_from_this_machine(host, url):
    assert Address(host, 5).url == url
