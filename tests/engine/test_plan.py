"""What fits where: the plan's arithmetic, its limits and its refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktops_engine.config import EngineConfig
from ktops_engine.errors import KtopsError
from ktops_engine.machine import MachineFacts
from ktops_engine.model_config import ModelConfig
from ktops_engine.plan import cache_bytes_per_token, plan

GIB = 1 << 30
R1_WEIGHTS = int(376.65 * GIB)


def r1() -> ModelConfig:
    return ModelConfig(
        vocab_size=129280, hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048,
        num_hidden_layers=61, num_attention_heads=128, n_shared_experts=1, n_routed_experts=256,
        num_experts_per_tok=8, first_k_dense_replace=3, n_group=8, topk_group=4,
        topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True,
        routed_scaling_factor=2.5, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128,
        qk_rope_head_dim=64, v_head_dim=128, rope_theta=10000.0, rope_scaling=None,
        rms_norm_eps=1e-6, max_position_embeddings=163840, bos_token_id=0, eos_token_ids=(1,),
        tie_word_embeddings=False,
    )  # fmt: skip


def machine(num_cores: int = 64, ram: int = 512 * GIB) -> MachineFacts:
    return MachineFacts(tuple(range(num_cores)), ram, ram)


def config(**values: object) -> EngineConfig:
    return EngineConfig(Path("model.gguf"), **values)


def test_r1_fits_a_server_with_the_memory_it_is_said_to_need():
    placement = plan(config(), r1(), R1_WEIGHTS, machine(ram=384 * GIB))
    assert R1_WEIGHTS < placement.total_bytes < 384 * GIB
    assert placement.kv_cache_bytes == 8192 * cache_bytes_per_token(r1())


def test_r1_on_a_laptop_is_refused_with_the_numbers():
    with pytest.raises(KtopsError) as caught:
        plan(config(), r1(), R1_WEIGHTS, machine(ram=64 * GIB))
    assert caught.value.code == "not-enough-memory"
    assert caught.value.exit_status == 4
    assert "64.0" in caught.value.message


def test_more_threads_than_cores_are_capped_and_said():
    placement = plan(config(cpu_infer=65), r1(), GIB, machine(num_cores=2))
    assert placement.num_threads == 2
    assert "65" in placement.notes[0]


def test_fewer_threads_than_cores_are_obeyed_without_a_word():
    placement = plan(config(cpu_infer=3), r1(), GIB, machine(num_cores=8))
    assert (placement.num_threads, placement.notes) == (3, ())


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"cpu_infer": 0}, "invalid-cpu-infer"),
        ({"cpu_infer": -4}, "invalid-cpu-infer"),
        ({"ctx_size": 0}, "invalid-ctx-size"),
        ({"ctx_size": 163841}, "invalid-ctx-size"),
    ],
)
def test_impossible_wishes_are_usage_errors(values, code):
    with pytest.raises(KtopsError) as caught:
        plan(config(**values), r1(), GIB, machine())
    assert (caught.value.code, caught.value.exit_status) == (code, 2)
    assert caught.value.hint.startswith("ktops serve")


@given(ctx_size=st.integers(1, 163840), max_running=st.integers(1, 8))
def test_the_cache_always_holds_what_may_run(ctx_size, max_running):
    placement = plan(
        config(ctx_size=ctx_size, max_running=max_running), r1(), GIB, machine(ram=10_000 * GIB)
    )
    assert placement.num_blocks * placement.block_size >= ctx_size * max_running
