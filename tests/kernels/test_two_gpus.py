"""Layers of experts on a second GPU: the model answers as with one GPU, and a full one is named."""

from __future__ import annotations

import gc

import pytest
import torch
from hybrid_models import hybrid_model, logits, middle_error, new_runner, prompt
from planned_models import GIB, config, described, machine
from tiny_gguf import V3, write_tiny_gguf

from ktops_engine.config import EngineConfig
from ktops_engine.errors import KtopsError
from ktops_engine.gpu_memory import cuda_uuids, load_within
from ktops_engine.gpus import check_order, detect_gpus
from ktops_engine.plan import place
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

pytestmark = pytest.mark.gpu

BOUND = 2e-2  # of logits, as in test_hybrid_model


@pytest.fixture(autouse=True)
def two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two NVIDIA GPUs")


@pytest.fixture
def files(tmp_path) -> EngineConfig:
    tiny = write_tiny_gguf(tmp_path, V3)
    return EngineConfig(tiny.path, tiny.config_folder)


PLACES = {
    "one": ({1: "cuda:1"}, {2, 3}),
    "one, others in RAM": ({2: "cuda:1"}, {1}),
    "all": (dict.fromkeys((1, 2, 3), "cuda:1"), set()),
}


def decode_together(model, model_config, num_sequences: int, *, stepwise: bool) -> list[list[int]]:
    """Tokens after a prompt of 9 for every sequence, by replays of a graph or in separate steps."""
    runner = new_runner(model, model_config)
    requests = [
        Request(str(i), prompt(model_config, 9, seed=i), SamplingParams(temperature=0),
                block_table=[i])
        for i in range(num_sequences)
    ]  # fmt: skip
    for request in requests:
        runner.run(Batch((BatchItem(request, 0, 9, samples=True),)))
        request.output_token_ids = [5]
    for position in range(9, 17):
        items = tuple(BatchItem(request, position, 1, samples=True) for request in requests)
        if stepwise:
            tokens = runner.logits(Batch(items)).argmax(dim=-1).tolist()
        else:
            sampled = runner.run(Batch(items))
            assert [one.error for one in sampled] == [None] * num_sequences
            tokens = [one.token_id for one in sampled]
        for request, token in zip(requests, tokens, strict=True):
            request.output_token_ids = [*request.output_token_ids, token]
    return [request.output_token_ids for request in requests]


@pytest.mark.parametrize("where", list(PLACES))
def test_logits_of_prompts_and_tokens_are_those_of_one_gpu(files, native_build, where):
    def answers(layers, elsewhere):
        with hybrid_model(files, native_build, "cuda:0", layers, elsewhere) as (model, found, _):
            short = logits(new_runner(model, found), prompt(found, 9), [5, 1, 1, 1, 1])
            long = logits(new_runner(model, found), prompt(found, 300), [300], [3, 1, 5, 0, 2])
            return short, long

    elsewhere, here = PLACES[where]
    expected = answers({*elsewhere, *here}, {})
    for ours, theirs in zip(answers(here, elsewhere), expected, strict=True):
        assert middle_error(ours, theirs) <= BOUND


@pytest.mark.parametrize("num_sequences", [1, 4])
@pytest.mark.parametrize("where", list(PLACES))
def test_a_replayed_graph_gives_the_tokens_of_separate_steps(
    files, native_build, where, num_sequences
):
    elsewhere, here = PLACES[where]
    with hybrid_model(files, native_build, "cuda:0", here, elsewhere) as (model, found, _):
        replayed = decode_together(model, found, num_sequences, stepwise=False)
        assert replayed == decode_together(model, found, num_sequences, stepwise=True)


def test_a_graph_after_a_prompt_beside_it_still_gives_the_same(files, native_build):
    """What a prompt takes of the second GPU's memory is not what the graph works in."""
    with hybrid_model(files, native_build, "cuda:0", (), {2: "cuda:1"}) as (model, found, _):
        runner = new_runner(model, found)
        request = Request("r", prompt(found, 9), SamplingParams(temperature=0), block_table=[1])
        runner.run(Batch((BatchItem(request, 0, 9, samples=True),)))
        request.output_token_ids = [5]
        token = Batch((BatchItem(request, 9, 1, samples=True),))
        expected = runner.run(token)
        for seed in range(4):
            logits(runner, prompt(found, 120, seed), [120], [3, 4])
            assert runner.run(token) == expected


def fill(device: str) -> list[torch.Tensor]:
    """Take all memory of a GPU."""
    torch.cuda.empty_cache()
    held, size = [], 16 * GIB
    while size >= 512:  # the least that torch hands out
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device=device))
        except torch.OutOfMemoryError:
            size //= 2
    return held


def allocated() -> list[int]:
    """Bytes of tensors on both GPUs."""
    gc.collect()
    return [torch.cuda.memory_allocated(index) for index in (0, 1)]


def test_a_second_gpu_that_is_full_is_named_and_nothing_is_kept(files, native_build):
    wish = config(gpu_memory_bytes=80 * GIB)
    placement = place(wish, described(), machine(vram=(80 * GIB, 80 * GIB)))
    assert len(placement.gpus) == 2
    before = allocated()
    held = fill("cuda:1")

    def load():
        elsewhere = dict.fromkeys((1, 2, 3), "cuda:1")
        return hybrid_model(files, native_build, "cuda:0", (), elsewhere).__enter__()

    with pytest.raises(KtopsError) as caught:
        load_within(placement, load)
    assert caught.value.code == "gpu-out-of-memory"
    assert "the memory of GPU 1 ran out" in caught.value.message
    del held
    assert allocated() == before


def test_torch_counts_the_gpus_as_the_plan_does():
    check_order([gpu.uuid for gpu in detect_gpus()], cuda_uuids())
    assert cuda_uuids()[0] == detect_gpus()[0].uuid.removeprefix("GPU-")
