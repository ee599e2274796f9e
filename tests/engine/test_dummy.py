"""Random weights: valid, of the right size, at any shape, and a model that computes with them."""

from __future__ import annotations

import errno
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from resident import resident_bytes
from tiny_gguf import V3, TinyModel, write_tiny_gguf

from ktops.hub.catalogue import load_catalogue
from ktops.planning.model_facts import described_facts
from ktops_engine import LLM, EngineConfig, KtopsError, SamplingParams
from ktops_engine.config import DummyWeights
from ktops_engine.demo import demo_path
from ktops_engine.gguf import QuantType, dequantize
from ktops_engine.loader import load_model
from ktops_engine.models.random_rows import RandomRows, blocks_of_spread
from ktops_engine.models.weights import Weights
from ktops_engine.native.load import load_native
from ktops_engine.node_memory import NodeShare
from ktops_engine.source import open_source

MIB = 1 << 20
GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def described(alias: str):
    return described_facts(load_catalogue()[alias]).config


@pytest.fixture
def tiny(tmp_path: Path) -> TinyModel:
    return write_tiny_gguf(tmp_path, V3)


@pytest.mark.parametrize("kind", QuantType)
def test_random_blocks_are_numbers_of_the_wanted_spread(kind):
    data = blocks_of_spread(kind, 2048, 0.0, 0.02)
    assert data.nbytes == 2048 * kind.block_bytes
    weights = dequantize(kind, data, (2048 * kind.block_size,))
    assert np.isfinite(weights).all()
    assert abs(weights.mean()) < 0.1 * 0.02 + 0.02 / 16
    assert 0.9 < weights.std() / 0.02 < 1.1


def test_a_file_s_shapes_are_filled_without_reading_it(native_build, tiny):
    asked = EngineConfig(tiny.path, tiny.config_folder, dummy=DummyWeights())
    stages, notes = set(), []
    llm = LLM.load(asked, lambda progress: stages.add(progress.stage), notes.append)
    try:
        answer = [output.token_id for output in llm.generate([5, 6, 7], GREEDY)]
    finally:
        llm.shutdown()
    assert stages == {"fill"}
    assert "the weights are random numbers: so is every answer" in notes
    assert len(answer) == 4


def test_a_kernel_that_forbids_choosing_nodes_is_said_once(native_build, tiny, monkeypatch):
    shares = (NodeShare(0, 7, 7), NodeShare(1, 5, None))
    monkeypatch.setattr(Weights, "place", lambda *given: errno.EPERM)
    monkeypatch.setattr(Weights, "node_shares", lambda *given: shares)
    asked = EngineConfig(tiny.path, tiny.config_folder, dummy=DummyWeights())
    notes = []
    loaded = load_model(asked, on_note=notes.append)
    try:
        assert loaded.node_shares == shares
    finally:
        loaded.free()
    assert sum("choose NUMA nodes (Operation not permitted)" in note for note in notes) == 1


def test_the_same_random_weights_come_every_time(native_build, tiny):
    def answer() -> list[int]:
        asked = EngineConfig(tiny.path, tiny.config_folder, dummy=DummyWeights())
        llm = LLM.load(asked)
        try:
            return [output.token_id for output in llm.generate([5, 6, 7], GREEDY)]
        finally:
            llm.shutdown()

    assert answer() == answer()


def test_a_tensor_s_random_weights_depend_on_its_name_alone(native_build):
    """So a model is the same one on the CPU alone, with a GPU, and with any number of threads."""
    dummy = DummyWeights(described("v2-lite-q4km"), num_hidden_layers=2)
    gguf = open_source(EngineConfig(demo_path(), dummy=dummy)).gguf
    names = [name for name in gguf.tensors if name.startswith("blk.1.") and "down" not in name]
    native = load_native(native_build)
    cpus = sorted(os.sched_getaffinity(0))

    def digests(groups: list[list[str]], num_threads: int) -> dict[str, str]:
        random, found = RandomRows(), {}
        for group in groups:
            weights = Weights(native, gguf, group)
            with native.create_pool(cpus[:1] * num_threads) as pool:
                weights.fill(pool, random, lambda count: None)
            found |= {name: sha256(weights.data(name)).hexdigest() for name in group}
            weights.free()
        return found

    together = digests([names], 2)
    assert digests([[name] for name in reversed(names)], 1) == together
    assert together["blk.1.ffn_gate_exps.weight"] != together["blk.1.ffn_up_exps.weight"]


def test_a_model_that_is_not_here_takes_its_shapes_and_another_s_tokenizer():
    source = open_source(EngineConfig(demo_path(), dummy=DummyWeights(described("r1-q4km"))))
    assert source.config.num_hidden_layers == 61
    assert source.gguf.tensors["blk.60.ffn_gate_exps.weight"].shape == (256, 2048, 7168)
    assert 375 << 30 < source.gguf.total_bytes < 380 << 30
    assert "text is read and written by the tokenizer of another model" in source.notes


def test_the_first_layers_alone_are_kept():
    dummy = DummyWeights(described("r1-q4km"), num_hidden_layers=2)
    source = open_source(EngineConfig(demo_path(), dummy=dummy))
    layers = {name.split(".")[1] for name in source.gguf.tensors if name.startswith("blk.")}
    assert layers == {"0", "1"}
    assert (source.config.num_hidden_layers, source.config.first_k_dense_replace) == (2, 2)
    total = sum(tensor.nbytes for tensor in source.gguf.tensors.values())
    assert source.gguf.total_bytes == total


@pytest.mark.parametrize("asked", [0, -1, 62])
def test_a_number_of_layers_that_a_model_has_not_is_refused(asked):
    dummy = DummyWeights(described("r1-q4km"), num_hidden_layers=asked)
    with pytest.raises(KtopsError) as raised:
        open_source(EngineConfig(demo_path(), dummy=dummy))
    assert raised.value.code == "invalid-num-hidden-layers"
    assert raised.value.exit_status == 2


def test_what_loading_takes_is_what_the_plan_says_and_comes_back_after(native_build):
    """A plan that is 3 % off would be 12 GiB off for R1."""
    dummy = DummyWeights(described("v2-lite-q4km"), num_hidden_layers=2)
    load_model(EngineConfig(demo_path())).free()  # torch and the heap have their size
    before = resident_bytes()
    loaded = load_model(EngineConfig(demo_path(), dummy=dummy))
    plan = loaded.placement
    taken = resident_bytes() - before
    cache = loaded.new_cache()
    loaded.free()
    del loaded
    assert abs(taken - plan.weights_bytes - plan.kv_up_bytes) < 0.03 * taken + 32 * MIB
    values = sum(layer.nbytes for layer in cache.layers)
    del cache
    assert values == plan.kv_cache_bytes
    assert resident_bytes() < before + 64 * MIB


def test_a_load_that_fails_gives_its_memory_back(native_build):
    dummy = DummyWeights(described("v2-lite-q4km"), num_hidden_layers=2)
    load_model(EngineConfig(demo_path())).free()
    before = resident_bytes()

    def fail(progress) -> None:
        if progress.done_bytes > 128 * MIB:
            assert resident_bytes() > before + 100 * MIB
            raise KtopsError("stopped", "stopped")

    with pytest.raises(KtopsError, match="stopped") as raised:
        load_model(EngineConfig(demo_path(), dummy=dummy), fail)
    del raised
    assert resident_bytes() < before + 64 * MIB
