"""The embedded model through the front door: what a GPU answers, the CPU alone answers too."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest
import torch
from planned_models import with_room_for

from ktops_engine import LLM, EngineConfig, SamplingParams
from ktops_engine.demo import demo_path
from ktops_engine.gpus import engine_machine
from ktops_engine.sampler import Sampler
from ktops_engine.types import Batch, BatchItem, Request, StepOutput

pytestmark = pytest.mark.gpu

QUESTIONS = (
    "你是谁?", "写一个计算阶乘的 Python 函数", "Who are you?", "12 + 30 = ?", "什么是 KV 缓存?",
    "What does ktops doctor do?", "如何安装 ktops?", "Write a binary search",
)  # fmt: skip
NUM_STEPS = 48
CONFIG = EngineConfig(demo_path(), demo_path(), ctx_size=1024, max_running=3)


@pytest.fixture(scope="module")
def engines(native_build) -> Iterator[tuple[LLM, LLM]]:
    """On GPU and CPU, and on the CPU alone; both with the integer kernels, because the tiles of AMX
    round activations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KTOPS_ISA", "avx512vnni")
        hybrid = LLM.load(CONFIG)
        patch.setattr("ktops_engine.gpus.detect_gpus", lambda: ())
        alone = LLM.load(CONFIG)
    yield hybrid, alone
    hybrid.shutdown()
    alone.shutdown()


def chat(llm: LLM, question: str) -> list[int]:
    words = f"<｜begin▁of▁sentence｜><｜User｜>{question}<｜Assistant｜><think>\n"
    return llm.tokenizer.encode(words)


def greedy(llm: LLM, token_ids: list[int]) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=NUM_STEPS)
    return [output.token_id for output in llm.generate(token_ids, params)]


def test_the_gpu_holds_what_every_token_uses(engines):
    hybrid, alone = engines
    assert hybrid.placement.is_hybrid
    assert hybrid.placement.gpu_layers == hybrid.model_config.num_hidden_layers
    assert not alone.placement.gpus


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_are_the_same(engines, question):
    hybrid, alone = engines
    token_ids = chat(hybrid, question)
    assert greedy(hybrid, token_ids) == greedy(alone, token_ids)


@pytest.fixture(scope="module", params=[1, 3, 6])
def split(request, native_build) -> Iterator[LLM]:
    """With VRAM for some layers, the last time for all but the head."""
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KTOPS_ISA", "avx512vnni")
        llm = LLM.load(with_room_for(request.param, CONFIG, engine_machine()))
    assert (llm.placement.gpu_layers, llm.placement.gpu_head) == (request.param, False)
    yield llm
    llm.shutdown()


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_answers_are_the_same_with_layers_on_the_cpu(split, engines, question):
    _, alone = engines
    token_ids = chat(alone, question)
    assert greedy(split, token_ids) == greedy(alone, token_ids)


def test_requests_that_decode_together_answer_as_alone_with_layers_on_the_cpu(split):
    answer_together(split)


def test_logits_are_those_of_the_cpu(engines):
    """In the middle: the demo's router balances its experts, so some choices are closer than
    bfloat16, and a position with another expert is off by several per cent."""
    errors = []
    for question in QUESTIONS:
        logits = []
        for llm in engines:
            token_ids = chat(llm, question)
            request = Request("r", token_ids, SamplingParams(), block_table=[0, 1])
            runner = llm._loaded.new_runner(Sampler([]))
            batch = Batch((BatchItem(request, 0, len(token_ids), samples=True),))
            logits.append(runner.logits(batch).float())
        errors.append((logits[0] - logits[1]).norm(dim=-1) / logits[1].norm(dim=-1))
    assert float(torch.cat(errors).median()) <= 2e-2


def test_requests_that_decode_together_answer_as_alone(engines):
    answer_together(engines[0])


def answer_together(llm: LLM) -> None:
    outputs: queue.SimpleQueue[StepOutput] = queue.SimpleQueue()
    params = SamplingParams(temperature=0, max_tokens=NUM_STEPS)
    answers: dict[str, list[int]] = {}
    for question in QUESTIONS[:3]:
        answers[llm.submit(chat(llm, question), params, outputs.put, question)] = []
    unfinished = len(answers)
    while unfinished:
        output = outputs.get(timeout=60)
        assert output.error is None
        answers[output.request_id].append(output.token_id)
        unfinished -= output.finish_reason is not None
    for question, answer in answers.items():
        assert answer == greedy(llm, chat(llm, question))
