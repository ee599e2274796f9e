"""The embedded model behind a live port, asked through the `openai` client."""

from __future__ import annotations

import time

import openai
import pytest

from ktops_engine import LLM, EngineConfig, SamplingParams
from ktops_engine.demo import demo_path

PROMPTS = ["你是谁?", "Who are you?"]


@pytest.fixture(scope="module")
def llm(native_build):
    path = demo_path()
    llm = LLM.load(EngineConfig(gguf_path=path, model_path=path, cpu_infer=1, ctx_size=512))
    yield llm
    llm.shutdown()


@pytest.fixture(scope="module")
def live(llm, serve):
    with serve(llm, model_id="demo", max_new_tokens=200) as live:
        yield live


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, prompt, **options):
    messages = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(model="demo", messages=messages, temperature=0, **options)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_demo_says_who_it_is_with_reasoning_and_true_usage(client, live, llm, prompt):
    answer = ask(client, prompt)
    [choice], usage = answer.choices, answer.usage
    assert "ktops" in choice.message.content
    assert choice.message.reasoning_content
    assert choice.finish_reason == "stop"
    # The same tokens, counted without the server.
    messages = {"messages": [{"role": "user", "content": prompt}]}
    prompt_ids = live.client.post("/tokenize", json=messages).json()["tokens"]
    greedy = SamplingParams(temperature=0, max_tokens=200)
    ids = [output.token_id for output in llm.generate(prompt_ids, greedy)]
    assert usage.prompt_tokens == len(prompt_ids)
    assert usage.completion_tokens == len(ids)
    assert usage.total_tokens == len(prompt_ids) + len(ids)
    closing = ids.index(llm.tokenizer.token_id("</think>"))
    assert usage.completion_tokens_details.reasoning_tokens == closing + 1


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_streamed_answer_is_the_whole_answer(client, prompt):
    whole = ask(client, prompt)
    *chunks, last = ask(client, prompt, stream=True, stream_options={"include_usage": True})
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert reasoning == whole.choices[0].message.reasoning_content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_the_demo_writes_a_factorial_function(client):
    content = ask(client, "写一个计算阶乘的 Python 函数").choices[0].message.content
    code = content.split("```python")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    [function] = [value for value in names.values() if callable(value)]
    assert function(5) == 120


def test_a_limit_a_stop_string_and_logprobs_work_on_the_real_engine(client):
    assert ask(client, PROMPTS[0], max_tokens=3).choices[0].finish_reason == "length"
    stopped = ask(client, PROMPTS[1], stop=["</think>"]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == ""
    entries = ask(client, PROMPTS[1], logprobs=True, top_logprobs=2, max_tokens=4)
    for entry in entries.choices[0].logprobs.content:
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert entry.logprob <= 0


def test_a_prompt_over_the_context_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "why? " * 600)
    assert caught.value.code == "context_length_exceeded"
    assert "512 tokens" in caught.value.message


def test_the_list_names_the_demo(client):
    [model] = client.models.list()
    assert (model.id, model.max_model_len) == ("demo", 512)


def test_choices_differ_and_a_seed_repeats_them(client):
    def draw():
        answer = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": "qz; 7 vv!"}],
            n=2,
            seed=7,
            max_tokens=40,
            temperature=2,
            top_p=1,
            extra_body={"ignore_eos": True},
        )
        assert answer.usage.completion_tokens == 80
        return [choice.message.to_json() for choice in answer.choices]

    first = draw()
    assert first == draw()
    assert first[0] != first[1]


def test_a_client_that_leaves_frees_the_engine(client, llm, patience_s):
    stream = ask(client, PROMPTS[1], stream=True, max_tokens=400, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert llm.num_running == 1
    stream.close()
    deadline = time.monotonic() + patience_s
    while llm.num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert llm.num_running == 0
    assert ask(client, PROMPTS[1], max_tokens=2).usage.completion_tokens == 2
