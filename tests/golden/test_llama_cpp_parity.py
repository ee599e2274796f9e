"""The embedded model says what llama.cpp says with the same weights, token by token.

The answers are recorded by tools/demo_model/record_llama_cpp.py. Where llama.cpp's two best logits
lie within GAP of each other either token is right.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ktops_engine import LLM, SamplingParams

GAP = 1e-2
RECORDED = json.loads(
    Path(__file__).with_name("llama_cpp_greedy.json").read_text(encoding="utf-8")
)["answers"]


@pytest.mark.parametrize("answer", RECORDED, ids=lambda answer: answer["prompt"])
def test_greedy_tokens_equal_the_recorded_ones(demo: LLM, answer):
    token_ids = answer["token_ids"]
    assert demo.tokenizer.encode(demo.tokenizer.decode(token_ids, False)) == token_ids
    params = SamplingParams(temperature=0, max_tokens=len(answer["output"]), ignore_eos=True)
    ours = [output.token_id for output in demo.generate(token_ids, params)]
    for token_id, theirs, gap in zip(ours, answer["output"], answer["gaps"], strict=True):
        if token_id != theirs:
            assert gap < GAP
            break  # from here on the two continue different texts
