"""Text completions: every form of prompt, streamed and not."""

from __future__ import annotations

import pytest


def test_a_completion_continues_the_text_as_it_is(live, engine, tokenizer):
    answer = live.complete("ab").json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "text": "Hm.\n</think>\n\nHello, 世界!",
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert engine.requests[0].prompt_token_ids == [
        tokenizer.bos_token_id,
        *tokenizer.encode("ab"),
    ]
    assert answer["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("prompt", "num_prompts"),
    [(["a", "bc"], 2), ([65, 66], 1), ([[65], [66, 67]], 2), ([256, 65], 1)],
)
def test_prompts_may_be_lists_of_texts_or_of_token_ids(live, engine, prompt, num_prompts):
    answer = live.complete(prompt, n=2, seed=5, max_tokens=2).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * num_prompts))
    assert [played.params.seed for played in engine.requests] == [5, 6] * num_prompts
    prompts = [played.prompt_token_ids for played in engine.requests]
    assert answer["usage"]["prompt_tokens"] == sum(len(ids) for ids in prompts[::2])
    assert answer["usage"]["completion_tokens"] == 2 * 2 * num_prompts
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 3 * num_prompts


def test_token_ids_are_used_as_they_are(live, engine):
    live.complete([65, 66])
    assert engine.requests[0].prompt_token_ids == [65, 66]


def test_streamed_texts_add_up(live, events):
    whole = live.complete().json()
    *chunks, last = events(live.complete(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]


def test_logprobs_come_as_parallel_lists(live):
    logprobs = live.complete(logprobs=2, max_tokens=3).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["H", "m", "."]
    assert logprobs["token_logprobs"] == [-0.25] * 3
    assert [len(top) for top in logprobs["top_logprobs"]] == [2, 2, 2]
    assert logprobs["text_offset"] == [0, 1, 2]


def test_streamed_logprobs_go_on_counting_offsets(live, events):
    chunks = events(live.complete(logprobs=0, max_tokens=3, stream=True))
    offsets = [o for chunk in chunks for o in chunk["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 2]


def test_stop_strings_apply(live):
    choice = live.complete(stop=["Hello", "never"]).json()["choices"][0]
    assert choice["text"] == "Hm.\n</think>\n\n"
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "prompt", [None, [], [[]], ["a", 1], [1, "a"], [-1], [True], {"a": 1}, 5, [[1], []], [1.5]]
)
def test_prompts_of_other_kinds_are_refused(live, prompt):
    response = live.complete(prompt)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_token_ids_outside_the_vocabulary_are_refused(live):
    error = live.complete([65, 100_000]).json()["error"]
    assert error["code"] == "invalid_token"
    assert "0 and 261" in error["message"]


@pytest.mark.parametrize(("field", "value"), [("echo", True), ("suffix", "x"), ("best_of", 2)])
def test_what_cannot_be_done_is_refused_by_name(live, field, value):
    error = live.complete(**{field: value}).json()["error"]
    assert error["param"] == field
    assert error["code"] == "unsupported_parameter"


def test_too_many_prompts_times_choices_are_refused(live):
    response = live.complete(["a"] * 65, n=2)
    assert response.status_code == 400
    assert "65 prompts times 2" in response.json()["error"]["message"]
