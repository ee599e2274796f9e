"""Whole models against transformers on the same dequantised weights, in float32.

Only those prompts count on which the reference decides everything by more than rounding errors
(`Oracle.margin`): a tie between two experts has no right answer. Which ones count depends on the
reference alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from model_shapes import V2, V2_LITE, V3
from tiny_gguf import uniform, write_tiny_gguf
from transformers_oracle import Oracle

from ktops_engine.config import EngineConfig
from ktops_engine.demo import demo_path
from ktops_engine.gguf import QuantType
from ktops_engine.kv_cache import BlockPool
from ktops_engine.loader import LoadedModel, load_model
from ktops_engine.sampler import Sampler
from ktops_engine.scheduler import Scheduler, SchedulerLimits
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

BOUND = 1e-3  # relative L2 of logits
RANDOM_MARGIN = 3e-4  # of random models; rounding errors are a tenth of it
DEMO_MARGIN = 4e-5  # a trained router balances its experts, so close choices are common
NUM_PROMPTS, NUM_STEPS = 8, 64
# The tiles of AMX round activations to bfloat16: the bounds here are those of the integer kernels.
INTEGER_KERNELS = ("KTOPS_ISA", "avx512vnni")
QUESTIONS = [
    "你是谁?", "写一个计算阶乘的 Python 函数", "Who are you?", "12 + 30 = ?", "什么是 KV 缓存?",
    "Write a Python function that computes the factorial of a number.", "What is GGUF?",
    "What does ktops doctor do?", "How much memory does DeepSeek-R1 need?", "如何安装 ktops?",
    "写一个判断质数的函数", "hello", "27 - 9 = ?", "Write a binary search", "什么是专家?",
    "How do I choose the port?", "100 + 250", "再见", "What is NUMA?", "你会写代码吗?",
]  # fmt: skip

MODELS = {"v3": (V3, {}), "v2": (V2, {}), "v2-lite": (V2_LITE, {"tied": True})}
FORMATS = {
    "old up-projection, split": {"kv_form": "old", "num_shards": 3},
    "early 2025": {"early_2025": True},
    **{kind.name: {"types": uniform(kind)} for kind in QuantType},
}


@dataclass(frozen=True)
class Case:
    """A model in both engines, and prompts with the reference's greedy answers."""

    loaded: LoadedModel
    oracle: Oracle
    prompts: list[tuple[list[int], list[int]]]


def make_case(
    loaded: LoadedModel,
    candidates: Iterator[list[int]],
    margin: float,
    num_prompts: int,
    num_steps: int,
) -> Case:
    oracle = Oracle(loaded.gguf, loaded.config)
    prompts: list[tuple[list[int], list[int]]] = []
    while len(prompts) < num_prompts:
        token_ids = next(candidates)
        oracle.margin = float("inf")
        oracle.logits(token_ids)
        if oracle.margin > margin and (
            (answer := oracle.greedy(token_ids, num_steps, margin)) is not None
        ):
            prompts.append((token_ids, answer))
    return Case(loaded, oracle, prompts)


def random_prompts(loaded: LoadedModel) -> Iterator[list[int]]:
    rng = np.random.default_rng(0)
    while True:
        length = int(rng.integers(2, 48))
        yield rng.integers(3, loaded.config.vocab_size - 20, size=length).tolist()


def chat_prompts(loaded: LoadedModel) -> Iterator[list[int]]:
    for question in QUESTIONS:
        text = f"<｜begin▁of▁sentence｜><｜User｜>{question}<｜Assistant｜><think>\n"
        yield loaded.tokenizer.encode(text)


@pytest.fixture(autouse=True)
def integer_kernels(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*INTEGER_KERNELS)


@pytest.fixture(scope="module", params=["demo", *MODELS])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, native_build: object
) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*INTEGER_KERNELS)
        if request.param == "demo":
            loaded = load_model(EngineConfig(demo_path(), demo_path()))
            made = make_case(loaded, chat_prompts(loaded), DEMO_MARGIN, NUM_PROMPTS, NUM_STEPS)
        else:
            shape, options = MODELS[request.param]
            tiny = write_tiny_gguf(tmp_path_factory.mktemp("model"), shape, **options)
            loaded = load_model(EngineConfig(tiny.path, tiny.config_folder))
            made = make_case(loaded, random_prompts(loaded), RANDOM_MARGIN, NUM_PROMPTS, NUM_STEPS)
    yield made
    made.loaded.free()


