"""What is loaded where is what the plan says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from planned_models import GIB, machine, with_room_for
from shared_layers import layers_sharing_memory

from ktops_engine import loader
from ktops_engine.config import DummyWeights, EngineConfig
from ktops_engine.demo import demo_path
from ktops_engine.expert_counts import add_counts, load_counts
from ktops_engine.loader import load_model
from ktops_engine.models import hybrid
from ktops_engine.plan import every_token_gpu_bytes, facts_of_files
from ktops_engine.sampler import Sampler
from ktops_engine.source import open_source

HERE = machine(4 * GIB, num_cores=2, vram=(8 * GIB,))


@pytest.fixture
def with_gpu(native_build, device, monkeypatch):
    """The loader believes in a GPU; without one, its part is loaded for the interpreter."""
    load_gpu_weights = hybrid.load_gpu_weights
    asked = []

    def load(native, gguf, names, fill, gpu, experts):
        asked.append((gpu, experts))
        experts = dict.fromkeys(experts, torch.device(device))
        return load_gpu_weights(native, gguf, names, fill, torch.device(device), experts)

    monkeypatch.setattr(loader, "engine_machine", lambda: HERE)
    monkeypatch.setattr(hybrid, "load_gpu_weights", load)
    return asked


@pytest.mark.parametrize(("gpu_experts", "layers"), [(0, 0), (64, 2), (70, 2), (None, 5)])
def test_ram_holds_the_experts_that_are_not_in_gpu_memory(with_gpu, gpu_experts, layers):
    notes, progress = [], []
    config = EngineConfig(demo_path(), demo_path(), ctx_size=64, gpu_experts=gpu_experts)
    loaded = load_model(config, progress.append, notes.append)
    placement, in_ram = loaded.placement, loaded.model._in_ram
    assert placement.gpu_expert_layers == layers
    assert in_ram.num_bytes == placement.weights_bytes
    for index in range(1, 6):
        assert (f"blk.{index}.ffn_up_exps.weight" in in_ram) == (index > layers)
    read = [told for told in progress if told.stage == "read"]
    assert read[-1].done_bytes == read[-1].total_bytes
    assert any("--gpu-experts 70" in note for note in notes) == (gpu_experts == 70)
    loaded.free()


def test_the_most_used_experts_are_copied_and_their_use_is_kept(with_gpu, tmp_path, monkeypatch):
    path = tmp_path / "use.npy"
    used = np.ones((5, 32), np.int32)
    used[1, 7] = used[4, 3] = used[4, 0] = 5000
    add_counts(path, used)
    config = EngineConfig(
        demo_path(), demo_path(), ctx_size=64, gpu_experts=3, expert_counts=path
    )  # fmt: skip
    loaded = load_model(config)
    assert (loaded.placement.gpu_experts, loaded.placement.hot_experts) == (0, 3)
    copies = {
        index: set(layer.feed_forward._routed._hot.slot_of)
        for index, layer in enumerate(loaded.model._layers[1:])
        if layer.feed_forward._routed._hot is not None
    }
    assert copies == {1: {7}, 4: {3, 0}}
    monkeypatch.setattr("ktops_engine.gpu_runner.GpuRunner.warm_up", lambda runner, tokens: None)
    loaded.new_runner(Sampler([]))
    loaded.model.expert_counts += 2
    loaded.free()
    assert np.array_equal(load_counts(path, (5, 32)), used + 2)


@pytest.mark.parametrize("layers", [1, 4, 6])
def test_ram_holds_the_layers_that_gpu_memory_has_no_room_for(with_gpu, layers):
    config = EngineConfig(demo_path(), demo_path(), ctx_size=64, gpu_experts=0)
    notes = []
    loaded = load_model(with_room_for(layers, config, HERE), None, notes.append)
    placement, model = loaded.placement, loaded.model
    assert (placement.gpu_layers, placement.gpu_head) == (layers, False)
    assert model._in_ram.num_bytes == placement.weights_bytes
    assert model.tail.num_layers == 6 - layers
    cache = [layer.dtype for layer in loaded.new_cache().layers]
    assert cache == [torch.bfloat16] * layers + [torch.float32] * (6 - layers)
    assert any("the GPU holds" in note for note in notes)
    loaded.free()


def test_each_layers_experts_are_asked_for_on_the_gpu_that_has_room(with_gpu, monkeypatch):
    config = EngineConfig(demo_path(), demo_path(), ctx_size=64)
    source = open_source(config)
    facts = facts_of_files(source.gguf, source.config)
    sizes = [layer.routed_experts for layer in facts.bytes.layers][1:]
    budget = every_token_gpu_bytes(config, facts) + sum(sizes[:2])
    here = machine(4 * GIB, num_cores=2, vram=(8 * GIB, GIB // 8, 8 * GIB))
    monkeypatch.setattr(loader, "engine_machine", lambda: here)
    loaded = load_model(dataclasses.replace(config, gpu_memory_bytes=budget))
    loaded.free()
    assert loaded.placement.expert_layers_by_gpu == (2, 3)
    ((first, experts),) = with_gpu
    assert first == torch.device("cuda", 0)
    assert [experts[layer].index for layer in range(1, 6)] == [0, 0, 2, 2, 2]


def test_layers_that_share_memory_are_those_in_ram_alone(with_gpu):
    config = EngineConfig(
        demo_path(), demo_path(), ctx_size=64, gpu_experts=32, dummy=DummyWeights()
    )  # fmt: skip
    with layers_sharing_memory(config, HERE, 2) as shared:
        loaded = load_model(config, machine=shared.machine)
    placement, model = loaded.placement, loaded.model
    assert (placement.gpu_expert_layers, shared.num_layers) == (1, 4)
    in_ram = model._in_ram
    assert in_ram.num_bytes == placement.weights_bytes - shared.left_out_bytes
    assert "blk.1.ffn_up_exps.weight" not in in_ram
    names = [f"blk.{layer}.ffn_up_exps.weight" for layer in range(2, 6)]
    assert all(name in in_ram for name in names)
    assert len({in_ram.matrix(name).data_ptr for name in names}) == 2
    assert model._handoff.num_layers == 4
    loaded.free()
