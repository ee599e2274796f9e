"""What clients send wrong, by mistake or on purpose: one error shape, never a traceback."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktops_engine.server.body import parse_json
from ktops_engine.server.errors import ApiError
from ktops_engine.server.messages import normalise_messages
from ktops_engine.server.openai_types import ChatRequest, CompletionRequest, validate

USER = {"role": "user", "content": "hi"}


def refused(response, status=400):
    """The error of a refused request, after checking its shape."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert len(error["message"]) < 2000
    return error


def post(live, content, **headers):
    headers = {"Content-Type": "application/json", **headers}
    return live.client.post("/v1/chat/completions", content=content, headers=headers)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"{", "line 1, column 2"),
        (b"[1]", "must be an object"),
        (b'"text"', "must be an object"),
        (b'{"a": "\xff\xfe"}', "not valid UTF-8 (byte 7)"),
        (b'{"temperature": NaN}', "NaN is not a JSON number"),
        (b'{"temperature": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"temperature": 1e999}', "too large"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "Exceeds the limit"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "deeper than 64"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "surrogate"),
        ("{}".encode("utf-16"), "not valid UTF-8"),
    ],
)  # fmt: skip
def test_a_body_that_is_no_sane_json_object_is_refused(live, content, why):
    error = refused(post(live, content))
    assert error["code"] == "invalid_json"
    assert why in error["message"]


def test_whole_surrogate_pairs_are_text(live, engine, tokenizer):
    assert post(live, json.dumps({"messages": [{**USER, "content": "😀"}]})).status_code == 200
    assert "😀" in tokenizer.decode(engine.requests[0].prompt_token_ids)


def test_another_content_type_is_refused_with_the_header_to_send(live):
    body = json.dumps({"messages": [USER]})
    error = refused(post(live, body, **{"Content-Type": "text/plain"}), 415)
    assert "Content-Type: application/json" in error["message"]
    charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert post(live, body, **charset).status_code == 200


@pytest.mark.parametrize(
    "messages",
    [
        None, [], "hi", {}, [1], ["hi"], [{}], [{"role": "user"}], [{"content": "hi"}],
        [{"role": "wizard", "content": "hi"}], [{"role": ["user"], "content": "hi"}],
        [{"role": "user", "content": 5}], [{"role": "user", "content": {"text": "hi"}}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": [5]}], [{"role": "user", "content": [{}]}],
        [{"role": "user", "content": "hi", "name": 5}],
        [{"role": "assistant", "reasoning_content": 5}],
        [{"role": "assistant", "tool_calls": "f"}], [{"role": "assistant", "tool_calls": [5]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
        [{"role": "tool", "content": "x", "tool_call_id": 5}],
    ],
)  # fmt: skip
def test_messages_of_a_wrong_form_are_refused_by_their_place(live, messages):
    error = refused(live.client.post("/v1/chat/completions", json={"messages": messages}))
    assert error["param"].startswith("messages")


def test_an_image_is_refused_because_the_model_reads_only_text(live):
    error = refused(live.chat([{"type": "image_url", "image_url": {"url": "data:..."}}]))
    assert error["param"] == "messages[0].content[0]"
    assert "reads only text" in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", "5"), ("max_tokens", 1.5),
        ("max_tokens", True), ("max_completion_tokens", 0), ("temperature", -0.1),
        ("temperature", 2.5), ("temperature", "0.5"), ("top_p", 0), ("top_p", 1.1),
        ("top_k", -2), ("top_k", 2**70), ("min_p", 2), ("n", 0), ("n", 65), ("seed", 2**64),
        ("seed", 0.5), ("stop", ""), ("stop", [""]), ("stop", [1]), ("stop", 5),
        ("stop", ["a"] * 33), ("stop", "a" * 513), ("stream", "yes"), ("presence_penalty", 3),
        ("frequency_penalty", -3), ("repetition_penalty", 0), ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}), ("logit_bias", {"262": 1}), ("logit_bias", {"²": 1}),
        ("logit_bias", [1]), ("min_tokens", -1), ("min_tokens", 399), ("stop_token_ids", [262]),
        ("stop_token_ids", [-1]), ("stop_token_ids", [1] * 1025), ("top_logprobs", 3),
        ("tool_choice", "required"), ("tool_choice", {"type": "function"}),
        ("chat_template_kwargs", {"messages": []}), ("chat_template_kwargs", [1]),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(live, engine, field, value):
    error = refused(live.chat(**{field: value}))
    assert error["param"].startswith(field)
    assert not engine.requests


def test_top_logprobs_are_bounded(live):
    assert refused(live.chat(logprobs=True, top_logprobs=21))["param"] == "top_logprobs"


def test_stream_options_without_a_stream_are_refused(live):
    error = refused(live.chat(stream_options={"include_usage": True}))
    assert error["param"] == "stream_options"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("guided_json", {}),
        ("structured_outputs", {"regex": "a+"}),
        ("modalities", ["text", "audio"]),
    ],
)
def test_what_cannot_be_honoured_is_never_silently_dropped(live, engine, field, value):
    error = refused(live.chat(**{field: value}))
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    assert not engine.requests


