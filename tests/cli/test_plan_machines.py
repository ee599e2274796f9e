"""Machines by name and by number, and what is known of the one at hand."""

from __future__ import annotations

import dataclasses

import pytest

import ktops_engine.bandwidth
import ktops_engine.gpus
from ktops.planning.machines.datasheet import load_datasheet
from ktops.planning.machines.described import machine_named
from ktops.planning.machines.live import this_machine
from ktops.units import parse_amount
from ktops_engine.errors import KtopsError
from ktops_engine.machine import GpuFacts, MachineFacts

GIB = 1 << 30


@pytest.mark.parametrize("name", load_datasheet().presets)
def test_every_preset_is_a_whole_machine(name):
    host = machine_named(name)
    assert host.name == load_datasheet().presets[name].title
    assert len(host.cpus) >= 8
    assert host.read_bandwidth
    assert host.isa
    assert host.gpus
    for gpu in host.gpus:
        assert None not in (gpu.read_bandwidth, gpu.pcie_bandwidth, gpu.bf16_flops)


def test_the_articles_server_has_the_published_numbers():
    host = machine_named("article")
    assert (len(host.cpus), host.num_nodes, host.isa) == (80, 2, "amx")
    assert host.read_bandwidth == pytest.approx(614e9, rel=0.001)
    assert host.total_ram_bytes == 1024 * GIB > host.available_ram_bytes
    (gpu,) = host.gpus
    assert (gpu.name, gpu.total_bytes, gpu.read_bandwidth) == ("L40S", 48 * GIB, 864e9)


@pytest.mark.parametrize(
    "words",
    [
        "2x8460Y+,1024GiB,L40S",
        " 2 x Xeon 8460Y+ , ram=1TiB , NVIDIA L40S",
        "L40S,1024gib,2*Intel(R) Xeon(R) Platinum 8460Y+",
    ],
)
def test_one_machine_can_be_written_in_several_ways(words):
    found = dataclasses.replace(machine_named(words), name="")
    assert found == dataclasses.replace(machine_named("article"), name="")


def test_numbers_describe_a_machine_and_overrule_a_datasheet():
    host = machine_named(
        "cores=32,ram=512GiB,bandwidth=300GB/s,measured,isa=amx,vram=24GiB,gpu-bandwidth=1000GB/s,"
        "pcie=25GB/s,tflops=165"
    )
    assert host.gpus == (GpuFacts("GPU", 24 * GIB, 24 * GIB, 1000e9, 25e9, 165e12),)
    assert (host.read_bandwidth, host.bandwidth_is_measured, host.isa) == (300e9, True, "amx")
    part = machine_named("2x9654,cores=48,bandwidth=500GB/s,768GiB,4090,vram=48GiB")
    assert (len(part.cpus), part.read_bandwidth) == (48, 500e9)
    assert part.gpus[0].total_bytes == 48 * GIB
    assert part.gpus[0].read_bandwidth == 1008e9


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "RTX 4060 Laptop"),
    ],
)
def test_gpus_are_known_by_the_names_their_driver_gives(driver, name):
    assert load_datasheet().gpu(driver).name == name


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("Intel(R) Xeon(R) Platinum 8460Y+", "Xeon 8460Y+"),
        ("Intel(R) Xeon(R) Gold 6454S", "Xeon 6454S"),
        ("Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz", "Xeon 8380"),
        ("AMD EPYC 9654 96-Core Processor", "EPYC 9654"),
        ("AMD Ryzen 9 7950X 16-Core Processor", "Ryzen 9 7950X"),
        ("AMD Ryzen 7 7840HS w/ Radeon 780M Graphics", "Ryzen 7 7840HS"),
        ("13th Gen Intel(R) Core(TM) i9-13900K", "Core i9-13900K"),
        ("AMD Ryzen Threadripper PRO 7995WX 96-Cores", "Threadripper PRO 7995WX"),
    ],
)
def test_processors_are_known_by_the_names_the_system_gives(system, name):
    assert load_datasheet().cpu(system).name == name


@pytest.mark.parametrize("name", ["AMD EPYC", "", "x", "Xeon", "6000", "DO-Premium-Intel"])
def test_a_name_that_tells_too_little_is_not_known(name):
    assert load_datasheet().cpu(name) is None
    assert load_datasheet().gpu(name) is None


@pytest.mark.parametrize(
    ("words", "is_rate", "expected"),
    [
        ("24GiB", False, 24 * GIB),
        ("1.5 TB", False, 1.5e12),
        ("614.4GB/s", True, 614.4e9),
        ("614.4GB", True, None),
        ("24GiB/s", False, None),
        ("24", False, None),
        ("-1GiB", False, None),
        ("nanGiB", False, None),
    ],
)
def test_amounts_have_a_unit(words, is_rate, expected):
    assert parse_amount(words, is_rate=is_rate) == expected


@pytest.mark.parametrize("words", ["tflops=nan", "tflops=inf", "tflops=-3", "cores=1e9"])
def test_numbers_that_are_none_are_refused(words):
    with pytest.raises(KtopsError) as caught:
        machine_named(f"9654,64GiB,4090,{words}")
    assert caught.value.code == "invalid-machine"


@pytest.fixture
def host(monkeypatch):
    """Replaces what detection finds."""

    def pretend(machine, *, gpus=(), rate=None):
        def measure(_):
            if isinstance(rate, Exception):
                raise rate
            return rate

        monkeypatch.setattr(ktops_engine.gpus, "detect_machine", lambda: machine)
        monkeypatch.setattr(ktops_engine.gpus, "detect_gpus", lambda: gpus)
        monkeypatch.setattr(ktops_engine.bandwidth, "read_bandwidth", measure)
        return this_machine()

    return pretend


def named(name, num_cores):
    return MachineFacts(tuple(range(num_cores)), 64 * GIB, 60 * GIB, name=name)


def test_a_measured_bandwidth_wins_over_the_datasheet(host):
    found = host(named("AMD EPYC 9654 96-Core Processor", 96), rate=300e9)
    assert (found.read_bandwidth, found.bandwidth_is_measured) == (300e9, True)


@pytest.mark.parametrize("rate", [None, KtopsError("native-load-failed", "x"), OSError("x")])
def test_where_nothing_can_be_measured_the_datasheet_counts(host, rate):
    found = host(named("AMD EPYC 9654 96-Core Processor", 192), rate=rate)
    assert found.read_bandwidth == pytest.approx(2 * 460.8e9)
    assert not found.bandwidth_is_measured


def test_a_part_of_a_machine_and_an_unknown_one_have_no_datasheet(host):
    assert host(named("AMD EPYC 9654 96-Core Processor", 16)).read_bandwidth is None
    assert host(named("AMD EPYC", 2)).read_bandwidth is None


def test_a_gpu_gets_its_rates_from_the_datasheet_and_its_link_from_the_driver(host):
    seen = (
        GpuFacts("NVIDIA L40S", 46 * GIB, 45 * GIB, pcie_bandwidth=12.8e9),
        GpuFacts("NVIDIA Oddity", 8 * GIB, 8 * GIB),
    )
    known, unknown = host(named("AMD EPYC", 2), gpus=seen).gpus
    assert (known.total_bytes, known.read_bandwidth, known.pcie_bandwidth) == (
        46 * GIB, 864e9, 12.8e9,
    )  # fmt: skip
    assert unknown == seen[1]
