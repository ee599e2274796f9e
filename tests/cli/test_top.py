"""`ktops top` with a running server, with another one, and with none."""

from __future__ import annotations

import http.server
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from ktops.settings import Settings
from ktops_engine.server import ModelHandle, ServerConfig, create_app, open_listener, run_server
from ktops_engine.stats import EngineStats, ExpertTraffic, StepCounts

PATIENCE_S = 20
KEY = "sésame"


class CountingEngine:
    """An engine that generated ten more tokens whenever it is asked."""

    is_alive = True
    dead_reason = stuck_reason = None

    def __init__(self) -> None:
        self.tokens = 0

    def stats(self) -> EngineStats:
        self.tokens += 10
        steps = StepCounts(generation_tokens=self.tokens)
        return EngineStats(1, 0, 8, 6, steps, ExpertTraffic(self.tokens * 10**9, self.tokens / 100))

    def shutdown(self) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The real app on a free port, found by `ktops top` through the settings."""
    handle = ModelHandle()
    handle.set_ready(CountingEngine())
    listener = open_listener("127.0.0.1", 0)
    addresses: queue.SimpleQueue = queue.SimpleQueue()
    thread = threading.Thread(
        target=run_server,
        args=(create_app(handle, ServerConfig("demo", api_key=KEY)), handle, listener),
        kwargs={"grace_s": 0.0, "on_listening": addresses.put},
        daemon=True,
    )
    thread.start()
    address = addresses.get(timeout=PATIENCE_S)
    monkeypatch.setenv("KTOPS_PORT", str(address.port))
    monkeypatch.setenv("KTOPS_API_KEY", KEY)

    def stop() -> None:
        handle.request_stop()
        handle.request_stop()
        thread.join(PATIENCE_S)

    yield SimpleNamespace(url=address.url, stop=stop)
    stop()


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`seconds(n)`: no interval takes time, and after n of them Ctrl-C is pressed."""

    def limit(count: int) -> None:
        left = iter(range(count))

        def sleep(interval: float) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr("ktops.commands.top.time", SimpleNamespace(sleep=sleep))

    return limit


def test_once_is_one_document(ktops, server, seconds):
    seconds(1)
    document = ktops("top", "--once", "--json").document
    assert (document["url"], document["model"], document["state"]) == (server.url, "demo", "ready")
    assert document["generation_tokens_per_s"] > 0
    assert document["expert_bytes_per_s"] == 100 * 10**9
    assert document["kv_cache_usage"] == 0.25
    assert document["ram_bytes"] > 1 << 20


def test_once_for_people_is_the_panel_and_quiet_is_a_number(ktops, server, seconds):
    seconds(2)
    assert "  Experts   100 GB/s\n" in ktops("top", "--once").stdout
    assert float(ktops("top", "--once", "-q").stdout) > 0


def test_ctrl_c_ends_the_lines_with_130(ktops, server, seconds):
    seconds(3)
    ran = ktops("top", "--json")
    assert ran.status == 130
    assert [json.loads(line)["event"] for line in ran.stdout.splitlines()] == ["sample"] * 3


def test_ctrl_c_gives_the_terminal_back(ktops, server, seconds, monkeypatch):
    monkeypatch.setattr("ktops.output.is_live", lambda stream: True)
    monkeypatch.setattr("ktops.monitor.view.is_live", lambda stream: True)
    seconds(2)
    ran = ktops("top", "--no-color")
    assert ran.status == 130
    assert "\x1b[?25h" in ran.stderr


def test_a_key_may_be_given_on_the_command_line(ktops, server, seconds, monkeypatch):
    monkeypatch.setenv("KTOPS_API_KEY", "another")
    seconds(1)
    assert ktops("top", "--once", "--api-key", KEY).status == 0
    ran = ktops("top", "--once")
    assert (ran.status, ran.stdout) == (1, "")
    assert "Fix: ktops top --api-key KEY" in ran.stderr
    assert KEY not in ran.stderr


def test_a_server_that_goes_away_ends_the_view_with_a_fix(ktops, server, monkeypatch):
    after_two = iter([lambda: None, lambda: None, server.stop])
    monkeypatch.setattr(
        "ktops.commands.top.time", SimpleNamespace(sleep=lambda interval: next(after_two)())
    )
    ran = ktops("top", "--json")
    *samples, error = map(json.loads, ran.stdout.splitlines())
    assert ran.status == 1
    assert len(samples) == 2
    assert error["error"]["code"] == "server-unreachable"


def test_no_server_is_an_error_with_a_fix(ktops):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ran = ktops("top", "--url", f"http://127.0.0.1:{port}/v1")
    assert ran.status == 1
    assert f"no server answers at http://127.0.0.1:{port}: " in ran.stderr
    assert "Fix: ktops serve" in ran.stderr


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, "no"),
        (500, ""),
        (200, "<html>"),
        (200, "up 1\n"),
        (200, "vllm:num_requests_running 1\n"),
    ],
)
def test_another_server_is_recognised(ktops, status, body):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        ran = ktops("top", "--json", "--url", f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
    assert ran.status == 1
    assert ran.document["error"]["code"] == "not-a-ktops-server"


@pytest.mark.parametrize("url", ["localhost:10002", "nonsense", "ftp://x", "http://", ""])
def test_a_url_that_is_none_is_usage(ktops, url):
    ran = ktops("top", "--url", url, "--json")
    assert ran.status == 2
    assert ran.document["error"]["code"] == "invalid-url"


def test_an_interval_of_nothing_is_usage(ktops):
    assert ktops("top", "--interval", "0").status == 2


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9"),
        ("0.0.0.0", "http://127.0.0.1:9"),
        ("::", "http://[::1]:9"),
        ("box", "http://box:9"),
    ],
)
def test_the_server_is_looked_for_where_the_settings_put_it(host, url, tmp_path):
    from ktops.commands.top import server_url

    assert server_url(Settings(tmp_path, host=host, port=9)) == url


def test_an_open_port_cannot_be_guessed(ktops, monkeypatch):
    monkeypatch.setenv("KTOPS_PORT", "0")
    ran = ktops("top")
    assert ran.status == 2
    assert "Fix: ktops top --url" in ran.stderr
