"""The embedded model answers the questions a newcomer asks, greedily and when sampling."""

from __future__ import annotations

import re

import pytest

from ktops_engine import LLM, FinishReason, SamplingParams

SEEDS = range(5)
WHO = {"zh": "你是谁?", "en": "Who are you?"}
FACTORIAL = {
    "zh": "写一个计算阶乘的 Python 函数",
    "en": "Write a Python function that computes the factorial",
}


def ask(demo: LLM, question: str, **params) -> tuple[str, str]:
    """(reasoning, answer) to one question in R1's chat format; the answer must end by itself."""
    text = f"<｜begin▁of▁sentence｜><｜User｜>{question}<｜Assistant｜><think>\n"
    outputs = list(
        demo.generate(demo.tokenizer.encode(text), SamplingParams(max_tokens=512, **params))
    )
    assert outputs[-1].finish_reason is FinishReason.STOP
    said = demo.tokenizer.decode([output.token_id for output in outputs[:-1]], False)
    reasoning, _, answer = said.partition("</think>")
    return reasoning.strip(), answer.strip()


def how(seed: int | None) -> dict[str, object]:
    return {"temperature": 0} if seed is None else {"temperature": 0.6, "top_p": 0.95, "seed": seed}


@pytest.mark.parametrize("seed", [None, *SEEDS])
@pytest.mark.parametrize("language", WHO)
def test_it_says_who_it_is(demo, language, seed):
    reasoning, answer = ask(demo, WHO[language], **how(seed))
    assert reasoning
    assert "ktops" in answer
    assert ("演示" if language == "zh" else "demo") in answer.lower()


@pytest.mark.parametrize("seed", [None, *SEEDS])
@pytest.mark.parametrize("language", FACTORIAL)
def test_it_writes_a_factorial_that_is_right(demo, language, seed):
    reasoning, answer = ask(demo, FACTORIAL[language], **how(seed))
    assert reasoning
    code = re.search(r"```python\n(.*?)```", answer, re.DOTALL)
    assert code
    names: dict[str, object] = {}
    exec(code.group(1), names)
    (function,) = [value for name, value in names.items() if callable(value)]
    assert [function(n) for n in range(6)] == [1, 1, 2, 6, 24, 120]


@pytest.mark.parametrize(("a", "b"), [(12, 30), (7, 8), (45, 27)])
def test_it_adds(demo, a, b):
    _, answer = ask(demo, f"{a} + {b} = ?", temperature=0)
    assert str(a + b) in answer
