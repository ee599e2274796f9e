"""GPUs and memory bandwidth of the machine that is planned for."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
from types import SimpleNamespace

import pytest

from ktops_engine import bandwidth, gpus
from ktops_engine.bandwidth import measure_read_bandwidth, read_bandwidth
from ktops_engine.errors import KtopsError
from ktops_engine.gpus import (
    check_order,
    count_as_nvidia_smi,
    detect_gpus,
    engine_machine,
    find_gpu_obstacle,
)
from ktops_engine.machine import detect_machine
from ktops_engine.native.load import load_native
from ktops_engine.remembered import cache_file

MIB = 1 << 20
SMI = """\
0, GPU-5f2a, NVIDIA L40S, 46068, 45500, 4, 16
1, GPU-77bc, NVIDIA H20, 97871, 97000, 5, 16
2, GPU-90aa, NVIDIA Oddity, [N/A], [N/A], [N/A], [N/A]
"""


def smi(command):
    assert command[0] == "nvidia-smi"
    return SMI


def test_gpus_are_read_with_their_memory_and_link():
    first, second = detect_gpus({}, smi)
    assert (first.name, first.total_bytes, first.free_bytes) == (
        "NVIDIA L40S", 46068 * MIB, 45500 * MIB,
    )  # fmt: skip
    assert first.pcie_bandwidth == pytest.approx(25.6e9)
    assert second.pcie_bandwidth == pytest.approx(54.8e9, rel=0.01)
    assert first.read_bandwidth is None


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("", []),
        ("1", ["NVIDIA H20"]),
        ("GPU-5f2a", ["NVIDIA L40S"]),
        ("0, 1", ["NVIDIA L40S", "NVIDIA H20"]),
        ("7", []),
        ("1,7,0", ["NVIDIA H20"]),
        ("-1,0", []),
    ],
)
def test_cuda_visible_devices_hides_gpus(visible, names):
    assert [gpu.name for gpu in detect_gpus({"CUDA_VISIBLE_DEVICES": visible}, smi)] == names


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError("nvidia-smi"),
        subprocess.CalledProcessError(9, "nvidia-smi"),
        subprocess.TimeoutExpired("nvidia-smi", 10),
    ],
)
def test_a_driver_that_does_not_answer_means_no_gpus(failure):
    def broken(command):
        raise failure

    assert detect_gpus({}, broken) == ()


def test_the_order_of_cuda_visible_devices_is_kept():
    for visible in ("1,0", "GPU-77bc,GPU-5f2a"):
        found = detect_gpus({"CUDA_VISIBLE_DEVICES": visible}, smi)
        assert [gpu.name for gpu in found] == ["NVIDIA H20", "NVIDIA L40S"]


def test_cuda_is_told_to_count_as_nvidia_smi_does():
    environ = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "1"}
    count_as_nvidia_smi(environ)
    assert environ == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}


def test_gpus_in_the_order_of_the_plan_pass_with_further_and_unknown_ones():
    planned = [gpu.uuid for gpu in detect_gpus({}, smi)]
    assert planned == ["GPU-5f2a", "GPU-77bc"]
    for found in (["5f2a", "77bc"], ["GPU-5f2a"], ["5f2a", "MIG-1"], ["c0de", "77bc"], []):
        check_order(planned, found)


@pytest.mark.parametrize("found", [["77bc", "5f2a"], ["GPU-77bc"], ["c0de", "5f2a"]])
def test_gpus_in_another_order_are_refused_with_the_way_out(found):
    with pytest.raises(KtopsError) as caught:
        check_order(["GPU-5f2a", "GPU-77bc"], found)
    assert caught.value.code == "gpu-order"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in caught.value.hint


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """`installed(torch=, triton=)` pretends that they are; `torch` is its version.py."""

    def pretend(torch=None, triton=True):
        (tmp_path / "version.py").write_text(torch or "")
        specs = {
            "torch": None if torch is None else SimpleNamespace(origin=tmp_path / "__init__.py"),
            "triton": SimpleNamespace() if triton else None,
        }
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: specs[name])

    return pretend


CUDA = "cuda: Optional[str] = '13.0'\n"
CPU = "cuda: Optional[str] = None\n"


@pytest.mark.parametrize(
    ("torch", "triton", "obstacle"),
    [
        (CUDA, True, None),
        ("cuda = '12.6'\n", True, None),
        (CUDA, False, "Triton is not installed; pip install triton"),
        (CPU, True, "torch here was built without CUDA; ktops doctor --only py.torch_cuda"),
        (None, True, "torch here was built without CUDA; ktops doctor --only py.torch_cuda"),
    ],
)
def test_what_keeps_the_engine_from_a_gpu_is_named(installed, torch, triton, obstacle):
    installed(torch, triton)
    assert find_gpu_obstacle() == obstacle


def test_the_engine_sees_its_gpus_and_what_keeps_it_from_them(installed, monkeypatch):
    installed(CPU)
    monkeypatch.setattr(gpus, "_run", smi)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(engine_machine().gpus) == 2
    assert "without CUDA" in engine_machine().gpu_obstacle
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (engine_machine().gpus, engine_machine().gpu_obstacle) == ((), None)


def test_an_answer_that_is_no_table_means_no_gpus():
    assert detect_gpus({}, lambda command: "NVIDIA-SMI has failed\n, ,\n") == ()


def test_this_machine_reads_its_memory_at_a_rate_that_machines_have(native_build, monkeypatch):
    monkeypatch.setattr(bandwidth, "TIME_LIMIT_S", 0.05)
    rate = measure_read_bandwidth(load_native(native_build), detect_machine())
    assert rate is not None
    assert 0.2e9 < rate < 5e12


def test_without_memory_to_measure_with_nothing_is_measured(native_build):
    poor = dataclasses.replace(detect_machine(), available_ram_bytes=100 * MIB)
    assert measure_read_bandwidth(load_native(native_build), poor) is None


@pytest.fixture
def measured(native_build, monkeypatch, tmp_path):
    """Rates that measuring will find, one after the other; the cache is an empty folder."""
    rates = []
    monkeypatch.setenv("KTOPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bandwidth, "find_current", lambda: native_build)
    monkeypatch.setattr(bandwidth, "measure_read_bandwidth", lambda *_: rates.pop(0))
    return rates


def test_a_measured_bandwidth_is_remembered_for_the_machine(measured):
    host = detect_machine()
    measured += [10e9, 20e9]
    assert [read_bandwidth(host), read_bandwidth(host)] == [10e9, 10e9]
    assert read_bandwidth(dataclasses.replace(host, name="another")) == 20e9
    assert read_bandwidth(host) == 10e9


def test_an_old_or_broken_record_is_measured_again(measured):
    host = detect_machine()
    measured += [10e9, 20e9, 30e9]
    read_bandwidth(host)
    path = cache_file(bandwidth.FILE)
    records = json.loads(path.read_text())
    path.write_text(json.dumps({key: (rate, at - 90000) for key, (rate, at) in records.items()}))
    assert read_bandwidth(host) == 20e9
    path.write_text("{ no JSON")
    assert read_bandwidth(host) == 30e9


def test_without_a_native_library_the_bandwidth_is_unknown(monkeypatch):
    monkeypatch.setattr(bandwidth, "find_current", lambda: None)
    assert read_bandwidth(detect_machine()) is None
