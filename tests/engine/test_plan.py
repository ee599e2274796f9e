"""What fits where: the plan's arithmetic, its limits and its refusals."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_models import GIB, config, described, machine

from ktops_engine.errors import KtopsError
from ktops_engine.plan import (
    WEIGHT_PARTS,
    Part,
    cache_bytes_per_token,
    every_token_gpu_bytes,
    largest_context,
    place,
    plan,
)

R1 = described()
LITE = described("v2-lite-q4km")
unhurried = settings(deadline=None, max_examples=50)  # the machine may be busy


def placed(placement, part):
    return sum(share.parts.get(part, 0) for share in (placement.ram, *placement.gpus))


def gib(low, high):
    return st.integers(low * GIB, high * GIB)


def test_r1_fits_a_server_with_the_memory_it_is_said_to_need():
    placement = plan(config(), R1, machine(384 * GIB))
    assert R1.bytes.total < placement.total_bytes < 384 * GIB
    assert placement.kv_cache_bytes == 8192 * cache_bytes_per_token(R1.config)


def test_r1_on_a_laptop_is_refused_with_the_numbers():
    with pytest.raises(KtopsError) as caught:
        plan(config(), R1, machine(64 * GIB))
    assert caught.value.code == "not-enough-memory"
    assert caught.value.exit_status == 4
    assert "64.0" in caught.value.message


def test_without_a_gpu_everything_is_in_ram_and_attention_is_float32():
    placement = place(config(), R1, machine())
    assert (placement.gpus, placement.gpu_layers, placement.prefill_chunk) == ((), 0, 512)
    assert placement.weights_bytes == R1.bytes.total
    assert placement.kv_up_bytes == 61 * 128 * 256 * 512 * 4


def test_r1_at_8k_takes_about_14_gb_of_a_gpu_and_the_experts_stay_in_ram():
    placement = place(config(), R1, machine(vram=(48 * GIB,)))
    assert placement.every_token_vram_bytes == placement.vram_bytes
    assert 12e9 < placement.vram_bytes < 14e9
    assert placement.ram.routed_bytes == R1.bytes.routed_experts
    assert placement.kv_up_bytes == 0
    assert placement.gpus[0].parts[Part.KV_CACHE] == 8192 * 61 * 576 * 2
    assert placement.ram.parts[Part.TOKEN_EMBEDDING] == R1.bytes.embedding


def test_a_budget_lets_experts_into_spare_gpu_memory():
    placement = place(config(gpu_memory_bytes=40 * GIB), R1, machine(vram=(48 * GIB,)))
    (share,) = placement.gpus
    assert 33 * GIB < share.total_bytes <= 40 * GIB
    assert share.routed_bytes + placement.ram.routed_bytes == R1.bytes.routed_experts
    assert placement.gpu_expert_layers == 3


def test_experts_that_ram_cannot_hold_go_to_the_gpus():
    small = machine(320 * GIB, vram=(80 * GIB, 80 * GIB))
    placement = place(config(), R1, small)
    assert placement.fits
    # 3 % more than it takes, or `serve` would find it tight.
    assert 303 * GIB < placement.ram.total_bytes <= 320 * GIB / 1.03
    assert sum(share.routed_bytes for share in placement.gpus) > 40 * GIB


def test_a_machine_whose_gpus_hold_the_model_has_nearly_nothing_in_ram():
    placement = place(config(), R1, machine(64 * GIB, vram=(96 * GIB,) * 8))
    assert placement.fits
    assert placement.ram.routed_bytes == 0
    assert placement.gpu_expert_layers == 58
    assert placement.total_bytes < 3 * GIB


def test_a_small_gpu_hands_layers_back_and_a_tiny_one_is_left_alone():
    whole = place(config(), R1, machine(vram=(every_token_gpu_bytes(config(), R1) + GIB,)))
    assert whole.gpu_layers == 61
    assert whole.ram.weights_bytes == R1.bytes.routed_experts + R1.bytes.embedding
    assert whole.gpu_head
    no_head = place(config(), R1, machine(vram=(23 * GIB // 2,)))
    assert (no_head.gpu_layers, no_head.gpu_head, no_head.kv_cache_bytes) == (61, False, 0)
    assert no_head.ram.parts[Part.OUTPUT_HEAD] == R1.bytes.head
    some = place(config(), R1, machine(vram=(5 * GIB,)))
    assert 0 < some.gpu_layers < 61
    assert not some.gpu_head
    assert some.kv_up_bytes == pytest.approx((61 - some.gpu_layers) * 128 * 256 * 512 * 4)
    assert some.prefill_chunk == 512
    tiny = place(config(), R1, machine(vram=(GIB,)))
    assert (tiny.gpus, tiny.gpu_layers, tiny.gpu_head) == ((), 0, False)


@unhurried
@given(vram=gib(0, 16), budget=st.none() | gib(1, 16))
def test_layers_are_whole_and_on_one_side(vram, budget):
    """What every token uses of the first layers on the GPU, of the others in RAM."""
    placement = place(config(gpu_memory_bytes=budget), R1, machine(vram=(vram,)))
    first, last = (
        R1.bytes.layers[: placement.gpu_layers],
        R1.bytes.layers[placement.gpu_layers :],
    )
    norm = R1.bytes.final_norm
    head = R1.bytes.head
    for shares, layers, has_head in (
        (placement.gpus, first, placement.gpu_head),
        ((placement.ram,), last, not placement.gpu_head),
    ):
        held = Counter()
        for share in shares:
            held.update(share.parts)
        assert held[Part.ATTENTION] == sum(layer.attention for layer in layers)
        assert held[Part.SHARED_EXPERTS] == sum(layer.shared_experts for layer in layers)
        assert held[Part.DENSE_LAYERS] == sum(layer.dense for layer in layers)
        assert held[Part.ROUTER] == sum(layer.router for layer in layers) + has_head * norm
        assert held[Part.OUTPUT_HEAD] == has_head * head
    cached = sum(share.parts.get(Part.KV_CACHE, 0) for share in placement.gpus)
    assert cached == placement.gpu_layers * 8192 * 576 * 2
    assert placement.kv_cache_bytes == (61 - placement.gpu_layers) * 8192 * 576 * 4


def test_a_number_of_experts_is_put_on_the_gpu_as_far_as_there_is_room():
    host = machine(vram=(48 * GIB,))
    none, some, many = (place(config(gpu_experts=n), R1, host) for n in (0, 300, 100_000))
    assert (none.gpu_experts, none.gpus[0].routed_bytes) == (0, 0)
    assert (some.gpu_experts, some.gpu_expert_layers) == (256, 1)
    assert 1000 < many.gpu_experts < 58 * 256
    assert many.gpu_experts % 256 == 0
    assert many.gpus[0].total_bytes <= many.gpus[0].usable_bytes


@unhurried
@given(ram=gib(1, 1200), vram=st.lists(gib(0, 200), max_size=4), ctx_size=st.integers(1, 163840))
def test_every_byte_of_the_model_is_placed_once(ram, vram, ctx_size):
    placement = place(config(ctx_size=ctx_size), R1, machine(ram, vram=tuple(vram)))
    for part in WEIGHT_PARTS:
        assert placed(placement, part) == R1.bytes.by_part()[part]
    for share in placement.gpus:
        assert share.total_bytes <= share.usable_bytes
    assert all(size > 0 for share in placement.gpus for size in share.parts.values())


@unhurried
@given(ram=gib(1, 500), more_ram=gib(0, 100), vram=gib(0, 500), more_vram=gib(0, 50))
def test_more_memory_never_makes_a_model_stop_fitting(ram, more_ram, vram, more_vram):
    small = place(config(), R1, machine(ram, vram=(vram,)))
    large = place(config(), R1, machine(ram + more_ram, vram=(vram + more_vram,)))
    assert large.fits or not small.fits
    assert (large.gpu_layers, large.gpu_head) >= (small.gpu_layers, small.gpu_head)
    assert large.prefill_chunk >= small.prefill_chunk


@unhurried
@given(budget=gib(0, 500), more=gib(0, 100))
def test_a_larger_budget_never_puts_fewer_layers_on_the_gpu(budget, more):
    host = machine(vram=(600 * GIB,))
    small, large = (
        place(config(gpu_memory_bytes=size), R1, host) for size in (budget, budget + more)
    )
    assert (large.gpu_layers, large.gpu_head) >= (small.gpu_layers, small.gpu_head)
    assert small.vram_bytes <= budget


@unhurried
@given(ram=gib(8, 500), vram=gib(0, 100))
def test_the_largest_context_fits_and_the_next_does_not(ram, vram):
    host = machine(ram, vram=(vram,))
    largest = largest_context(config(), LITE, host)
    if largest == 0:
        assert not place(config(ctx_size=64), LITE, host).fits
        return
    assert place(config(ctx_size=largest), LITE, host).fits
    asked = place(config(), LITE, host)
    if asked.fits:
        assert largest >= asked.ctx_size
    if largest < 163840:
        known = asked if asked.fits else place(config(ctx_size=64), LITE, host)
        longer = place(config(ctx_size=largest + 64), LITE, host)
        assert not longer.fits or sum(s.weights_bytes - s.routed_bytes for s in longer.gpus) < sum(
            s.weights_bytes - s.routed_bytes for s in known.gpus
        )


def test_more_threads_than_cores_are_capped_and_said():
    placement = plan(config(cpu_infer=65), LITE, machine(num_cores=2))
    assert placement.num_threads == 2
    assert "65" in placement.notes[0]


def test_fewer_threads_than_cores_are_obeyed_without_a_word():
    placement = plan(config(cpu_infer=3), LITE, machine(num_cores=8))
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
        plan(config(**values), R1, machine())
    assert (caught.value.code, caught.value.exit_status) == (code, 2)
    assert caught.value.hint.startswith("ktops serve")


@unhurried
@given(ctx_size=st.integers(1, 163840), max_running=st.integers(1, 8))
def test_the_cache_always_holds_what_may_run(ctx_size, max_running):
    wish = config(ctx_size=ctx_size, max_running=max_running)
    placement = plan(wish, R1, machine(10_000 * GIB))
    assert placement.num_blocks * placement.block_size >= ctx_size * max_running
