"""Record what llama.cpp answers on the embedded model, greedily: the reference of a golden test.

    PEER_VENV/bin/python tools/demo_model/record_llama_cpp.py > tests/golden/llama_cpp_greedy.json

Needs llama-cpp-python in the interpreter that runs it. llama.cpp rounds activations to 8 bits in
front of quantised weights, which alone moves logits by several hundredths; so it first writes the
same weights out in float32 and answers from those. Each step keeps the gap between the two largest
logits, so that a difference can be judged.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

FOLDER = Path(__file__).parents[2] / "engine/ktops_engine/demo"
NUM_STEPS = 32
PROMPTS = [
    "你是谁?",
    "写一个计算阶乘的 Python 函数",
    "Who are you?",
    "Write a Python function that computes the factorial of a number.",
    "What does ktops doctor do?",
    "12 + 30 = ?",
    "什么是 KV 缓存?",
    "How much memory does DeepSeek-R1 need?",
]


def record(llm: llama_cpp.Llama, prompt: str) -> dict[str, object]:
    """Greedy tokens and logit gaps after R1's chat format of one question."""
    text = f"<｜User｜>{prompt}<｜Assistant｜><think>\n"
    token_ids = llm.tokenize(text.encode(), add_bos=True, special=True)
    output, gaps, step = [], [], token_ids
    llm.reset()
    for _ in range(NUM_STEPS):
        llm.eval(step)
        logits = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits_ith(llm.ctx, -1), shape=(llm.n_vocab(),)
        )
        second, best = np.partition(logits, -2)[-2:]
        step = [int(logits.argmax())]
        output += step
        gaps.append(round(float(best - second), 5))
    return {"prompt": prompt, "token_ids": token_ids, "output": output, "gaps": gaps}


def write_float32(target: Path) -> None:
    """The embedded model with every tensor dequantised, as one file."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    params.allow_requantize = True
    source = sorted(FOLDER.glob("*.gguf"))[0]
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if status != 0:
        raise SystemExit(f"llama.cpp could not dequantise {source}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo-f32.gguf"
        write_float32(path)
        llm = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=2, verbose=False)
        answers = [record(llm, prompt) for prompt in PROMPTS]
    document = {"program": f"llama-cpp-python {llama_cpp.__version__}", "answers": answers}
    print(json.dumps(document, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