def test_response_format_text_is_honoured_and_others_refused(live):
    assert live.chat(response_format={"type": "text"}).status_code == 200
    assert refused(live.chat(response_format={"type": "xml"}))["param"] == "response_format.type"


def test_an_unknown_model_is_a_404_that_names_the_known_one(live):
    error = refused(live.chat(model="gpt-4"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "test-model" in error["message"]


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(live):
    error = refused(live.chat("x" * 500))
    assert error["code"] == "context_length_exceeded"
    assert "400 tokens" in error["message"]
    assert "505 tokens" in error["message"]


def test_an_explicit_length_that_does_not_fit_is_refused_with_the_numbers(live):
    assert live.chat(max_tokens=393).status_code == 200
    error = refused(live.chat(max_tokens=394))
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("400", "7", "394", "401"))


def test_a_prompt_that_fills_the_context_leaves_no_room(live):
    assert live.chat("x" * 394).status_code == 200
    assert refused(live.chat("x" * 395))["code"] == "context_length_exceeded"
    assert refused(live.complete("x" * 399))["param"] == "prompt"


def test_a_body_over_the_limit_is_refused(serve, new_engine):
    with serve(new_engine(), max_body_bytes=1000) as live:
        assert refused(live.chat("x" * 1500), 413)["code"] == "request_too_large"
        refused(live.chat("x" * 100_000), 413)
        assert live.chat("hi").status_code == 200


def test_unknown_routes_and_wrong_methods_have_the_same_shape(live):
    assert refused(live.client.get("/v1/nothing"), 404)["code"] == "unknown_route"
    assert refused(live.client.get("/v1/models/"), 404)["code"] == "model_not_found"
    response = live.client.get("/v1/chat/completions")
    assert refused(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    assert refused(live.client.get("/docs"), 404)


def test_request_ids_are_echoed_without_what_could_forge_a_log_line(live):
    def echoed(given):
        headers = {"X-Request-Id": given}
        return live.client.get("/health", headers=headers).headers["x-request-id"]

    assert echoed("abc-123_x.y:z") == "abc-123_x.y:z"
    assert echoed("a b\tc<d>") == "abcd"
    assert echoed("x" * 1000) == "x" * 128
    assert echoed("<<>>").startswith("req-")


def test_a_bug_becomes_a_500_and_a_log_entry(live, engine, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(engine, "submit", broken)
    error = refused(live.chat(), 500)
    assert error["code"] == "internal_error"
    assert "secret" not in error["message"]
    assert "secret detail" in caplog.text


def test_a_full_queue_says_when_to_come_back(live, engine):
    engine.max_waiting = 0
    response = live.chat()
    assert refused(response, 503)["code"] == "queue_full"
    assert int(response.headers["retry-after"]) > 0


def test_when_one_of_n_requests_is_refused_none_runs(live, engine, patience_s):
    engine.say(threading.Event(), "never")
    engine.max_waiting = 2
    refused(live.chat(n=3), 503)
    assert len(engine.requests) == 2
    assert all(played.aborted.wait(patience_s) for played in engine.requests)


def test_a_dead_engine_tells_clients_not_to_retry(live, engine):
    engine.dead_reason = "a worker crashed"
    response = live.chat()
    error = refused(response, 500)
    assert error["code"] == "engine_dead"
    assert "a worker crashed" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert live.client.get("/health").status_code == 500


def test_a_failed_request_tells_clients_not_to_retry(live, engine):
    engine.scripts = [[65, "the logits are not finite"]]
    response = live.chat()
    assert refused(response, 500)["message"] == "the logits are not finite"
    assert response.headers["x-should-retry"] == "false"
    engine.say("</think>still alive")
    assert live.chat().status_code == 200


relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))
texts = st.text("aé世\n0-.", max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(sorted(ChatRequest.model_fields | CompletionRequest.model_fields))


def status_of(check):
    """200, or the status with which `check` refuses."""
    try:
        check()
    except ApiError as error:
        return error.status
    return 200


@settings(relaxed, max_examples=200)
@given(body=st.dictionaries(fields, json_values, max_size=5))
def test_any_json_is_either_read_or_refused_as_a_bad_request(body):
    assert status_of(lambda: validate(ChatRequest, body)) in (200, 400)
    assert status_of(lambda: validate(CompletionRequest, body)) in (200, 400)
    assert status_of(lambda: normalise_messages(body.get("messages"))) in (200, 400)


@relaxed
@given(st.binary(max_size=60))
def test_any_bytes_are_either_an_object_or_refused(data):
    assert status_of(lambda: parse_json(data)) in (200, 400)
