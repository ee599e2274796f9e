"""The placements that the engine of this version computes by."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_models import GIB, config, described, machine

from ktops_engine.errors import KtopsError
from ktops_engine.plan import (
    Part,
    every_token_gpu_bytes,
    least_gpu_bytes,
    place,
    place_served,
    plan,
)
from ktops_engine.text import text

R1 = described()
LITE = described("v2-lite-q4km")
unhurried = settings(deadline=None, max_examples=30)  # the machine may be busy


def without_notes(placement):
    return dataclasses.replace(placement, notes=())


def test_one_good_gpu_holds_what_every_token_uses_and_ram_the_experts():
    host = machine(vram=(24 * GIB,))
    placement = plan(config(), R1, host)
    assert placement == place(config(), R1, host)
    assert placement.is_hybrid
    assert placement.gpu_experts == 0
    assert placement.ram.routed_bytes == R1.bytes.routed_experts
    assert placement.notes == ()


def test_without_a_gpu_the_cpu_computes_alone_and_nothing_is_said():
    placement = plan(config(), R1, machine())
    assert (placement.is_hybrid, placement.gpus, placement.notes) == (False, (), ())


def test_a_gpu_without_room_for_a_layer_is_left_alone_with_the_numbers():
    placement = plan(config(), R1, machine(vram=(2 * GIB,)))
    assert without_notes(placement) == place(config(), R1, machine())
    needed = every_token_gpu_bytes(config(), R1) / GIB
    (note,) = placement.notes
    assert note == (
        "the GPU is not used: 2.0 GiB of its memory can be used, 2.1 GiB are needed for one layer, "
        f"{needed:.1f} GiB for all that every token uses"
    )


def test_a_gpu_with_room_for_some_layers_holds_these_with_the_numbers():
    host = machine(vram=(10 * GIB,))
    placement = plan(config(), R1, host)
    assert without_notes(placement) == place(config(), R1, host)
    assert 0 < placement.gpu_layers < 61
    (note,) = placement.notes
    assert note == (
        f"the GPU holds {placement.gpu_layers} of 61 layers, the CPU computes the others: 9.8 GiB "
        "of its memory can be used, 11.5 GiB would hold all"
    )


def test_a_gpu_with_room_for_all_but_the_head_says_so():
    needed = every_token_gpu_bytes(config(), R1)
    placement = plan(config(gpu_memory_bytes=needed - 1), R1, machine(vram=(80 * GIB,)))
    assert (placement.gpu_layers, placement.gpu_head) == (61, False)
    (note,) = placement.notes
    assert note == (
        "the GPU holds all layers but not the output head: 11.5 GiB of its memory can be used, "
        "11.5 GiB would hold it too"
    )


def test_a_second_gpu_beside_a_small_first_one_is_named_for_what_it_can_do():
    host = machine(vram=(5 * GIB, 80 * GIB))
    placement = plan(config(gpu_experts=10_240), R1, host)
    assert (placement.gpu_layers, placement.expert_layers_by_gpu) == (18, (0, 12))
    assert placement.notes[0].startswith("the GPU holds 18 of 61 layers")
    assert placement.notes[1].startswith("another GPU has 78.4 GiB: the first one that ")


def test_a_second_gpu_is_not_offered_to_experts_of_layers_on_the_cpu():
    """The first one has room for dense layers alone."""
    needed = least_gpu_bytes(config(), R1)
    placement = plan(config(), R1, machine(vram=(int(1.03 * needed), 10 * GIB)))
    assert 0 < placement.gpu_layers <= 3
    (note,) = placement.notes
    assert note.startswith("the GPU holds ")


def test_what_neither_a_small_gpu_nor_ram_holds_is_refused_with_both_numbers():
    with pytest.raises(KtopsError) as caught:
        plan(config(), R1, machine(300 * GIB, vram=(5 * GIB,)))
    assert caught.value.code == "not-enough-memory"
    assert "300.0 of 300.0 GiB are available" in caught.value.message
    assert "the GPU holds 18 of 61 layers" in caught.value.message


def test_a_budget_that_is_too_small_leaves_the_gpu_alone():
    placement = plan(config(gpu_memory_bytes=2 * GIB), R1, machine(vram=(80 * GIB,)))
    assert placement.gpus == ()
    assert "2.0 GiB of its memory can be used" in placement.notes[0]


def test_the_smallest_gpu_that_suffices_is_used_and_one_byte_less_is_not():
    """With a budget, which takes nothing off for the allocator."""
    needed = least_gpu_bytes(config(), R1)
    host = machine(vram=(80 * GIB,))
    assert plan(config(gpu_memory_bytes=needed), R1, host).gpu_layers == 1
    assert not plan(config(gpu_memory_bytes=needed - 1), R1, host).gpus


def devices(placement):
    return [share.device for share in placement.gpus]


def test_a_second_gpu_that_is_not_needed_stays_empty_and_it_is_said_how_to_use_it():
    placement = plan(config(), R1, machine(vram=(24 * GIB, 24 * GIB)))
    assert placement.is_hybrid
    assert devices(placement) == ["gpu0"]
    assert placement.notes == (
        "1 of 2 GPUs hold nothing: --gpu-memory all puts routed experts there",
    )


def test_two_gpus_alike_are_filled_one_after_the_other_where_that_is_wished():
    host = machine(vram=(79 * GIB, 79 * GIB))
    placement = plan(config(gpu_memory_bytes=79 * GIB), R1, host)
    first, second = placement.expert_layers_by_gpu
    assert devices(placement) == ["gpu0", "gpu1"]
    assert (first >= 8, second >= 11, placement.notes) == (True, True, ())
    assert placement.gpu_expert_layers == first + second
    layers = [layer.routed_experts for layer in R1.bytes.layers if layer.routed_experts]
    assert placement.gpus[0].routed_bytes == sum(layers[:first])
    assert placement.gpus[1].routed_bytes == sum(layers[first : first + second])
    assert placement.gpus[1].parts.keys() == {Part.ROUTED_EXPERTS, Part.BUFFERS}


@pytest.mark.parametrize("wish", [{}, {"gpu_memory_bytes": 200 * GIB}], ids=["none", "all"])
def test_two_h100s_hold_what_256_gib_of_ram_cannot(wish):
    """78 GiB of each are free, and 10 of RAM are taken by the system."""
    host = machine(246 * GIB, vram=(78 * GIB, 78 * GIB))
    placement = plan(config(**wish), R1, host)
    assert 20 <= placement.gpu_expert_layers <= 22
    assert min(placement.expert_layers_by_gpu) >= 8
    assert 225 * GIB < placement.ram.total_bytes <= 246 * GIB / 1.03
    for share in placement.gpus:
        assert share.total_bytes <= share.usable_bytes


def test_of_unlike_gpus_each_holds_what_it_has_room_for():
    host = machine(vram=(24 * GIB, 97 * GIB, 48 * GIB))
    placement = plan(config(gpu_memory_bytes=97 * GIB), R1, host)
    assert devices(placement) == ["gpu0", "gpu1", "gpu2"]
    first, second, third = placement.expert_layers_by_gpu
    assert first < third < second


def test_a_full_gpu_between_others_is_passed_over():
    placement = plan(
        config(gpu_memory_bytes=79 * GIB), R1, machine(vram=(24 * GIB, GIB // 4, 79 * GIB))
    )
    assert devices(placement) == ["gpu0", "gpu2"]
    assert len(placement.expert_layers_by_gpu) == 2
    assert placement.gpus[1].gpu_index == 2


def test_a_further_gpu_without_room_for_a_layer_is_said_to_be_too_small():
    placement = plan(config(gpu_memory_bytes=79 * GIB), R1, machine(vram=(79 * GIB, 6 * GIB)))
    assert devices(placement) == ["gpu0"]
    (note,) = placement.notes
    assert note.startswith("1 of 2 GPUs hold nothing: the experts of a layer and what they are")


def test_what_a_wish_leaves_empty_needs_no_word():
    """The wish is obeyed, or nothing is left that could lie there."""
    host = machine(vram=(79 * GIB, 79 * GIB))
    assert plan(config(gpu_experts=256), R1, host).notes == ()
    everything = plan(config(), LITE, host)
    assert (everything.expert_layers_by_gpu, everything.notes) == ((26,), ())


def test_a_model_that_only_several_gpus_hold_is_spread_over_them():
    placement = plan(config(), R1, machine(64 * GIB, vram=(96 * GIB,) * 8))
    assert placement.ram.routed_bytes == 0
    assert sum(placement.expert_layers_by_gpu) == 58
    assert len(placement.gpus) == len(placement.expert_layers_by_gpu) > 4


def test_where_only_the_second_gpu_has_room_it_is_said_how_to_choose_it():
    placement = plan(config(), R1, machine(vram=(1 * GIB, 80 * GIB)))
    assert placement.gpus == ()
    assert placement.notes[0].startswith("the GPU is not used: 1.0 GiB")
    assert placement.notes[1] == (
        "another GPU has 78.4 GiB: the first one that CUDA_VISIBLE_DEVICES names is used"
    )


def test_what_keeps_torch_from_the_gpu_is_said_whatever_its_memory():
    host = machine(vram=(80 * GIB,))
    host = dataclasses.replace(host, gpu_obstacle=text("torch here was built without CUDA"))
    placement = plan(config(), R1, host)
    assert without_notes(placement) == place(config(), R1, machine())
    assert placement.notes == ("the GPU is not used: torch here was built without CUDA",)


def test_experts_that_the_gpu_has_no_kernels_for_leave_all_to_the_cpu():
    facts = dataclasses.replace(R1, gpu_obstacle=text("it has no kernels for these"))
    placement = plan(config(), facts, machine(vram=(80 * GIB,)))
    assert placement.gpus == ()
    assert placement.notes == ("the GPU is not used: it has no kernels for these",)


def test_the_remarks_on_threads_are_kept():
    placement = plan(config(cpu_infer=65), R1, machine(num_cores=2, vram=(24 * GIB, 24 * GIB)))
    assert "--cpu-infer 65" in placement.notes[0]
    assert len(placement.notes) == 2


WISHES = [{"gpu_memory_bytes": 40 * GIB}, {"gpu_experts": 512}]


@pytest.mark.parametrize("wish", WISHES)
def test_wishes_for_experts_in_gpu_memory_are_obeyed(wish):
    host = machine(vram=(48 * GIB,))
    placement = plan(config(**wish), R1, host)
    assert placement == place(config(**wish), R1, host)
    assert placement.gpu_experts >= 512
    assert placement.notes == ()


def test_a_number_of_experts_becomes_whole_layers_and_that_is_said():
    placement = plan(config(gpu_experts=300), R1, machine(vram=(48 * GIB,)))
    assert (placement.gpu_experts, placement.gpu_expert_layers) == (256, 1)
    assert placement.notes == (
        "--gpu-experts 300: GPU memory takes the 256 experts of a layer together, so 256 at most",
    )


def test_experts_that_only_the_cpu_computes_prompts_with_stay_in_ram():
    facts = dataclasses.replace(R1, can_stay_on_gpu=False)
    placement = plan(config(gpu_memory_bytes=40 * GIB), facts, machine(vram=(48 * GIB,)))
    assert placement.is_hybrid
    assert placement.ram.routed_bytes == R1.bytes.routed_experts


def test_without_a_wish_experts_go_to_the_gpu_only_when_all_fit_or_ram_is_short():
    everything = plan(config(), LITE, machine(vram=(24 * GIB,)))
    assert (everything.ram.routed_bytes, everything.gpu_expert_layers) == (0, 26)
    assert plan(config(), R1, machine(vram=(80 * GIB,))).gpu_experts == 0
    short = plan(config(), R1, machine(320 * GIB, vram=(80 * GIB,)))
    assert short.ram.total_bytes <= 320 * GIB
    assert short.gpus[0].parts[Part.ROUTED_EXPERTS] > 40 * GIB


def test_what_neither_ram_nor_all_gpus_hold_is_refused():
    with pytest.raises(KtopsError) as caught:
        plan(config(), R1, machine(64 * GIB, vram=(96 * GIB,) * 2))
    assert caught.value.code == "not-enough-memory"


@unhurried
@given(
    ram=st.integers(1, 600),
    vram=st.lists(st.integers(0, 200), max_size=3),
    budget=st.none() | st.integers(1, 100),
    experts=st.none() | st.integers(0, 20_000),
)
def test_the_engine_gets_a_gpu_with_whole_layers_or_none(ram, vram, budget, experts):
    wish = config(gpu_memory_bytes=budget and budget * GIB, gpu_experts=experts)
    host = machine(ram * GIB, vram=tuple(size * GIB for size in vram))
    placement = place_served(wish, R1, host)
    assert placement.is_hybrid == bool(placement.gpus)
    assert devices(placement)[:1] in ([], ["gpu0"])
    assert len(placement.expert_layers_by_gpu) == len(placement.gpus)
    assert all(placement.expert_layers_by_gpu[1:])
    assert bool(placement.gpu_layers) == bool(placement.gpus)
    assert placement.gpu_layers == 61 or not placement.gpu_head
    assert placement.gpu_expert_layers <= max(0, placement.gpu_layers - 3)
    layers = [layer.routed_experts for layer in R1.bytes.layers if layer.routed_experts]
    assert placement.gpu_experts == 256 * placement.gpu_expert_layers
    assert placement.ram.routed_bytes == sum(layers[placement.gpu_expert_layers :])
    for share in placement.gpus:
        assert share.total_bytes <= share.usable_bytes
    if vram and not placement.gpu_head:
        assert placement.notes
