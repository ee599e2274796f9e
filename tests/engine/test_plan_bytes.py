"""What a model weighs, from its files and by the rules of Q4_K_M."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from planned_models import GIB, described

from ktops_engine.demo import demo_path
from ktops_engine.gguf import QuantType, TensorInfo, open_gguf
from ktops_engine.model_config import resolve_model_config
from ktops_engine.plan import describe_q4_k_m, facts_of_files
from ktops_engine.plan.model_bytes import sum_tensors


@pytest.mark.parametrize(
    ("alias", "published_bytes", "share"),
    [
        ("r1-q4km", int(376.65 * GIB), 0.0001),
        ("v3-q4km", int(376.65 * GIB), 0.0001),
        ("v2-chat-0628-q4km", 142_450_000_000, 0.0001),
        ("v2-lite-q4km", 10_400_000_000, 0.005),
    ],
)
def test_a_description_weighs_what_the_published_files_do(alias, published_bytes, share):
    assert described(alias).bytes.total == pytest.approx(published_bytes, rel=share)


def test_the_parts_of_r1_are_those_of_its_architecture():
    parts = described().bytes.by_part()
    assert sum(parts.values()) == described().bytes.total
    # The pages that describe the format: attention 11.4 B weights, shared experts 2.6 B, dense
    # layers 1.2 B, head 0.9 B, an expert layer 6.4 to 6.8 GB; at about 4.5 to 6.6 bits a weight.
    assert parts["attention"] == pytest.approx(11.4e9 * 4.5 / 8, rel=0.01)
    assert 2.5e9 * 4.5 / 8 < parts["shared_experts"] < 2.6e9 * 6.6 / 8
    assert parts["output_head"] == 129280 * 7168 // 256 * 210
    assert {layer.routed_experts for layer in described().bytes.layers[3:]} == {
        256 * 2048 * 7168 // 256 * (144 + 144 + down) for down in (144, 210)
    }


def test_the_files_of_the_demo_are_counted_to_the_last_tensor():
    gguf = open_gguf(demo_path())
    config, _ = resolve_model_config(gguf, demo_path())
    facts = facts_of_files(gguf, config)
    assert facts.bytes.total == gguf.total_bytes
    assert facts.source == "files"
    assert facts.bytes.routed_experts == sum(
        tensor.nbytes for name, tensor in gguf.tensors.items() if "_exps." in name
    )


def with_experts(type, rows, columns):
    tensors = {
        "blk.0.attn_q.weight": TensorInfo("blk.0.attn_q.weight", (7, 9), QuantType.F16, 0, 0, 126),
        "blk.1.ffn_up_exps.weight": TensorInfo("x", (4, rows, columns), type, 0, 0, 0),
    }
    gguf = SimpleNamespace(tensors=tensors)
    return facts_of_files(gguf, described().config)


@pytest.mark.parametrize(
    ("type", "rows", "columns"),
    [(QuantType.Q4_K, 2048, 7168), (QuantType.Q6_K, 16, 256), (QuantType.Q8_0, 1408, 64)],
)
def test_experts_in_whole_panels_can_go_to_a_gpu(type, rows, columns):
    assert with_experts(type, rows, columns).gpu_obstacle is None


@pytest.mark.parametrize(
    ("type", "rows", "columns"),
    [(QuantType.BF16, 2048, 7168), (QuantType.Q4_K, 24, 256), (QuantType.Q8_0, 16, 96)],
)
def test_experts_in_another_form_are_named(type, rows, columns):
    assert with_experts(type, rows, columns).gpu_obstacle == (
        f"it has no kernels for experts of {type.name} with {rows} rows and {columns} columns"
    )


@pytest.mark.parametrize(
    ("rows", "columns", "can"), [(1408, 128, True), (16, 128, False), (1408, 64, False)]
)
def test_experts_in_whole_tiles_need_not_lie_in_ram(rows, columns, can):
    assert with_experts(QuantType.Q8_0, rows, columns).can_stay_on_gpu is can


def test_a_description_of_the_demo_comes_close_to_its_files():
    gguf = open_gguf(demo_path())
    config, _ = resolve_model_config(gguf, demo_path())
    described_bytes = describe_q4_k_m(config).bytes.total
    assert described_bytes == pytest.approx(gguf.total_bytes, rel=0.02)


def test_a_tied_embedding_counts_as_the_head_it_is():
    weights = sum_tensors({"token_embd.weight": 100, "output_norm.weight": 4}, 1)
    assert (weights.embedding, weights.head, weights.final_norm) == (0, 100, 4)


def test_tensors_for_multi_token_prediction_are_left_out():
    sizes = {
        "token_embd.weight": 100,
        "output.weight": 50,
        "blk.0.attn_output.weight": 10,
        "blk.0.nextn.eh_proj.weight": 7,
        "blk.1.attn_output.weight": 3,
    }
    weights = sum_tensors(sizes, 1)
    assert (weights.total, weights.left_out) == (160, 10)
