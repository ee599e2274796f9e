"""What the first start compiles, and that nothing else comes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hybrid_models import hybrid_model, logits, middle_error, new_runner, prompt
from tiny_gguf import V3, write_tiny_gguf

from ktops_engine.config import EngineConfig
from ktops_engine.gguf import QuantType
from ktops_engine.gpu_runner import GpuRunner
from ktops_engine.kernels.launch import is_compiling
from ktops_engine.kernels.matrix import MAX_FEW_TOKENS
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

BOUND = 2e-2  # of logits, as in test_hybrid_model: who computes an expert may differ
SMALL = replace(
    V3, hidden_size=128, moe_intermediate_size=128, num_hidden_layers=2, first_k_dense_replace=0,
    num_attention_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
)  # fmt: skip
TYPES = {
    "": QuantType.BF16,
    **{f"ffn_{name}_exps": QuantType.Q8_0 for name in ("gate", "up", "down")},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> EngineConfig:
    tiny = write_tiny_gguf(tmp_path_factory.mktemp("small"), SMALL, types=TYPES, kv_form="old")
    return EngineConfig(tiny.path, tiny.config_folder)


@pytest.fixture(params=["in RAM", "in GPU memory", "on another device", "copied", "a tail"])
def model(request, files, native_build, device, other_device):
    """A model whose experts lie in one of the places that there are."""
    places = {
        "in RAM": {},
        "in GPU memory": {"resident_layers": {0}},
        "on another device": {"further_gpu_layers": {1: other_device}},
        "copied": {"hot": {0: [1, 2], 1: [3]}},
        "a tail": {"gpu_layers": 1},
    }
    with hybrid_model(files, native_build, device, **places[request.param]) as (made, config, _):
        yield made, config


def state(runner, model) -> list[torch.Tensor]:
    """What must not change: caches, counts, what was read of the experts."""
    read = torch.tensor([model.expert_traffic().num_bytes])
    return [layer.clone() for layer in (*runner._cache.layers, model.expert_counts, read)]


def is_same(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_compiling_changes_nothing(model):
    model, config = model
    runner = new_runner(model, config)
    for layer in runner._cache.layers:
        layer.normal_()
    before = state(runner, model)
    runner.compile_kernels((5, 40))
    assert is_same(before, state(runner, model))


def test_the_first_answer_after_it_is_right(files, native_build, device):
    with hybrid_model(files, native_build, device) as (model, config, _):
        token_ids = prompt(config, 4, seed=1)
        runner = new_runner(model, config)
        runner.compile_kernels((5, 40))
        first = logits(runner, token_ids, [3, 1])
        without = logits(new_runner(model, config), token_ids, [3, 1])
    assert middle_error(first, without) <= BOUND


def test_what_is_compiled_is_not_computed(model, monkeypatch):
    model, config = model

    def fail(*args: object) -> None:
        raise AssertionError("the CPU was asked for experts")

    for name in ("ktops_engine.native.load.Pool.moe_forward", "ktops_engine.moe.handoff.Handoff"):
        monkeypatch.setattr(name if name.endswith("forward") else f"{name}.serve", fail)
    new_runner(model, config).compile_kernels((5, 40))


def test_kernels_are_compiled_before_any_is_launched(files, native_build, device, monkeypatch):
    steps = []

    def note(runner: GpuRunner, size: int) -> None:
        steps.append((size, is_compiling()))

    for name in ("_warm_up_prompt", "_launch_decode", "_graph"):
        monkeypatch.setattr(GpuRunner, name, note)
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: None)
    with hybrid_model(files, native_build, device) as (model, config, _):
        new_runner(model, config).warm_up(100)
    prompts, decodes = [5, 32], range(1, MAX_FEW_TOKENS + 1)
    assert steps == [(size, True) for size in (*prompts, *decodes)] + [
        (size, False) for size in (*prompts, 1)
    ]


def test_a_prompt_longer_than_any_before_finds_no_pieces_of_shorter_ones(
    files, native_build, device, monkeypatch
):
    given_back = []
    with hybrid_model(files, native_build, device) as (model, config, _):
        runner = new_runner(model, config)
        monkeypatch.setattr("torch.cuda.empty_cache", lambda: given_back.append(length))
        for length in (5, 20, 7, 20, 40, 1):
            logits(runner, prompt(config, length), [length])
    assert given_back == [5, 20, 40]


@pytest.mark.gpu
def test_warming_up_twice_leaves_cache_and_counts_as_they_were(model):
    model, config = model
    runner = new_runner(model, config)
    for layer in runner._cache.layers:
        layer.normal_()
    before = state(runner, model)[:-1]
    runner.warm_up(512)
    runner.warm_up(512)
    assert is_same(before, state(runner, model)[:-1])
    token_ids = prompt(config, 20, seed=2)
    answers = logits(runner, token_ids, [18, 1, 1])
    cold = logits(new_runner(model, config), token_ids, [18, 1, 1])
    assert middle_error(answers, cold) <= BOUND


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [(1,), (7, 2), (77,), (200, 3, 16)])
def test_requests_of_any_size_compile_nothing_after_it(model, monkeypatch, lengths):
    import triton

    model, config = model
    runner = new_runner(model, config)
    runner.warm_up(512)
    compiled = []

    def note(*, src, cache_hit, **rest) -> None:
        if not cache_hit:
            compiled.append(src.name)

    monkeypatch.setattr(triton.knobs.compilation, "listener", note)
    items = []
    for place, length in enumerate(lengths):
        request = Request(
            str(place),
            prompt(config, length),
            SamplingParams(temperature=0),
            block_table=[3 + place] if place else [0, 1, 2, 3],
        )
        runner.run(Batch((BatchItem(request, 0, length, samples=True),)))
        request.output_token_ids = [5]
        items.append(BatchItem(request, length, 1, samples=True))
    runner.run(Batch(tuple(items)))
    assert not compiled