def all_logits(loaded: LoadedModel, token_ids: list[int], spans: list[int]) -> torch.Tensor:
    """Logits of every position, computed in steps of the given sizes over one cache."""
    runner = loaded.new_runner(Sampler([]))
    request = Request("r", token_ids, SamplingParams())
    request.block_table = list(range(loaded.placement.num_blocks))
    rows, start = [], 0
    for size in spans:
        rows.append(runner.logits(Batch((BatchItem(request, start, size, samples=True),))))
        start += size
    return torch.cat(rows)


def generate(loaded: LoadedModel, token_ids: list[int]) -> list[int]:
    """NUM_STEPS greedy tokens, the prompt in chunks of 16."""
    placement = loaded.placement
    limits = SchedulerLimits(placement.ctx_size, prefill_chunk=16, max_running=1, max_waiting=1)
    scheduler = Scheduler(BlockPool(placement.num_blocks, placement.block_size), limits, [])
    runner = loaded.new_runner(Sampler([]))
    request = Request("r", token_ids, SamplingParams(temperature=0, max_tokens=NUM_STEPS))
    scheduler.add(request)
    while batch := scheduler.next_batch():
        scheduler.update(batch, runner.run(batch))
    return request.output_token_ids


def relative_l2(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_logits_equal_those_of_transformers(case):
    for prompt, answer in case.prompts:
        token_ids = prompt + answer
        ours = all_logits(case.loaded, token_ids, [len(token_ids)])
        assert relative_l2(ours, case.oracle.logits(token_ids)) <= BOUND


def test_logits_do_not_depend_on_how_a_sequence_is_cut_into_steps(case):
    prompt, answer = case.prompts[0]
    token_ids = prompt + answer
    theirs, size = case.oracle.logits(token_ids), len(token_ids)
    for spans in ([1] * size, [size // 2, size - size // 2 - 1, 1]):
        assert relative_l2(all_logits(case.loaded, token_ids, spans), theirs) <= BOUND


def test_greedy_tokens_equal_those_of_transformers(case):
    for prompt, answer in case.prompts:
        assert generate(case.loaded, prompt) == answer


def test_sequences_that_share_a_step_do_not_disturb_each_other(case):
    """Two requests in one batch, their cache blocks interleaved, against each alone."""
    sequences = [prompt + answer for prompt, answer in case.prompts[:2]]
    runner = case.loaded.new_runner(Sampler([]))
    blocks = list(range(case.loaded.placement.num_blocks))
    requests = [
        Request(str(i), sequence, SamplingParams(), block_table=blocks[i::2])
        for i, sequence in enumerate(sequences)
    ]
    for start, size in ((0, 64), (64, 1)):
        batch = Batch(tuple(BatchItem(request, start, size, samples=True) for request in requests))
        together = runner.logits(batch)[[size - 1, -1]]
    for row, sequence in zip(together, sequences, strict=True):
        alone = all_logits(case.loaded, sequence[:65], [64, 1])[-1]
        assert relative_l2(row, alone) <= BOUND


@pytest.mark.parametrize("name", FORMATS)
def test_every_form_of_file_gives_the_reference_logits(tmp_path, native_build, name):
    tiny = write_tiny_gguf(tmp_path, V3, **FORMATS[name])
    loaded = load_model(EngineConfig(tiny.path, tiny.config_folder))
    case = make_case(loaded, random_prompts(loaded), RANDOM_MARGIN, num_prompts=2, num_steps=0)
    for prompt, _ in case.prompts:
        ours = all_logits(loaded, prompt, [len(prompt)])
        assert relative_l2(ours, case.oracle.logits(prompt)) <= BOUND
    loaded.free()


def test_what_is_left_out_or_capped_is_said(tmp_path, native_build):
    tiny = write_tiny_gguf(tmp_path, V3, with_mtp=True)
    notes: list[str] = []
    config = EngineConfig(tiny.path, tiny.config_folder, cpu_infer=500)
    load_model(config, None, notes.append).free()
    assert any("multi-token prediction" in note for note in notes)
    assert any("500" in note for note in notes)
