"""Of a prompt's last layer only the rows are computed that are sampled, and nothing else changes.

The oracle is the same model asked for the logits of every row, for which it computes them all. The
sampled rows go through the layers of a decode, in another order of sums: relative L2 of their
logits up to 1e-4 with the scalar kernels, which round activations to 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from model_shapes import V2_LITE, V3, Shape
from tiny_gguf import write_tiny_gguf

from ktops_engine.config import EngineConfig
from ktops_engine.kv_cache import LatentCache
from ktops_engine.loader import LoadedModel, load_model
from ktops_engine.runner import CpuRunner, step_input
from ktops_engine.sampler import Sampler
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

BOUND = 1e-4
DENSE = replace(V2_LITE, first_k_dense_replace=V2_LITE.num_hidden_layers)
SHAPES = {"v3": V3, "v2-lite": V2_LITE, "no experts": DENSE}


@pytest.fixture(scope="module", params=list(SHAPES))
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, native_build: object
) -> Iterator[LoadedModel]:
    shape: Shape = SHAPES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KTOPS_ISA", "scalar")
        tiny = write_tiny_gguf(tmp_path_factory.mktemp("model"), shape)
        model = load_model(EngineConfig(tiny.path, tiny.config_folder, ctx_size=512))
    yield model
    model.free()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Where a token chooses between two experts by less than the bound, it would by chance."""
    torch.manual_seed(0)


def new_request(loaded: LoadedModel, length: int, *blocks: int) -> Request:
    token_ids = torch.randint(3, loaded.config.vocab_size - 20, (length,)).tolist()
    return Request(str(blocks), token_ids, SamplingParams(), block_table=list(blocks))


def new_runner(loaded: LoadedModel) -> tuple[CpuRunner, LatentCache]:
    cache = loaded.new_cache()
    return CpuRunner(loaded.model, cache, Sampler([]), num_threads=1), cache


def batch_of(*items: tuple[Request, int, int, bool]) -> Batch:
    """Of requests: from which token on, how many, and whether a next one is drawn."""
    return Batch(tuple(BatchItem(*item) for item in items))


def sampled_logits(loaded: LoadedModel, batch: Batch, cache: LatentCache) -> torch.Tensor:
    return loaded.model.forward(step_input(batch, cache), cache)


def read_of_layers(loaded: LoadedModel) -> list[int]:
    """Bytes of routed experts that each layer has read so far."""
    layers = [layer.feed_forward for layer in loaded.model._tail._layers]
    return [layer.traffic.num_bytes if hasattr(layer, "traffic") else 0 for layer in layers]


def relative_l2(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_a_prompts_last_row_has_the_logits_that_all_rows_give_it(loaded):
    runner, cache = new_runner(loaded)
    request = new_request(loaded, 41, 0)
    batch = batch_of((request, 0, 41, True))
    ours = sampled_logits(loaded, batch, cache)
    assert ours.shape == (1, loaded.config.vocab_size)
    assert relative_l2(ours, runner.logits(batch)[-1:]) <= BOUND


def test_a_chunk_beside_decodes_gives_each_sampled_row_its_logits(loaded):
    runner, cache = new_runner(loaded)
    decoded, chunked = new_request(loaded, 30, 2), new_request(loaded, 75, 4, 1)
    whole = new_request(loaded, 9, 5)
    for request, size in ((decoded, 29), (chunked, 50)):
        runner.run(batch_of((request, 0, size, False)))
    batch = batch_of((decoded, 29, 1, True), (chunked, 50, 20, False), (whole, 0, 9, True))
    ours = sampled_logits(loaded, batch, cache)
    theirs = runner.logits(batch)[[0, 29]]
    for row in range(2):
        assert relative_l2(ours[row], theirs[row]) <= BOUND


def test_any_rows_of_a_sequence_may_be_asked_for(loaded):
    runner, cache = new_runner(loaded)
    batch = batch_of((new_request(loaded, 70, 3, 0), 0, 70, True))
    rows = [2, 40, 66]
    step = replace(step_input(batch, cache), sampled_rows=rows)
    ours = loaded.model.forward(step, cache)
    for mine, other in zip(ours, runner.logits(batch)[rows], strict=True):
        assert relative_l2(mine, other) <= BOUND


def test_all_rows_enter_the_cache_of_the_last_layer(loaded):
    batch = batch_of((new_request(loaded, 41, 0), 0, 41, True))
    few, narrowed = new_runner(loaded)
    few.run(batch)
    all_rows, whole = new_runner(loaded)
    all_rows.logits(batch)
    for ours, theirs in zip(narrowed.layers[:-1], whole.layers[:-1], strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = narrowed.layers[-1], whole.layers[-1]
    assert torch.equal(ours[:40], theirs[:40])
    assert relative_l2(ours[40], theirs[40]) <= BOUND
    assert theirs[40].any()


def test_a_chunk_without_samples_reads_no_experts_of_the_last_layer(loaded):
    _, cache = new_runner(loaded)
    before = read_of_layers(loaded)
    logits = sampled_logits(loaded, batch_of((new_request(loaded, 50, 0), 0, 40, False)), cache)
    assert logits.shape == (0, loaded.config.vocab_size)
    after = read_of_layers(loaded)
    assert after[-1] == before[-1]
    if loaded.config.first_k_dense_replace < loaded.config.num_hidden_layers - 1:
        assert after[-2] > before[-2]


def test_the_last_layer_reads_the_experts_of_the_sampled_rows_alone(loaded):
    config = loaded.config
    if config.first_k_dense_replace == config.num_hidden_layers:
        pytest.skip("it has none")
    one_expert = sum(
        info.nbytes // config.n_routed_experts
        for name, info in loaded.gguf.tensors.items()
        if name.startswith(f"blk.{config.num_hidden_layers - 1}.") and "_exps" in name
    )
    _, cache = new_runner(loaded)
    before = read_of_layers(loaded)
    sampled_logits(loaded, batch_of((new_request(loaded, 50, 0), 0, 50, True)), cache)
    after = read_of_layers(loaded)
    assert after[-1] - before[-1] == config.num_experts_per_tok * one_expert
    assert after[-2] - before[-2] > config.num_experts_per_tok * one_expert


def test_a_decode_after_chunks_gives_what_one_chunk_gives(loaded):
    request = new_request(loaded, 61, 1)
    pieces, _ = new_runner(loaded)
    for start, size, samples in ((0, 32, False), (32, 28, True)):
        pieces.run(batch_of((request, start, size, samples)))
    ours = pieces.logits(batch_of((request, 60, 1, True)))
    whole, _ = new_runner(loaded)
    theirs = whole.logits(batch_of((request, 0, 61, True)))[-1:]
    assert relative_l2(ours, theirs) <= BOUND
