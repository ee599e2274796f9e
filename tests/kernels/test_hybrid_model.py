"""The model on GPU and CPU against transformers in float32, and against itself in other steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hybrid_models import PLAIN, hybrid_model, logits, middle_error, new_runner, prompt
from model_shapes import V2, V2_LITE, V3
from tiny_gguf import Q4_K_M, write_tiny_gguf
from transformers_oracle import Oracle

from ktops_engine.config import EngineConfig
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

# Relative L2 of a position's logits, in bfloat16. A random router decides some choices by less than
# that: a position with another expert is far off, so the one in the middle counts.
BOUND = 2e-2
MODELS = {
    "v3, old up-projection": (V3, {"kv_form": "old"}),
    "v2-lite": (V2_LITE, {"tied": True}),
    "v3": (V3, {}),
    "v2": (V2, {}),
}
INTERPRETED = list(MODELS)[:2]  # both forms of files and of routers
# Interpreted, wide matrices and unpacking them take minutes: the kernels have tests of their own.
NARROW = {
    "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128,
    "num_hidden_layers": 3, "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module", params=list(MODELS))
def case(request, tmp_path_factory, native_build, device):
    if device == "cpu" and request.param not in INTERPRETED:
        pytest.skip("takes minutes without a GPU")
    shape, options = MODELS[request.param]
    types = Q4_K_M
    if device == "cpu":
        shape, types = replace(shape, **NARROW), PLAIN
    tiny = write_tiny_gguf(tmp_path_factory.mktemp("model"), shape, types=types, **options)
    with hybrid_model(EngineConfig(tiny.path, tiny.config_folder), native_build, device) as made:
        model, config, gguf = made
        yield model, config, Oracle(gguf, config)


# Two layers with few experts.
SMALL = replace(
    V3, **NARROW | {"num_hidden_layers": 2}, first_k_dense_replace=0,
    n_routed_experts=4, num_experts_per_tok=1, n_group=1, topk_group=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    tiny = write_tiny_gguf(folder, SMALL, types=PLAIN, kv_form="old")
    return EngineConfig(tiny.path, tiny.config_folder)


def test_logits_equal_those_of_transformers(case):
    model, config, oracle = case
    token_ids = prompt(config, 40)
    ours = logits(new_runner(model, config), token_ids, [len(token_ids)])
    assert middle_error(ours, oracle.logits(token_ids)) <= BOUND


def test_a_prompt_in_chunks_and_single_tokens_gives_the_same(case):
    model, config, oracle = case
    token_ids = prompt(config, 68, seed=1)
    ours = logits(new_runner(model, config), token_ids, [40, 24, 2, 1, 1])
    theirs = oracle.logits(token_ids)
    assert middle_error(ours, theirs) <= BOUND
    # Each way of computing for itself: the middle of all would not notice a few that are wrong.
    assert middle_error(ours[40:64], theirs[40:64]) <= BOUND
    assert middle_error(ours[66:], theirs[66:]) <= BOUND


def test_sequences_that_share_a_step_give_what_each_gives_alone(case):
    model, config, _ = case
    sequences = [prompt(config, 20, seed=2), prompt(config, 23, seed=3)]
    tables = ([3], [6])

    def step(runner, spans):
        items = []
        for sequence, table, (start, size) in zip(sequences, tables, spans, strict=True):
            if size:
                request = Request(str(table), sequence, SamplingParams(), block_table=table)
                items.append(BatchItem(request, start, size, samples=True))
        return runner.logits(Batch(tuple(items)))

    # Both prompts, then a token of one beside a piece of the other.
    together, alone = new_runner(model, config), new_runner(model, config)
    step(together, ((0, 18), (0, 20)))
    mixed = step(together, ((18, 1), (20, 3)))
    for spans in (((0, 18), (0, 0)), ((0, 0), (0, 20))):
        step(alone, spans)
    apart = torch.cat((step(alone, ((18, 1), (0, 0))), step(alone, ((0, 0), (20, 3)))))
    assert middle_error(mixed, apart) <= BOUND


def steps(model, config) -> torch.Tensor:
    """Logits of a short prompt and of a token after it."""
    return logits(new_runner(model, config), prompt(config, 5, seed=5), [4, 1])


@pytest.fixture(scope="module")
def without_residents(small, native_build, device):
    with hybrid_model(small, native_build, device) as (model, config, _):
        return steps(model, config)


@pytest.mark.parametrize(
    ("layers", "elsewhere"),
    [({0}, ()), ({0}, (1,)), ((), (0,))],
    ids=["here and in RAM", "here and on another device", "on another device and in RAM"],
)
def test_experts_in_gpu_memory_give_what_those_in_ram_give(
    small, without_residents, native_build, device, other_device, layers, elsewhere
):
    further = dict.fromkeys(elsewhere, other_device)
    with hybrid_model(small, native_build, device, layers, further) as (model, config, _):
        assert middle_error(steps(model, config), without_residents) <= BOUND
        served = model.expert_traffic().num_bytes
    assert bool(served) == (len(layers) + len(elsewhere) == 1)


HOT_SETS = [{0: [2]}, {0: [3, 0], 1: [1]}, {0: [0, 1, 2, 3], 1: [1, 0, 3, 2]}]


@pytest.mark.parametrize("hot", HOT_SETS, ids=["of a layer", "of both", "all"])
def test_copies_of_experts_in_gpu_memory_give_what_those_in_ram_give(
    small, without_residents, native_build, device, hot
):
    with hybrid_model(small, native_build, device, hot=hot) as (model, config, _):
        assert middle_error(steps(model, config), without_residents) <= BOUND
        # The prompt's experts are on the CPU unless a copy is there; of the token the CPU reads
        # what has none.
        assert (model.expert_traffic().num_bytes == 0) == (hot is HOT_SETS[-1])


def test_experts_that_single_tokens_choose_are_counted(small, native_build, device):
    with hybrid_model(small, native_build, device, hot={1: [1]}) as (model, config, _):
        runner = new_runner(model, config)
        assert not model.expert_counts.any()
        token_ids = prompt(config, 4, seed=6)
        logits(runner, token_ids, [2, 1, 1])
        assert model.expert_counts.sum(dim=1).tolist() == [2 * config.num_experts_per_tok] * 2
        model.recover()
        assert not model.expert_counts.any()


def generate(model, config, *, stepwise: bool) -> list[int]:
    """Tokens after a prompt, by replays of a graph or in separate steps."""
    runner = new_runner(model, config)
    token_ids = prompt(config, 30, seed=4)
    request = Request("r", token_ids, SamplingParams(temperature=0), block_table=[2, 6])
    runner.run(Batch((BatchItem(request, 0, 30, samples=True),)))
    tokens = [5]
    for position in range(30, 46):
        request.output_token_ids = list(tokens)
        batch = Batch((BatchItem(request, position, 1, samples=True),))
        if stepwise:
            tokens.append(int(runner.logits(batch).argmax()))
        else:
            (sampled,) = runner.run(batch)
            assert sampled.error is None
            tokens.append(sampled.token_id)
    return tokens


@pytest.mark.gpu
def test_a_replayed_graph_gives_the_tokens_of_separate_steps(case):
    model, config, _ = case
    assert generate(model, config, stepwise=False) == generate(model, config, stepwise=True)


@pytest.mark.gpu
@pytest.mark.parametrize("layers", [{1}, {1, 2}, {1, 2, 3}], ids=["one", "two", "all"])
def test_a_graph_of_layers_in_gpu_memory_and_in_ram_gives_the_same(
    tmp_path, native_build, device, layers
):
    tiny = write_tiny_gguf(tmp_path, V3)
    files = EngineConfig(tiny.path, tiny.config_folder)
    with hybrid_model(files, native_build, device, layers) as (model, config, gguf):
        assert generate(model, config, stepwise=False) == generate(model, config, stepwise=True)
        token_ids = prompt(config, 40)
        ours = logits(new_runner(model, config), token_ids, [36, 1, 1, 1, 1])
        assert middle_error(ours, Oracle(gguf, config).logits(token_ids)) <= BOUND


@pytest.mark.gpu
@pytest.mark.parametrize("num_hot", [1, 7, None], ids=["one", "some", "all"])
def test_a_graph_with_copies_of_experts_gives_the_same(tmp_path, native_build, device, num_hot):
    tiny = write_tiny_gguf(tmp_path, V3)
    files = EngineConfig(tiny.path, tiny.config_folder)
    rng = np.random.default_rng()
    hot = {layer: rng.permutation(V3.n_routed_experts)[:num_hot].tolist() for layer in (1, 3)}
    with hybrid_model(files, native_build, device, {2}, hot=hot) as (model, config, gguf):
        assert generate(model, config, stepwise=False) == generate(model, config, stepwise=True)
        token_ids = prompt(config, 40)
        ours = logits(new_runner(model, config), token_ids, [36, 1, 1, 1, 1])
        assert middle_error(ours, Oracle(gguf, config).logits(token_ids)) <= BOUND


@pytest.mark.gpu
def test_capturing_a_graph_leaves_the_cache_to_those_who_are_in_it(case):
    """A second request comes while the first one, in block 0, runs."""
    model, config, _ = case
    runner, alone = new_runner(model, config), new_runner(model, config)
    runner.warm_up(64)
    requests = [
        Request(str(block), prompt(config, 20, seed=block), SamplingParams(), block_table=[block])
        for block in (0, 1)
    ]
    for each in (runner, alone):
        for request in requests:
            each.run(Batch((BatchItem(request, 0, 20, samples=True),)))
    before = [layer.clone() for layer in runner._cache.layers]
    runner._graph(2)
    torch.cuda.synchronize()
    assert all(map(torch.equal, before, runner._cache.layers))
    assert all(map(torch.equal, before, alone._cache.layers))


@pytest.mark.gpu
def test_a_graph_counts_the_tokens_it_is_replayed_for_and_no_other(case):
    model, config, _ = case
    model.expert_counts.zero_()
    generate(model, config, stepwise=False)
    assert model.expert_counts.sum(dim=1).unique().tolist() == [16 * config.num_experts_per_tok]


@pytest.mark.gpu
def test_a_prompt_that_the_gpu_has_no_memory_for_leaves_the_next_one_well(case, monkeypatch):
    model, config, _ = case
    runner = new_runner(model, config)
    request = Request("r", prompt(config, 30), SamplingParams(temperature=0), block_table=[1])
    batch = Batch((BatchItem(request, 0, 30, samples=True),))
    (expected,) = runner.run(batch)

    def run_out(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as full:
        full.setattr("ktops_engine.moe.streamed_experts.split_experts", run_out)
        (lost,) = runner.run(batch)
    assert lost.token_id is None
    assert runner.run(batch) == [expected]
