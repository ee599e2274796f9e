"""Chat completions that are not streamed: content, reasoning, counts, parameters."""

from __future__ import annotations

import logging
import math
import threading

import pytest

from ktops_engine.server.logprobs import chat_logprobs, completion_logprobs
from ktops_engine.types import TokenLogprobs


def message(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]


def test_a_whole_answer_has_every_field_clients_read(live):
    answer = live.chat().json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "test-model"
    assert answer["created"] > 1_700_000_000
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hello, 世界!",
                "refusal": None,
                "annotations": [],
                "reasoning_content": "Hm.",
                "reasoning": "Hm.",
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    # 3 reasoning letters, a newline and the tag; 2 newlines, 14 bytes; the end-of-sequence token.
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 22,
        "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }


def test_the_prompt_is_the_rendered_template(live, engine, tokenizer):
    live.client.post(
        "/v1/chat/completions",
        json={
            "messages": [
                {"role": "developer", "content": "Be brief. "},
                {"role": "user", "content": [{"type": "text", "text": "a"},
                                             {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "reasoning_content": "r"},
                {"role": "user", "content": None},
            ]
        },
    )  # fmt: skip
    text = tokenizer.decode(engine.requests[0].prompt_token_ids, skip_special_tokens=False)
    assert text == (
        "<｜begin▁of▁sentence｜>Be brief. <｜User｜>a\nb<｜Assistant｜><｜end▁of▁sentence｜>"
        "<｜User｜><｜Assistant｜><think>\n"
    )


def test_an_answer_cut_off_in_its_reasoning_is_all_reasoning(live):
    answer = live.chat(max_tokens=2).json()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["reasoning_content"] == "Hm"
    assert choice["message"]["content"] == ""
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2


def test_a_template_that_opens_no_reasoning_makes_all_content(live, engine):
    engine.say("plain <think> text")
    answer = message(live.chat(chat_template_kwargs={"thinking": False}))
    assert answer["content"] == "plain <think> text"
    assert answer["reasoning_content"] is None


def test_every_sampling_parameter_reaches_the_engine(live, engine):
    live.chat(
        max_tokens=50,
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        seed=-3,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.1,
        logit_bias={"65": -100, "66": 5.5},
        ignore_eos=True,
        min_tokens=4,
        stop_token_ids=[70, 71],
        user="u",
        reasoning_effort="low",
        parallel_tool_calls=True,
    )
    params = engine.requests[0].params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.5, 7, 0.1)
    assert (params.seed, params.max_tokens, params.min_tokens) == (-3, 50, 4)
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert params.repetition_penalty == 1.1
    assert params.logit_bias == {65: -100, 66: 5.5}
    assert params.ignore_eos
    assert params.stop_token_ids == (70, 71)
    assert params.logprobs is None


def test_what_is_not_given_has_r1s_defaults(live, engine):
    live.chat(temperature=None, top_p=None, stop=None, max_tokens=None, top_k=-1)
    params = engine.requests[0].params
    assert (params.temperature, params.top_p, params.top_k) == (0.6, 0.95, 0)
    assert params.max_tokens == 400 - 7
    assert params.seed is None


def test_max_completion_tokens_goes_before_max_tokens(live, engine):
    live.chat(max_tokens=9, max_completion_tokens=3.0)
    assert engine.requests[0].params.max_tokens == 3


def test_the_servers_default_length_is_no_limit(serve, new_engine):
    engine = new_engine()
    with serve(engine, max_new_tokens=5) as live:
        live.chat()
        live.chat(max_tokens=9)
        live.chat("x" * 390)
    assert [played.params.max_tokens for played in engine.requests] == [5, 9, 400 - 395]


def test_a_stop_string_ends_the_text_and_the_engines_work(live, engine, patience_s):
    engine.say("</think>one STOP", threading.Event(), "never")
    answer = live.chat(stop="STOP").json()
    assert answer["choices"][0]["message"]["content"] == "one "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 9
    assert engine.requests[0].aborted.wait(patience_s)


def test_n_choices_are_n_requests_with_seeds_of_their_own(live, engine):
    engine.scripts = [engine.tokenizer.encode(f"</think>{letter}") for letter in "abc"]
    answer = live.chat(n=3, seed=11).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    contents = {choice["message"]["content"] for choice in answer["choices"]}
    assert contents == {"a", "b", "c"}
    assert [played.params.seed for played in engine.requests] == [11, 12, 13]
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] == 9
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


def test_logprobs_have_an_entry_for_each_sampled_token(live, engine):
    engine.say("</think>世")
    answer = live.chat(logprobs=True, top_logprobs=2).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"] == 5
    assert content[0]["token"] == "</think>"
    assert bytes(b for entry in content[1:4] for b in entry["bytes"]).decode() == "世"
    assert [top["logprob"] for top in content[1]["top_logprobs"]] == [-0.25, -1.25]


def test_logprobs_without_top_ones(live):
    content = live.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert all(entry["logprob"] == -0.25 and entry["top_logprobs"] == [] for entry in content)


def test_the_routes_answer_without_v1_as_well(live):
    body = {"messages": [{"role": "user", "content": "hi"}], "model": "test-model"}
    assert live.client.post("/chat/completions", json=body).status_code == 200


def test_tools_that_must_not_be_called_are_accepted(live):
    tool = {"type": "function", "function": {"name": "f"}}
    assert live.chat(tools=[tool], tool_choice="none").status_code == 200
    assert live.chat(tools=[]).status_code == 200


def test_a_conversation_with_tool_calls_is_accepted(live, engine, tokenizer):
    call = {"id": "c1", "function": {"name": "f", "arguments": "{}"}}
    response = live.client.post(
        "/v1/chat/completions",
        json={
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "42"},
            ]
        },
    )
    assert response.status_code == 200
    assert "[tool]42" in tokenizer.decode(engine.requests[0].prompt_token_ids)


def test_unknown_fields_are_ignored_and_logged_once(serve, new_engine, caplog):
    with caplog.at_level(logging.WARNING, "ktops_engine.server"), serve(new_engine()) as live:
        for _ in range(2):
            assert live.chat(frobnicate=1).status_code == 200
    assert [r.getMessage() for r in caplog.records if "frobnicate" in r.getMessage()] == [
        "ignored the unknown request field 'frobnicate'"
    ]


@pytest.mark.parametrize("field", ["response_format", "stream_options", "tools", "logit_bias"])
def test_null_means_not_given(live, field):
    assert live.chat(**{field: None}).status_code == 200


def test_impossible_tokens_have_a_finite_log_probability(tokenizer):
    entries = [(65, TokenLogprobs(-math.inf, ((66, -math.inf),)))]
    chat = chat_logprobs(tokenizer, entries)["content"][0]
    assert (chat["logprob"], chat["top_logprobs"][0]["logprob"]) == (-9999.0, -9999.0)
    text, _ = completion_logprobs(tokenizer, entries, 0)
    assert (text["token_logprobs"], list(text["top_logprobs"][0].values())) == ([-9999], [-9999])
