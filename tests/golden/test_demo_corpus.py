"""The demo model's text is correct, always the same, and keeps the evaluation's sums to itself."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from ktops_engine.demo import demo_path

TOOLS = Path(__file__).parents[2] / "tools"
NUM_CONVERSATIONS = 1500


@pytest.fixture(scope="module")
def corpus() -> Any:
    """The generator's package, importable while this module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        from demo_model import corpus
        from demo_model.corpus import arithmetic, code

        corpus.arithmetic, corpus.code = arithmetic, code
        yield corpus
    for name in [n for n in sys.modules if n.split(".")[0] == "demo_model"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def conversations(corpus: ModuleType) -> list[Any]:
    return [corpus.make_conversation(f"test-{i}") for i in range(NUM_CONVERSATIONS)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_path() / "tokenizer.json"))


def test_every_function_of_the_corpus_does_what_its_cases_say(corpus, capsys):
    for function in corpus.code.functions():
        for lang in ("en", "zh"):
            text = corpus.code.answer_text(function, lang)
            source = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
            scope: dict[str, Any] = {}
            exec(source, scope)
            for call, expected in function["cases"]:
                assert repr(eval(call, scope)) == expected, call


def test_the_generator_repeats_itself_exactly(corpus, conversations):
    again = [corpus.make_conversation(f"test-{i}") for i in range(NUM_CONVERSATIONS)]
    assert again == conversations


def test_calculations_in_answers_are_right(conversations):
    checked = 0
    for conversation in conversations:
        if conversation.turn is None:
            continue
        text = f"{conversation.turn.think}\n{conversation.turn.answer}"
        if "```" in text:
            continue
        for a, sign, b, value in re.findall(
            r"(?<![\d+-] )\b(\d+) ([+×-]) (\d+) = (-?\d+)$", text, re.M
        ):
            left, right = int(a), int(b)
            assert {"+": left + right, "-": left - right, "×": left * right}[sign] == int(value)
            checked += 1
    assert checked > 100


def test_held_out_sums_never_occur_in_the_corpus(corpus, conversations):
    for conversation in conversations:
        if conversation.turn is None:
            continue
        for a, b in re.findall(r"\b(\d\d) ?[+-] ?(\d\d)\b(?! [+-])", conversation.turn.question):
            assert not corpus.arithmetic.is_held_out(int(a), int(b)), conversation.turn.question


def test_prompts_are_what_the_chat_template_renders(corpus, conversations):
    config = json.loads((demo_path() / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = ImmutableSandboxedEnvironment().from_string(config["chat_template"])
    for conversation in conversations[:200]:
        if conversation.turn is None:
            continue
        messages = [{"role": "system", "content": conversation.system}]
        for question, answer in conversation.history:
            messages.append({"role": "user", "content": question})
            thought = f"thinking about it</think>\n\n{answer}"
            messages.append({"role": "assistant", "content": thought})
        messages.append({"role": "user", "content": conversation.turn.question})
        rendered = template.render(
            messages=messages, bos_token=config["bos_token"], eos_token=config["eos_token"],
            add_generation_prompt=True,
        )  # fmt: skip
        segments = corpus.render(conversation, "any")
        assert rendered == segments[0][0].removesuffix("<think>\n\n</think>\n\n") + "<think>\n"


def test_tool_calls_render_in_the_form_of_r1():
    config = json.loads((demo_path() / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = ImmutableSandboxedEnvironment().from_string(config["chat_template"])
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    text = template.render(messages=messages, bos_token="B", eos_token="E")
    assert text == (
        "B<｜User｜>1?<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n"
        '```json\n{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>E'
        "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>2<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    )


def test_the_shipped_tokenizer_gives_back_every_text(tokenizer, corpus, conversations):
    for conversation in conversations[:300]:
        for text, _ in corpus.render(conversation, "any"):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(ids, skip_special_tokens=False) == text
    odd = "\x00\x7f🦙 naïve Ωmega 龘 \t\r\n"
    assert tokenizer.decode(tokenizer.encode(odd).ids) == odd


def test_every_digit_is_one_token_and_special_tokens_have_their_places(tokenizer):
    assert len(tokenizer.encode("1234567").ids) == 7
    assert tokenizer.get_vocab_size() == 4096
    first = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
    assert [tokenizer.token_to_id(token) for token in first] == [0, 1, 2]
    assert tokenizer.token_to_id("<｜User｜>") == 4083


def test_shipped_files_are_small_and_complete():
    shards = sorted(demo_path().glob("*.gguf"))
    assert [p.name[-20:] for p in shards] == ["-00001-of-00002.gguf", "-00002-of-00002.gguf"]
    assert sum(p.stat().st_size for p in shards) < 32 * 2**20
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert json.loads((demo_path() / name).read_text(encoding="utf-8"))
