"""How fast a plan can be, held against what was measured and published."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_models import GIB, config, described, machine

from ktops.planning.machines.described import machine_named
from ktops.settings import ALL_GPU_MEMORY
from ktops_engine.plan import Prediction, Resource, Unknown, describe_q4_k_m, place, predict

R1 = described()
LITE = described("v2-lite-q4km")
unhurried = settings(deadline=None, max_examples=50)  # the machine may be busy


def prediction(facts, host, **wishes):
    found = predict(place(config(**wishes), facts, host), facts, host)
    assert isinstance(found, Prediction)
    return found


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
    assert low == pytest.approx(11, abs=0.3)
    assert high == pytest.approx(12.8, abs=0.3)


def test_eleven_layers_on_the_h100_host_bound_what_every_peer_measured_there():
    facts = describe_q4_k_m(dataclasses.replace(R1.config, num_hidden_layers=11))
    assert facts.bytes.total == pytest.approx(54.1 * GIB, rel=0.01)
    found = prediction(facts, machine_named("h100-host"), gpu_memory_bytes=14_000_000_000)
    assert 53 < found.decode_tokens_per_s[1] < 100
    assert found.prefill_tokens_per_s[1] > 4083


def test_this_version_on_two_cores_lies_within_its_own_range():
    """docs/benchmarks.md: V2-Lite's shapes on 2 vCPU of Zen 4 with 45 GB/s, 10 and 51 tok/s."""
    host = machine_named("cores=2,isa=avx512vnni,24GiB,bandwidth=45GB/s,measured")
    found = prediction(LITE, host)
    assert found.decode_tokens_per_s[0] < 10 < found.decode_tokens_per_s[1]
    assert found.prefill_tokens_per_s[0] < 51 < found.prefill_tokens_per_s[1]


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
    assert alone.decode_tokens_per_s[0] > 2 * shared.decode_tokens_per_s[1]


def test_the_gpu_helps_and_its_spare_memory_helps_more():
    host = machine(vram=(80 * GIB,))
    cpu = prediction(R1, dataclasses.replace(host, gpus=())).decode_tokens_per_s
    gpu = prediction(R1, host).decode_tokens_per_s
    full = prediction(R1, host, gpu_memory_bytes=ALL_GPU_MEMORY).decode_tokens_per_s
    for end in (0, 1):
        assert cpu[end] < gpu[end] < full[end]


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
