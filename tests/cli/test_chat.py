"""`ktops chat` against a small server that speaks the OpenAI chat stream."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ktops.chat.client import ChatClient
from ktops.chat.conversation import Conversation, Sampling, converse
from ktops.output import Output


def delta(**fields) -> dict:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def finish(reason: str = "stop") -> dict:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}
ANSWER = [
    delta(role="assistant", reasoning_content="let me "),
    delta(reasoning_content="think"),
    delta(content="\n\nI am "),
    delta(content="演示"),
    finish(),
    USAGE,
]


class FakeServer(ThreadingHTTPServer):
    """Answers every chat with `chunks`, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.chunks: list[dict] = ANSWER
        self.status = 200
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(json.dumps({"object": "list", "data": [{"id": "fake"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["Authorization"])
        if self.server.status != 200:
            self.reply(json.dumps({"error": {"message": "no, because"}}), self.server.status)
            return
        frames = [f"data: {json.dumps(chunk)}\n\n" for chunk in self.server.chunks]
        self.reply(": keep-alive\n\n" + "".join(frames) + "data: [DONE]\n\n")

    def reply(self, text: str, status: int = 200) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def stdin(monkeypatch):
    """`stdin("text")` makes that the piped standard input."""

    def pipe(text: str | bytes) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return pipe


def test_a_prompt_prints_the_answer_and_nothing_else(ktops, server):
    ran = ktops("chat", "--url", server.url, "-p", "你是谁?")
    assert (ran.status, ran.stdout, ran.stderr) == (0, "I am 演示\n", "")
    assert server.bodies[0]["model"] == "fake"
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "你是谁?"}]
    assert "temperature" not in server.bodies[0]


def test_a_piped_question_is_read_whole_even_with_broken_bytes(ktops, server, stdin):
    stdin(b"two\nlines \xff\n")
    assert ktops("chat", "--url", server.url + "/v1/").stdout == "I am 演示\n"
    assert server.bodies[0]["messages"][0]["content"] == "two\nlines �"


def test_flags_reach_the_request(ktops, server):
    ktops(
        "chat", "other", "--url", server.url, "-p", "x", "--temperature", "0",
        "--max_new_tokens", "7", "--api_key", "sesame",
    )  # fmt: skip
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("other", 0, 7)
    assert server.keys == ["Bearer sesame"]


def test_json_has_answer_reasoning_reason_and_usage(ktops, server):
    document = ktops("chat", "--url", server.url, "-p", "x", "--json").document
    assert document["answer"] == "I am 演示"
    assert document["reasoning"] == "let me think"
    assert document["finish_reason"] == "stop"
    assert document["usage"]["total_tokens"] == 8


def test_an_answer_cut_at_its_limit_is_followed_by_a_warning(ktops, server):
    server.chunks = [delta(content="cut"), finish("length"), USAGE]
    ran = ktops("chat", "--url", server.url, "-p", "x")
    assert ran.stdout == "cut\n"
    assert "cut after 5 tokens" in ran.stderr


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_question_is_usage(ktops, server, stdin, text):
    stdin(text)
    ran = ktops("chat", "--url", server.url)
    assert ran.status == 2
    assert "there is nothing to ask" in ran.stderr


@pytest.mark.parametrize(
    ("status", "message"), [(401, "wants another API key"), (400, "the server answered: no, beca")]
)
def test_a_refusal_is_a_message(ktops, server, status, message):
    server.status = status
    ran = ktops("chat", "--url", server.url, "-p", "x")
    assert ran.status == 1
    assert message in ran.stderr
    assert "Fix: ktops chat" in ran.stderr


def test_an_error_in_the_stream_is_a_message(ktops, server):
    server.chunks = [delta(content="half"), {"error": {"message": "the engine has stopped"}}]
    ran = ktops("chat", "--url", server.url, "-p", "x")
    assert ran.status == 1
    assert "the server answered: the engine has stopped" in ran.stderr


def test_a_stream_of_something_else_is_a_message(ktops, server):
    server.chunks = [{"hello": "world"}]
    ran = ktops("chat", "--url", server.url, "-p", "x")
    assert ran.status == 1
    assert "not as an OpenAI server" in ran.stderr


def test_no_server_is_a_message(ktops, server):
    url = server.url
    server.server_close()
    ran = ktops("chat", "--url", url, "-p", "x")
    assert ran.status == 1
    assert f"no answer from {url}" in ran.stderr
    assert "Fix: ktops serve" in ran.stderr


def test_a_url_takes_no_files(ktops, server):
    ran = ktops("chat", "--url", server.url, "-p", "x", "--gguf-path", "x.gguf")
    assert ran.status == 2


@pytest.fixture
def talk(server, monkeypatch, capsys):
    """`talk("line", ...)` holds a conversation of these lines and returns (stdout, stderr)."""

    def hold(*lines: str) -> tuple[str, str]:
        script = iter(lines)

        def read(prompt: str = "") -> str:
            line = next(script, None)
            if line is None:
                raise EOFError
            if line == "^C":
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr("builtins.input", read)
        with ChatClient(server.url) as client:
            converse(Conversation(client, "fake", Sampling()), Output())
        captured = capsys.readouterr()
        return captured.out, captured.err

    return hold


def test_a_conversation_keeps_answers_but_not_reasoning(talk, server):
    stdout, _ = talk("one", "", "two")
    assert stdout == "let me think\n\nI am 演示\n" * 2
    assert server.bodies[1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "I am 演示"},
        {"role": "user", "content": "two"},
    ]


def test_reset_forgets_and_exit_leaves(talk, server):
    talk("one", "/reset", "two", "/exit", "never")
    assert [len(body["messages"]) for body in server.bodies] == [1, 1]


def test_help_and_an_unknown_command_list_the_commands(talk, server):
    _, stderr = talk("/help", "/frob")
    assert stderr.count("/reset") == 2
    assert "There is no command /frob" in stderr
    assert server.bodies == []


def test_an_error_ends_the_answer_and_not_the_conversation(talk, server):
    server.status = 400
    _, stderr = talk("one", "two")
    assert stderr.count("error: the server answered: no, because") == 2
    assert [len(body["messages"]) for body in server.bodies] == [1, 1]


def test_ctrl_c_at_the_prompt_leaves(talk):
    with pytest.raises(KeyboardInterrupt):
        talk("one", "^C")


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(talk, server, monkeypatch):
    stream = Output.stream
    interrupts = iter([KeyboardInterrupt()])

    def interrupted(self, text, *styles):
        stream(self, text, *styles)
        if text == "I am ":
            for interrupt in interrupts:
                raise interrupt

    monkeypatch.setattr(Output, "stream", interrupted)
    _, stderr = talk("one", "two")
    assert "Stopped. Ctrl-C again leaves." in stderr
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": "I am "}


def test_a_key_may_hold_any_character(server):
    with ChatClient(server.url, "sésame") as client:
        assert client.url == server.url
