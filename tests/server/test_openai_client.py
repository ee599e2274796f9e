"""The `openai` package against a live port."""

from __future__ import annotations

import openai
import pytest


@pytest.fixture
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_chat_completion_parses(client):
    answer = client.chat.completions.create(model="test-model", messages=MESSAGES)
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello, 世界!", "Hm.")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 22
    assert answer.usage.completion_tokens_details.reasoning_tokens == 5
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_a_chat_stream_parses(client):
    stream = client.chat.completions.create(
        model="test-model",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello, 世界!"
    assert last.usage.total_tokens == 29


def test_a_text_completion_parses(client):
    answer = client.completions.create(model="test-model", prompt="a", max_tokens=3, logprobs=1)
    assert answer.choices[0].text == "Hm."
    assert answer.choices[0].logprobs.tokens == ["H", "m", "."]
    chunks = client.completions.create(model="test-model", prompt="a", max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hm."


def test_models_parse(client):
    assert [model.id for model in client.models.list()] == ["test-model"]
    assert client.models.retrieve("test-model").owned_by == "ktops"


def test_errors_become_the_clients_exceptions(client, engine):
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="test-model", messages=MESSAGES, max_tokens=1000)
    assert too_long.value.code == "context_length_exceeded"
    engine.scripts = [["it broke"]]
    with pytest.raises(openai.APIError, match="it broke"):
        list(client.chat.completions.create(model="test-model", messages=MESSAGES, stream=True))


def test_a_request_that_failed_for_good_is_not_repeated(live, engine):
    engine.scripts = [["it broke"]]
    with (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=2) as client,
        pytest.raises(openai.InternalServerError),
    ):
        client.chat.completions.create(model="test-model", messages=MESSAGES)
    assert len(engine.requests) == 1
