"""A model whose last layers and head the CPU computes, after the GPU its first ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hybrid_models import PLAIN, hybrid_model, logits, middle_error, new_runner, prompt
from model_shapes import V2_LITE, V3, Shape
from tiny_gguf import write_tiny_gguf
from transformers_oracle import Oracle

from ktops_engine.config import EngineConfig
from ktops_engine.errors import KtopsError
from ktops_engine.gpu_runner import GpuRunner
from ktops_engine.kv_cache import LatentCache
from ktops_engine.model_config import ModelConfig
from ktops_engine.models.deepseek2_gpu import HybridModel
from ktops_engine.types import Batch, BatchItem, Request, Sampled, SamplingParams

# Relative L2 of a position's logits; the middle one counts, because a random router decides some
# choices by less than bfloat16 can tell.
BOUND = 2e-2
# A dense layer and two with few and small experts, whose kernels take long when interpreted.
SMALL = {
    "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128,
    "num_hidden_layers": 3, "num_attention_heads": 2, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
}  # fmt: skip
# Where the CPU takes over: within the layers with experts, after the dense one, at the head.
SPLITS = [1, 2, 3]

Split = tuple[HybridModel, ModelConfig, Oracle]


def config_of(folder, shape: Shape, **options: object) -> EngineConfig:
    tiny = write_tiny_gguf(folder, shape, types=PLAIN, **options)
    return EngineConfig(tiny.path, tiny.config_folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> EngineConfig:
    return config_of(tmp_path_factory.mktemp("small"), replace(V3, **SMALL), kv_form="old")


@pytest.fixture(scope="module", params=SPLITS)
def split(request, small, native_build, device) -> Iterator[Split]:
    with hybrid_model(small, native_build, device, gpu_layers=request.param) as made:
        model, config, gguf = made
        assert model.tail.num_layers == 3 - request.param
        assert model.expert_counts.shape == (request.param - 1, config.n_routed_experts)
        yield model, config, Oracle(gguf, config)


def request_of(token_ids: list[int], *blocks: int) -> Request:
    return Request(str(blocks), token_ids, SamplingParams(temperature=0), block_table=list(blocks))


def batch_of(*items: tuple[Request, int, int]) -> Batch:
    """Of requests, from which token on and how many."""
    return Batch(tuple(BatchItem(*item, samples=True) for item in items))


def test_a_prompt_in_chunks_gives_the_logits_of_transformers(split):
    model, config, oracle = split
    token_ids = prompt(config, 9, seed=0)
    ours, theirs = logits(new_runner(model, config), token_ids, [6, 3]), oracle.logits(token_ids)
    for chunk in (slice(0, 6), slice(6, 9)):
        assert middle_error(ours[chunk], theirs[chunk]) <= BOUND


def test_sequences_that_decode_together_get_the_logits_of_transformers_each(split):
    """Two, because interpreted a kernel for one token takes longest."""
    model, config, oracle = split
    runner = new_runner(model, config)
    requests = started(runner, config, [4, 7])
    rows = []
    for _ in range(2):
        rows.append(runner.logits(last_tokens(requests)))
        step(runner, requests)
    for ours, request in zip(torch.stack(rows, 1), requests, strict=True):
        assert request.output_token_ids[1:] == ours.argmax(-1).tolist()
        theirs = oracle.logits(request.token_ids[:-1])[-2:]
        assert middle_error(ours, theirs) <= BOUND


def test_a_tied_head_on_the_cpu_reads_the_embedding(tmp_path, native_build, device):
    files = config_of(tmp_path, replace(V2_LITE, **SMALL), tied=True)
    with hybrid_model(files, native_build, device, gpu_layers=1) as (model, config, gguf):
        token_ids = prompt(config, 6, seed=1)
        ours = logits(new_runner(model, config), token_ids, [4, 2])
        assert middle_error(ours, Oracle(gguf, config).logits(token_ids)) <= BOUND


def test_experts_in_gpu_memory_go_with_layers_on_the_cpu(small, native_build, device):
    with hybrid_model(small, native_build, device, {1}, gpu_layers=2) as (model, config, gguf):
        token_ids = prompt(config, 6, seed=2)
        ours = logits(new_runner(model, config), token_ids, [4, 2])
        assert middle_error(ours, Oracle(gguf, config).logits(token_ids)) <= BOUND
        assert model.expert_traffic() == model.tail.expert_traffic()
        assert model.expert_traffic().num_bytes > 0


def test_the_cache_of_layers_on_the_cpu_is_float32_in_ram(split):
    model, _, _ = split
    cache = LatentCache(3, 1, 64, 8, *model.cache_kind, tail_layers=model.tail.num_layers)
    kinds = [(layer.dtype, layer.device.type) for layer in cache.layers]
    gpu, in_ram = (torch.bfloat16, model.device.type), (torch.float32, "cpu")
    assert kinds == [gpu] * (3 - model.tail.num_layers) + [in_ram] * model.tail.num_layers


def started(runner: GpuRunner, config: ModelConfig, lengths: list[int]) -> list[Request]:
    """Requests whose prompts of some lengths are computed, and a token after each."""
    requests = [
        request_of(prompt(config, length, seed=length), index, 7 - index)
        for index, length in enumerate(lengths)
    ]
    parts = ((request, 0, len(request.token_ids)) for request in requests)
    take(requests, runner.run(batch_of(*parts)))
    return requests


def last_tokens(requests: list[Request]) -> Batch:
    return batch_of(*((request, len(request.token_ids) - 1, 1) for request in requests))


def step(runner: GpuRunner, requests: list[Request]) -> list[str | None]:
    """A token more for each -> what was wrong with it."""
    answers = runner.run(last_tokens(requests))
    take(requests, answers)
    return [answer.error for answer in answers]


def take(requests: list[Request], answers: list[Sampled]) -> None:
    for request, answer in zip(requests, answers, strict=True):
        if answer.token_id is not None:
            request.output_token_ids = [*request.output_token_ids, answer.token_id]


def fail(*args: object, **options: object) -> None:
    raise KtopsError("native-call", "a layer failed", "ktops doctor")


def test_steps_that_fail_are_lost_and_other_sequences_go_on_as_they_were(
    small, native_build, device, monkeypatch
):
    """On the CPU, and on the GPU: then the layers on the CPU do not begin."""
    with hybrid_model(small, native_build, device, gpu_layers=2) as (model, config, _):
        answers = []
        for failing in ("finish", "check_decode"), ():
            runner = new_runner(model, config)
            requests = started(runner, config, [4, 7, 5, 3])
            for name in failing:
                with monkeypatch.context() as broken:
                    broken.setattr(model, name, fail)
                    assert step(runner, requests[:2]) == ["a layer failed"] * 2
            assert step(runner, requests[2:]) == [None, None]
            answers.append([request.output_token_ids for request in requests[2:]])
        assert answers[0] == answers[1]


@pytest.mark.gpu
@pytest.mark.parametrize("gpu_layers", [1, 2, 3, 4])
def test_replayed_graphs_before_layers_on_the_cpu_give_what_separate_steps_give(
    tmp_path, native_build, device, gpu_layers
):
    tiny = write_tiny_gguf(tmp_path, V3)
    files = EngineConfig(tiny.path, tiny.config_folder)
    with hybrid_model(files, native_build, device, gpu_layers=gpu_layers) as (model, config, gguf):
        replayed, separate = new_runner(model, config), new_runner(model, config)
        requests = started(replayed, config, [5, 30, 60])
        assert [request.output_token_ids for request in started(separate, config, [5, 30, 60])] == [
            request.output_token_ids for request in requests
        ]
        rows = []
        for _ in range(16):
            rows.append(separate.logits(last_tokens(requests)))
            assert step(replayed, requests) == [None] * 3
        oracle = Oracle(gguf, config)
        for ours, request in zip(torch.stack(rows, 1), requests, strict=True):
            assert request.output_token_ids[1:] == ours.argmax(-1).tolist()
            theirs = oracle.logits(request.token_ids[:-1])[-16:]
            assert middle_error(ours, theirs) <= BOUND
