"""How fast a plan can be, held against what was measured and published."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_models import GIB, config, described, machine

from ktops.planning.machines.described import machine_named
from ktops.settings import ALL_GPU_MEMORY
from ktops_engine.plan import (
    Prediction,
    PromptPrediction,
    Resource,
    Unknown,
    describe_q4_k_m,
    place,
    predict,
    predict_prompt,
    rates,
)

R1 = described()
ELEVEN = describe_q4_k_m(dataclasses.replace(R1.config, num_hidden_layers=11))
LITE = described("v2-lite-q4km")
unhurried = settings(deadline=None, max_examples=50)  # the machine may be busy


def prediction(facts, host, **wishes):
    found = predict(place(config(**wishes), facts, host), facts, host)
    assert isinstance(found, Prediction)
    return found


def of_prompt(facts, host, num_tokens, **wishes):
    found = predict_prompt(place(config(**wishes), facts, host), facts, host, num_tokens)
    assert isinstance(found, PromptPrediction)
    return found.tokens_per_s


H100_16_CORES = "cores=16,isa=amx,128GiB,bandwidth={}GB/s,measured,H100"
TWO_CORES = "cores=2,isa=avx512vnni,24GiB,bandwidth={}GB/s,measured"

# docs/benchmarks.md, what this version was measured to do: lowest and highest decode, and the same
# of prompts by their length.
MEASURED = [
    (ELEVEN, H100_16_CORES.format(125), {"gpu_experts": 0}, (57.4, 57.4),
     {512: (937, 997), 4096: (4434, 4875)}),
    (ELEVEN, H100_16_CORES.format(142), {"gpu_experts": 0}, (61.1, 61.1),
     {512: (999, 1044), 4096: (4673, 4864)}),
    (ELEVEN, H100_16_CORES.format(125), {}, (263, 280), {4096: (9830, 10260)}),
    (LITE, TWO_CORES.format(26), {}, (14, 15), {128: (54, 61)}),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "host", "wishes", "decode", "prompts"), MEASURED)
def test_what_this_version_was_measured_to_do_lies_in_the_range(
    facts, host, wishes, decode, prompts
):
    named = machine_named(host)
    low, high = prediction(facts, named, **wishes).decode_tokens_per_s
    assert low < decode[0] <= decode[1] < high
    for num_tokens, (slowest, fastest) in prompts.items():
        low, high = of_prompt(facts, named, num_tokens, **wishes)
        assert low < slowest <= fastest < high


@pytest.mark.parametrize("wishes", [{"gpu_experts": 0}, {}])
def test_a_range_says_something(wishes):
    found = prediction(ELEVEN, machine_named(H100_16_CORES.format(125)), **wishes)
    rates = (found.decode_tokens_per_s, *(prompt.tokens_per_s for prompt in found.prompts))
    assert all(high < 4 * low for low, high in rates)


def test_experts_are_brought_once_for_a_chunk_so_longer_prompts_are_faster_up_to_one():
    named = machine_named(H100_16_CORES.format(125))
    chunk = place(config(gpu_experts=0), ELEVEN, named).prefill_chunk
    rates = [
        of_prompt(ELEVEN, named, num_tokens, gpu_experts=0)
        for num_tokens in (64, 512, 1024, chunk, chunk + 1)
    ]
    for shorter, longer in pairwise(rates[:-1]):
        assert shorter[0] < longer[0]
        assert shorter[1] < longer[1]
    assert rates[-1][1] < rates[-2][1]  # a chunk for one token
    far, near = (of_prompt(ELEVEN, named, count * chunk, gpu_experts=0) for count in (8, 2))
    assert far[1] < near[1]  # attention looks back further


def test_prompts_of_two_lengths_and_a_large_chunk_are_predicted_as_far_as_the_context_goes():
    named = machine_named(H100_16_CORES.format(125))

    def lengths(**wishes):
        return [prompt.num_tokens for prompt in prediction(ELEVEN, named, **wishes).prompts]

    assert lengths() == [512, 4096]
    assert lengths(gpu_memory_bytes=ALL_GPU_MEMORY) == [512, 4096, 8192]
    assert lengths(ctx_size=1000) == [512, 1000]
    assert lengths(ctx_size=100) == [100]


def test_experts_on_a_second_gpu_cost_a_hop_each_layer():
    """Two GPUs that hold the same experts as one that is as large as both."""
    parts = "cores=16,isa=amx,900GiB,bandwidth=125GB/s,measured"
    rates = "gpu-bandwidth=3350GB/s,pcie=54.7GB/s,tflops=989"
    one = prediction(ELEVEN, machine_named(f"{parts},vram=80GiB,{rates}"))
    named = machine_named(f"{parts},2xH100")
    small = dataclasses.replace(named.gpus[0], free_bytes=40 * GIB)
    two = prediction(ELEVEN, dataclasses.replace(named, gpus=(small, small)))
    for end in (0, 1):
        assert two.decode_tokens_per_s[end] < one.decode_tokens_per_s[end]
    assert two.decode_tokens_per_s[0] > 0.8 * one.decode_tokens_per_s[0]


# Published or measured beside each other, DeepSeek-V3/R1 in Q4_K_M: prefill and decode.
PUBLISHED = [
    ("article", None, 10.1),
    ("2x6454S,1024GiB,4090", 88, 13.5),
    ("2x6454S,1024GiB,4090", 255, None),
    ("9355,768GiB,5090", 181, 17.9),
    ("2x9355,1024GiB,RTX PRO 6000", 189, 22),
    ("2x8592+,1024GiB,2x5090", 1200, 28),
]


@pytest.mark.parametrize(("host", "prefill", "decode"), PUBLISHED)
def test_published_figures_lie_under_the_upper_end_with_all_gpu_memory(host, prefill, decode):
    found = prediction(R1, machine_named(host), gpu_memory_bytes=ALL_GPU_MEMORY)
    assert decode is None or decode < found.decode_tokens_per_s[1]
    assert prefill is None or prefill < found.prefill_tokens_per_s[1]


def test_the_h100_host_decodes_r1_at_what_its_measured_bandwidth_allows():
    low, high = prediction(R1, machine_named("h100-host")).decode_tokens_per_s
    assert low == pytest.approx(10.3, abs=0.3)
    assert high == pytest.approx(12.8, abs=0.3)


def test_eleven_layers_on_the_h100_host_bound_what_every_peer_measured_there():
    assert ELEVEN.bytes.total == pytest.approx(54.1 * GIB, rel=0.01)
    found = prediction(ELEVEN, machine_named("h100-host"), gpu_memory_bytes=14_000_000_000)
    assert 53 < found.decode_tokens_per_s[1] < 100
    assert found.prefill_tokens_per_s[1] > 4083


PLAN_PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
DECODE = 0
# Rows of docs/plan.md: how each begins, what it is of, and what its ranges are, prompts by length.
DOCUMENTED = [
    ("11 layers of R1", ELEVEN, H100_16_CORES.format(125), {"gpu_experts": 0}, (DECODE, 512, 4096)),
    ("the same with 142", ELEVEN, H100_16_CORES.format(142), {"gpu_experts": 0},
     (DECODE, 512, 4096)),
    ("the same, all experts", ELEVEN, H100_16_CORES.format(142), {}, (DECODE, 4096)),
    ("V2-Lite", LITE, TWO_CORES.format(26), {}, (DECODE, 128)),
    ("2 x Xeon 8460Y+", R1, "article", {}, (512, 4096, DECODE)),
    ("2 x Xeon 6454S", R1, "2x6454S,1024GiB,4090", {}, (512, 4096, DECODE)),
    ("EPYC 9355", R1, "9355,768GiB,5090", {}, (512, 4096, DECODE)),
    ("2 x EPYC 9355", R1, "2x9355,1024GiB,RTX PRO 6000", {}, (512, 4096, DECODE)),
    ("64 vCPU", R1, "h100-host", {}, (512, 4096, DECODE)),
]  # fmt: skip


@pytest.mark.parametrize(("begin", "facts", "host", "wishes", "meant"), DOCUMENTED)
def test_the_ranges_of_the_page_are_those_of_the_plan(begin, facts, host, wishes, meant):
    lines = PLAN_PAGE.read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith(f"| {begin}")]
    _, _, _, _, predicted = row.split("|", 4)  # after the name and what was measured or published
    written = re.findall(r"([\d.,]+)-([\d.,]+)", predicted)
    named = machine_named(host)
    for (low, high), what in zip(written, meant, strict=True):
        found = (
            of_prompt(facts, named, what, **wishes)
            if what
            else prediction(facts, named, **wishes).decode_tokens_per_s
        )
        shown = [float(number.replace(",", "")) for number in (low, high)]
        assert shown == pytest.approx(found, rel=0.06)


@pytest.mark.parametrize(
    ("host", "decode", "prefill"),
    [
        ("article", Resource.RAM_BANDWIDTH, Resource.CPU_COMPUTE),
        ("9355,768GiB,5090", Resource.RAM_BANDWIDTH, Resource.PCIE),
        ("h20x8", Resource.VRAM_BANDWIDTH, Resource.GPU_COMPUTE),
        ("cores=4,isa=scalar,512GiB,bandwidth=300GB/s", Resource.CPU_COMPUTE, None),
    ],
)
def test_the_limit_is_named(host, decode, prefill):
    found = prediction(R1, machine_named(host))
    assert found.limited_by is decode
    assert prefill is None or found.prefill_limited_by is prefill


def test_gpus_that_hold_everything_beat_ram():
    alone = prediction(R1, machine_named("h20x8"))
    shared = prediction(R1, machine_named("2x8468,2048GiB,H20"))
    assert alone.decode_tokens_per_s[0] > 1.4 * shared.decode_tokens_per_s[1]


def test_the_gpu_helps_and_its_spare_memory_helps_more():
    host = machine(vram=(80 * GIB,))
    cpu = prediction(R1, dataclasses.replace(host, gpus=())).decode_tokens_per_s
    gpu = prediction(R1, host).decode_tokens_per_s
    full = prediction(R1, host, gpu_memory_bytes=ALL_GPU_MEMORY).decode_tokens_per_s
    for end in (0, 1):
        assert cpu[end] < gpu[end] < full[end]


def test_each_layer_more_on_a_small_gpu_is_faster_and_all_of_them_fastest():
    hosts = [machine(vram=(size * GIB,)) for size in (1, 3, 5, 8, 11, 12)]
    layers = [place(config(), R1, host).gpu_layers for host in hosts]
    assert layers[0] == 0 < layers[1] < layers[4] < layers[5] == 61
    found = [prediction(R1, host) for host in hosts]
    for slower, faster in pairwise(found):
        for end in (0, 1):
            assert slower.decode_tokens_per_s[end] < faster.decode_tokens_per_s[end]
            assert slower.prefill_tokens_per_s[end] < faster.prefill_tokens_per_s[end]


def test_layers_on_the_cpu_hand_nothing_over():
    """A layer more on the GPU saves the CPU's time for it and costs the GPU's with a handoff."""
    wishes = [config(gpu_memory_bytes=size * GIB) for size in (5, 8)]
    host = machine(vram=(80 * GIB,))
    few, more = (place(wish, R1, host) for wish in wishes)
    layers = more.gpu_layers - few.gpu_layers
    num_bytes = more.gpus[0].weights_bytes - few.gpus[0].weights_bytes
    seconds = [1 / predict(split, R1, host).decode_tokens_per_s[1] for split in (few, more)]
    cpu = num_bytes / (300e9 * rates.DATASHEET_RAM_SHARE[1]) + layers * rates.CPU_LAYER_SECONDS[1]
    gpu = num_bytes / (1000e9 * rates.VRAM_SHARE[1]) + layers * rates.GPU_LAYER_SECONDS[1]
    handoffs = layers * rates.HANDOFF_SECONDS[1]
    assert seconds[0] - seconds[1] == pytest.approx(cpu - gpu - handoffs)


@pytest.mark.parametrize(
    ("host", "missing"),
    [
        ("cores=8,512GiB", Resource.RAM_BANDWIDTH),
        ("cores=8,512GiB,bandwidth=100GB/s,vram=24GiB,pcie=25GB/s,tflops=100",
         Resource.VRAM_BANDWIDTH),
        ("cores=8,512GiB,bandwidth=100GB/s,vram=24GiB,gpu-bandwidth=900GB/s,tflops=100",
         Resource.PCIE),
        ("cores=8,512GiB,bandwidth=100GB/s,vram=24GiB,gpu-bandwidth=900GB/s,pcie=25GB/s",
         Resource.GPU_COMPUTE),
    ],
)  # fmt: skip
def test_a_missing_rate_is_named_instead_of_guessed(host, missing):
    named = machine_named(host)
    assert predict(place(config(), R1, named), R1, named) == Unknown((missing,))


@unhurried
@given(
    bandwidth=st.floats(1e9, 2e12),
    num_cores=st.integers(1, 256),
    vram=st.sampled_from([0, 5, 14, 24, 80, 600]),
)
def test_the_range_is_ordered_and_more_bandwidth_is_never_slower(bandwidth, num_cores, vram):
    host = dataclasses.replace(
        machine(num_cores=num_cores, vram=(vram * GIB,)), read_bandwidth=bandwidth
    )
    faster = dataclasses.replace(host, read_bandwidth=2 * bandwidth)
    slow, fast = (prediction(R1, which) for which in (host, faster))
    for found in (slow, fast):
        assert 0 < found.decode_tokens_per_s[0] <= found.decode_tokens_per_s[1]
        assert 0 < found.prefill_tokens_per_s[0] <= found.prefill_tokens_per_s[1]
    assert fast.decode_tokens_per_s >= slow.decode_tokens_per_s
