"""On a GPU too a prompt's last layer computes only the rows that are sampled, wherever its experts
lie, and whether the head is there or on the CPU.

The oracle is the same model asked for every row, which computes its last layer whole. Bound: 2e-2
relative L2 of a row's logits in bfloat16, of the row in the middle, because a random router decides
some choices by less.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hybrid_models import PLAIN, hybrid_model, middle_error, new_runner, prompt
from model_shapes import V2_LITE, V3, Shape
from tiny_gguf import write_tiny_gguf

from ktops_engine.config import EngineConfig
from ktops_engine.models.deepseek2_gpu import GpuStep
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

BOUND = 2e-2
SMALL = {
    "hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 1, "first_k_dense_replace": 0,
    "n_routed_experts": 4, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
# Of prompts that share a step: whether they are sampled, and which rows those are.
LENGTHS, SAMPLES, ROWS = (4, 17, 3, 1), (True, False, True, True), [3, 23, 24]


def config_of(folder, shape: Shape, **options: object) -> EngineConfig:
    tiny = write_tiny_gguf(folder, replace(shape, **SMALL), types=PLAIN, **options)
    return EngineConfig(tiny.path, tiny.config_folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> EngineConfig:
    return config_of(tmp_path_factory.mktemp("small"), V3, kv_form="old")


# What `hybrid_model` is told, by where the last layer's experts or the head lie.
PLACES = {
    "in RAM": {},
    "in GPU memory": {"resident_layers": {1}},
    "head on the CPU": {"gpu_layers": 2},
    "a tail": {"gpu_layers": 1},
}


@pytest.fixture(scope="module", params=list(PLACES))
def model(request, files, native_build, device):
    with hybrid_model(files, native_build, device, **PLACES[request.param]) as (made, config, _):
        yield made, config


@pytest.fixture
def routed_rows(model, monkeypatch) -> list[int]:
    """Rows that the experts of the GPU's last layer were given, call by call."""
    routed, rows = model[0]._layers[-1].feed_forward._routed, []
    prefill = routed.prefill

    def note(x, routing, meanwhile) -> None:
        rows.append(len(x))
        assert len(routing.h) == len(routing.expert_ids) == len(x)
        prefill(x, routing, meanwhile)

    monkeypatch.setattr(routed, "prefill", note)
    return rows


def prompts(config) -> Batch:
    items = []
    for place, (length, samples) in enumerate(zip(LENGTHS, SAMPLES, strict=True)):
        token_ids = prompt(config, length, seed=place)
        request = Request(str(place), token_ids, SamplingParams(), block_table=[7 - 2 * place])
        items.append(BatchItem(request, 0, length, samples))
    return Batch(tuple(items))


def is_last_on_gpu(model) -> bool:
    return model.tail is None or model.tail.num_layers == 0


def test_sampled_rows_have_the_logits_that_all_rows_give_them(model, routed_rows):
    model, config = model
    batch = prompts(config)
    ours = new_runner(model, config)._eager(batch)
    assert routed_rows == [len(ROWS) if is_last_on_gpu(model) else batch.num_tokens]
    theirs = new_runner(model, config).logits(batch)
    assert routed_rows[1:] == [batch.num_tokens]
    assert ours.shape == (len(ROWS), config.vocab_size)
    assert middle_error(ours.cpu(), theirs[ROWS]) <= BOUND


def test_a_chunk_without_samples_enters_the_cache_and_computes_no_experts(model, routed_rows):
    """Of the last layer; the next chunk finds all entries."""
    model, config = model
    request = Request("r", prompt(config, 26, seed=9), SamplingParams(), block_table=[3])
    chunks, whole = new_runner(model, config), new_runner(model, config)
    first = Batch((BatchItem(request, 0, 20, samples=False),))
    assert chunks.run(first) == []
    assert routed_rows == ([] if is_last_on_gpu(model) else [20])
    whole.logits(first)
    for ours, theirs in zip(chunks._cache.layers, whole._cache.layers, strict=True):
        assert middle_error(ours[3 * 64 : 3 * 64 + 20], theirs[3 * 64 : 3 * 64 + 20]) <= BOUND
    second = Batch((BatchItem(request, 20, 6, samples=True),))
    assert middle_error(chunks.logits(second), whole.logits(second)) <= BOUND


def test_without_query_compression_and_with_a_tied_head_it_is_the_same(
    tmp_path, native_build, device
):
    files = config_of(tmp_path, V2_LITE, tied=True)
    with hybrid_model(files, native_build, device) as (model, config, _):
        batch = prompts(config)
        ours = new_runner(model, config)._eager(batch)
        theirs = new_runner(model, config).logits(batch)
        assert middle_error(ours.cpu(), theirs[ROWS]) <= BOUND


def test_rows_of_a_step_become_sequences_with_one_new_token(device):
    """Of two sequences: four tokens from position 3 on, and two from 8 on."""
    x = torch.randn(6, 8, device=device)
    positions = torch.tensor([3, 4, 5, 6, 8, 9], dtype=torch.int32, device=device)
    slots = torch.tensor([19, 20, 21, 22, 40, 41], dtype=torch.int32, device=device)
    lengths = torch.tensor([7, 10], dtype=torch.int32, device=device)
    tables = torch.tensor([[1, 2], [4, 5]], dtype=torch.int32, device=device)
    step = GpuStep(x, positions, slots, lengths, tables, (4, 2), (3, 8)).single_tokens([0, 3, 5])
    assert torch.equal(step.x, x[[0, 3, 5]])
    assert step.positions.tolist() == [3, 6, 9]
    assert step.slots.tolist() == [19, 22, 41]
    assert step.lengths.tolist() == [4, 7, 10]
    assert step.block_tables.tolist() == [[1, 2], [1, 2], [4, 5]]
    assert (step.num_tokens, step.starts) == ((1, 1, 1), (3, 6, 9))
