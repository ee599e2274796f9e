"""Streams: frames, their order, keep-alive comments, errors on the way."""

from __future__ import annotations

import json
import threading

from ktops_engine.server.sse import frame


def joined(chunks, field, index=0):
    return "".join(
        choice["delta"].get(field, "")
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def test_a_stream_has_the_headers_that_proxies_need(live):
    response = live.chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"]


def test_a_stream_is_role_then_deltas_then_finish_then_done(live, events):
    chunks = events(live.chat(stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert all("role" not in delta for delta in deltas[1:])
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)


def test_streamed_deltas_add_up_to_the_whole_answer(live, events):
    whole = live.chat().json()["choices"][0]["message"]
    chunks = events(live.chat(stream=True))
    assert joined(chunks, "content") == whole["content"]
    assert joined(chunks, "reasoning_content") == whole["reasoning_content"]
    assert joined(chunks, "reasoning") == whole["reasoning"]


def test_include_usage_adds_one_chunk_without_choices(live, events):
    whole = live.chat().json()["usage"]
    *chunks, last = events(live.chat(stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"] == whole
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)


def test_continuous_usage_counts_up_in_every_chunk(live, events):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(live.chat(stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, 22)


def test_choices_are_interleaved_and_complete(live, engine, events):
    engine.scripts = [engine.tokenizer.encode(f"</think>{text}") for text in ("abc", "de")]
    chunks = events(live.chat(stream=True, n=2, stream_options={"include_usage": True}))
    first, second = joined(chunks, "content", 0), joined(chunks, "content", 1)
    assert {first, second} == {"abc", "de"}
    finished = [
        c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]
    ]
    assert sorted(choice["index"] for choice in finished) == [0, 1]
    assert chunks[-1]["usage"]["completion_tokens"] == 9


def test_logprobs_are_streamed_once_each(live, engine, events):
    engine.say("</think>ab世")
    chunks = events(live.chat(stream=True, logprobs=True, top_logprobs=1))
    entries = [
        entry
        for chunk in chunks
        for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert len(entries) == 7
    assert bytes(b for entry in entries[1:-1] for b in entry["bytes"]).decode() == "ab世"


def test_a_stop_string_never_shows_in_part(live, engine, events):
    engine.say("</think>one ST, two STO, three STOP four" + "." * 200)
    chunks = events(live.chat(stream=True, stop=["STOP"]))
    assert joined(chunks, "content") == "one ST, two STO, three "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_role_chunk_waits_for_the_first_token(serve, new_engine):
    engine, first, rest = new_engine(), threading.Event(), threading.Event()
    engine.say(first, "a", rest, "</think>b")
    with (
        serve(engine, keep_alive_s=0.01) as live,
        live.client.stream(
            "POST",
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hi"}], "stream": True},
        ) as response,
    ):
        lines = (line for line in response.iter_lines() if line)
        assert [next(lines) for _ in range(3)] == [": keep-alive"] * 3  # queue and prefill
        first.set()
        data = next(line for line in lines if line.startswith("data:"))
        assert json.loads(data[5:])["choices"][0]["delta"]["role"] == "assistant"
        assert json.loads(next(lines)[5:])["choices"][0]["delta"]["reasoning_content"] == "a"
        assert next(lines) == ": keep-alive"
        rest.set()
        assert list(lines)[-1] == "data: [DONE]"


def test_an_engine_failure_is_told_in_band_before_done(live, engine, events):
    engine.scripts = [[*engine.tokenizer.encode("ab"), "the logits are not finite"]]
    response = live.chat(stream=True)
    *chunks, last = events(response)
    assert response.status_code == 200
    assert last == {
        "error": {
            "message": "the logits are not finite",
            "type": "server_error",
            "param": None,
            "code": "generation_failed",
        }
    }
    assert joined(chunks, "reasoning_content") == "ab"


def test_a_bad_request_is_refused_before_the_stream_begins(live):
    response = live.chat(stream=True, temperature=9)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "temperature"


def test_frames_hold_no_line_break_of_any_kind():
    data = frame({"text": "a\u2028b\u2029c\x85d\ne"})
    assert len(data.decode().splitlines()) == 2
    assert json.loads(data[6:])["text"] == "a\u2028b\u2029c\x85d\ne"
