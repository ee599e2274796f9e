"""One new token a sequence: the native layers against those of torch, and what must not matter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from model_shapes import V2, V2_LITE, V3, Shape
from tiny_gguf import write_tiny_gguf

from ktops_engine.config import EngineConfig
from ktops_engine.kv_cache import LatentCache
from ktops_engine.layers.decode import DecodeStep
from ktops_engine.loader import LoadedModel, load_model
from ktops_engine.runner import CpuRunner
from ktops_engine.sampler import Sampler
from ktops_engine.types import Batch, BatchItem, Request, SamplingParams

LENGTHS = (70, 3, 41)  # of the sequences; the cache blocks of the last are apart
BOUND = 1e-4  # of logits: activations are rounded to 16 bits at other places


@pytest.fixture(scope="module", params=[V3, V2, V2_LITE], ids=["v3", "v2", "v2-lite"])
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, native_build: object
) -> Iterator[LoadedModel]:
    yield from load(request.param, tmp_path_factory)


def load(shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KTOPS_ISA", "avx512vnni")  # no tiles: their rounding is another
        tiny = write_tiny_gguf(tmp_path_factory.mktemp("model"), shape)
        model = load_model(EngineConfig(tiny.path, tiny.config_folder, ctx_size=512))
    yield model
    model.free()


def prompts_in_cache(loaded: LoadedModel) -> tuple[LatentCache, list[Request], CpuRunner]:
    """A cache that holds all tokens of each sequence but the last."""
    torch.manual_seed(0)
    cache = loaded.new_cache()
    runner = CpuRunner(loaded.model, cache, Sampler([]), num_threads=1)
    blocks = list(range(loaded.placement.num_blocks))
    tables = (blocks[:2], blocks[2:3], blocks[-1:2:-2])
    requests = []
    for length, table in zip(LENGTHS, tables, strict=True):
        token_ids = torch.randint(3, 300, (length,)).tolist()
        requests.append(Request(str(length), token_ids, SamplingParams(), block_table=table))
    for request in requests:
        size = len(request.prompt_token_ids) - 1
        runner.run(Batch((BatchItem(request, 0, size, samples=False),)))
    return cache, requests, runner


def last_tokens(requests: list[Request]) -> Batch:
    items = (BatchItem(r, len(r.prompt_token_ids) - 1, 1, samples=True) for r in requests)
    return Batch(tuple(items))


def test_native_layers_agree_with_those_of_torch(loaded, monkeypatch):
    cache, requests, runner = prompts_in_cache(loaded)
    layers, batch = loaded.model._tail, last_tokens(requests)

    def through_torch(step: DecodeStep, caches: list[torch.Tensor]) -> None:
        layers._prefill(step.x, step.rotations, step.sequences, caches)

    ours = runner.logits(batch)
    entered = [layer.clone() for layer in cache.layers]
    monkeypatch.setattr(layers, "_decode", through_torch)
    theirs = runner.logits(batch)
    assert (ours - theirs).norm() <= BOUND * theirs.norm()
    for mine, other in zip(entered, cache.layers, strict=True):
        assert (mine - other).norm() <= BOUND * other.norm()


def test_neighbours_in_the_batch_change_no_bit(loaded):
    _, requests, runner = prompts_in_cache(loaded)
    together = runner.logits(last_tokens(requests))
    for row, request in zip(together, requests, strict=True):
        assert torch.equal(row, runner.logits(last_tokens([request]))[0])


def test_experts_read_by_native_layers_are_counted(loaded):
    _, requests, runner = prompts_in_cache(loaded)
    before = runner.expert_traffic()
    runner.logits(last_tokens(requests[:1]))
    traffic, config = runner.expert_traffic(), loaded.config
    num_layers = config.num_hidden_layers - config.first_k_dense_replace
    one_expert = sum(
        info.nbytes // config.n_routed_experts
        for name, info in loaded.gguf.tensors.items()
        if "_exps" in name
    )
    assert num_layers > 0
    assert traffic.num_bytes - before.num_bytes == config.num_experts_per_tok * one_expert
    assert traffic.seconds > before.seconds
