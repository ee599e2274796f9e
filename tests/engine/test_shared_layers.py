"""Benchmarks' layers of experts that share memory: one model, and the RAM of some of its layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned_models import GIB, described, machine
from shared_layers import choose_stand_ins, layers_sharing_memory

from ktops_engine import LLM, EngineConfig, SamplingParams
from ktops_engine.config import DummyWeights
from ktops_engine.demo import demo_path
from ktops_engine.loader import load_model
from ktops_engine.machine import detect_machine
from ktops_engine.source import open_source

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
DEMO = EngineConfig(demo_path(), demo_path(), ctx_size=64, dummy=DummyWeights())
R1 = DummyWeights(described("r1-q4km").config)


def expert_bytes(layers: range) -> int:
    """Of the routed experts of some of the demo's layers."""
    tensors = open_source(DEMO).gguf.tensors.values()
    return sum(
        tensor.nbytes
        for tensor in tensors
        if "_exps." in tensor.name and int(tensor.name.split(".")[1]) in layers
    )


def test_a_model_answers_with_memory_for_two_layers_of_experts(native_build):
    here = detect_machine()
    with layers_sharing_memory(DEMO, here, 2) as shared:
        llm = LLM.load(DEMO, machine=shared.machine)
    try:
        weights = llm._loaded.model._weights
        answer = [output.token_id for output in llm.generate([5, 6, 7], GREEDY)]
    finally:
        llm.shutdown()
    assert len(answer) == 4
    assert shared.num_layers == 5
    assert shared.left_out_bytes == expert_bytes(range(3, 6))
    assert weights.num_bytes == llm.placement.weights_bytes - shared.left_out_bytes
    assert weights.span[1] < llm.placement.weights_bytes


def test_layers_that_share_memory_keep_routers_of_their_own(native_build):
    here = detect_machine()
    with layers_sharing_memory(DEMO, here, 2) as shared:
        loaded = load_model(DEMO, machine=shared.machine)
    weights = loaded.model._weights

    def address(layer: int, name: str) -> int:
        return weights.matrix(f"blk.{layer}.{name}.weight").data_ptr

    experts = [address(layer, "ffn_down_exps") for layer in range(1, 6)]
    assert len(set(experts)) == 2
    assert experts == [experts[0], experts[1]] * 2 + [experts[0]]
    assert len({address(layer, "ffn_gate_inp") for layer in range(1, 6)}) == 5
    loaded.free()


def test_afterwards_models_have_memory_for_every_layer(native_build):
    with layers_sharing_memory(DEMO, detect_machine(), 2):
        pass
    loaded = load_model(DEMO)
    assert loaded.model._weights.num_bytes == loaded.placement.weights_bytes
    loaded.free()


@pytest.mark.parametrize(("vram", "gpu_experts", "in_ram"), [(14, 0, 58), (75, None, 49)])
def test_r1_is_planned_as_where_there_is_ram_for_all_of_it(vram, gpu_experts, in_ram):
    asked = EngineConfig(
        demo_path(), dummy=R1, gpu_memory_bytes=vram * GIB, gpu_experts=gpu_experts
    )
    here = machine(240 * GIB, vram=(79 * GIB,))
    with layers_sharing_memory(asked, here, 24) as shared:
        assert shared.num_layers == in_ram
        assert shared.machine.gpus == here.gpus
    gguf = open_source(asked).gguf
    layers = range(61 - in_ram, 61)
    stand_ins = choose_stand_ins(gguf, layers, 24)
    assert len(stand_ins) == 3 * (in_ram - 24)
    for name, stand_in in stand_ins.items():
        assert stand_in not in stand_ins
        assert (gguf.tensors[name].type, gguf.tensors[name].shape) == (
            gguf.tensors[stand_in].type,
            gguf.tensors[stand_in].shape,
        )


@pytest.mark.parametrize("asked", [0, 6])
def test_a_number_of_layers_that_are_not_in_ram_is_refused(asked):
    with (
        pytest.raises(ValueError, match=f"{asked} distinct layers: 5 layers of experts are in RAM"),
        layers_sharing_memory(DEMO, machine(4 * GIB), asked),
    ):
        pass


def test_a_layer_cannot_stand_for_one_of_other_types():
    asked = EngineConfig(demo_path(), dummy=R1)
    with (
        pytest.raises(ValueError, match="1 distinct layers cannot stand for 2 kinds"),
        layers_sharing_memory(asked, machine(240 * GIB), 1),
    ):
        pass


def test_a_model_s_own_weights_are_never_shared():
    with (
        pytest.raises(ValueError, match="random, not a model's own"),
        layers_sharing_memory(replace(DEMO, dummy=None), machine(4 * GIB), 2),
    ):
        pass


def test_distinct_layers_that_ram_does_not_hold_are_refused():
    asked = EngineConfig(demo_path(), dummy=R1)
    with (
        pytest.raises(MemoryError, match=r"30 distinct layers take .* and 128.0 can be had"),
        layers_sharing_memory(asked, machine(128 * GIB), 30),
    ):
        pass
