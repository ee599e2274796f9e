"""Before a model is loaded: what the plan makes of the GPUs that nvidia-smi tells of."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import schemas

from ktops.hub.choose import ModelChoice
from ktops.launch.dummy import DummyOrder
from ktops.launch.plan_stage import Site, checks_of, early_target, look, plan_early, show_site
from ktops.launch.plan_stage import target_of as targets
from ktops.output import Mode, Output
from ktops.settings import load_settings
from ktops.units import format_bytes
from ktops_engine import bandwidth, gpus, threads
from ktops_engine.demo import demo_path
from ktops_engine.errors import KtopsError
from ktops_engine.expert_counts import add_counts, counts_path
from ktops_engine.gguf import open_gguf
from ktops_engine.machine import MachineFacts

GIB = 1 << 30
H100 = "0, GPU-aa, NVIDIA H100 80GB HBM3, 81559, 81079, 5, 16"
SECOND = "1, GPU-bb, NVIDIA H100 80GB HBM3, 81559, 81079, 5, 16"
FULL = "0, GPU-aa, NVIDIA H100 80GB HBM3, 81559, 1024, 5, 16"
HOST = MachineFacts(tuple(range(64)), 512 * GIB, 500 * GIB, isa="amx", name="Test CPU")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, work_dir: Path) -> Callable[..., None]:
    """`machine(*lines)`: one with much memory whose nvidia-smi prints these lines."""

    def pretend(*lines: str, host: MachineFacts = HOST, cuda: bool = True) -> None:
        monkeypatch.setattr(gpus, "_run", lambda command: "\n".join(lines))
        monkeypatch.setattr(gpus, "torch_has_cuda", lambda: cuda)
        monkeypatch.setattr(gpus, "detect_machine", lambda: host)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(bandwidth, "read_bandwidth", lambda machine: 173e9)
    monkeypatch.setattr(threads, "thread_rates", lambda machine: ())
    monkeypatch.setattr(threads, "remembered_thread_rates", lambda machine: ())
    return pretend


def site(**flags: object) -> Site:
    """R1's shapes, as `ktops serve r1-q4km --load-format dummy` plans them."""
    choice = ModelChoice("r1-q4km", "", demo_path(), None, is_here=False)
    return look(load_settings(**flags), choice, DummyOrder())


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[Site], str]:
    """What a person reads of a plan; its event is held against the schema."""

    def show(found: Site) -> str:
        show_site(Output(Mode.JSON), found)
        for event in schemas.documents(capsys.readouterr().out):
            schemas.check("serve", event)
        show_site(Output(), found)
        return " ".join(capsys.readouterr().err.split())

    return show


def test_a_machine_with_one_good_gpu_is_planned_for_both(machine, shown):
    machine(H100)
    found = site()
    said = shown(found)
    assert 12e9 < found.placement.vram_bytes < 14e9
    assert (
        f"GPU: {format_bytes(found.placement.vram_bytes)} (61 layers, cache 549 MiB for 8192 "
        f"tokens), RAM: {format_bytes(found.placement.total_bytes)} (weights 367.4 GiB), 64 threads"
    ) in said
    assert "expect 10 to 13 tok/s" in said
    assert "warning" not in said
    target = targets(found, load_settings())
    assert (target.vram_bytes, target.gpu_required) == (found.placement.vram_bytes, True)
    assert target.ram_bytes == found.placement.total_bytes
    assert {"py.torch_cuda", "py.triton", "cc.triton"} < set(checks_of(found.placement))


def test_without_a_gpu_the_cpu_computes_alone_and_nothing_is_missed(machine, shown):
    machine()
    found = site()
    said = shown(found)
    assert "CPU: 382.3 GiB (weights " in said
    assert "64 threads, expect " in said
    assert "warning" not in said
    target = targets(found, load_settings())
    assert (target.vram_bytes, target.gpu_required) == (0, False)
    assert not {"py.torch_cuda", "py.triton"} & set(checks_of(found.placement))


def test_a_driver_that_does_not_answer_is_no_gpu(machine, monkeypatch, shown):
    def fail(command):
        raise OSError("nvidia-smi")

    machine()
    monkeypatch.setattr(gpus, "_run", fail)
    assert "CPU: 382.3 GiB" in shown(site())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"gpu_memory": "all"}, "GPU: 7[0-9]"),
        ({"gpu_experts": 512}, ", 512 routed experts, "),
        ({"gpu_memory": "22GiB", "gpu_experts": "auto"}, "GPU: (19|2[0-2]).* routed experts, "),
    ],
)
def test_spare_gpu_memory_holds_experts_where_that_is_wished(machine, shown, flags, words):
    machine(H100)
    found = site(**flags)
    assert found.config.gpu_memory_bytes == load_settings(**flags).gpu_memory_bytes
    assert re.search(words, shown(found))
    assert found.placement.ram.routed_bytes < found.source.facts.bytes.routed_experts


def test_the_most_used_experts_are_said_once_their_use_is_known(machine, shown):
    machine(H100)
    gguf = open_gguf(demo_path())
    used = np.full((5, 32), 1000, np.int32)
    used[:, 3] = 969_000
    add_counts(counts_path(gguf), used)
    choice = ModelChoice("demo", "", demo_path(), demo_path(), is_here=True)
    found = look(load_settings(gpu_experts=7), choice)
    assert (found.placement.gpu_experts, found.placement.hot_experts) == (0, 7)
    assert "7 most used experts (97 % of reads)" in shown(found)
    assert found.placement.ram.routed_bytes == found.source.facts.bytes.routed_experts
    assert look(load_settings(gpu_experts=7), choice, DummyOrder()).placement.hot_experts == 0


def test_of_two_gpus_the_first_suffices_and_how_to_use_the_other_is_said(machine, shown):
    machine(H100, SECOND)
    said = shown(site())
    assert "1 of 2 GPUs hold nothing: --gpu-memory all puts routed experts there" in said
    assert "GPU: 12." in said


def test_what_each_of_two_gpus_holds_is_said_and_the_doctor_asks_for_the_larger_part(
    machine, shown
):
    machine(H100, SECOND)
    found = site(gpu_memory="all")
    said = shown(found)
    assert re.search(r"GPU 0: 7[\d.]+ GiB \(61 layers, routed experts of \d+ layers, cache ", said)
    assert re.search(r"\), GPU 1: 7[\d.]+ GiB \(routed experts of 1\d layers\), RAM: ", said)
    assert "warning" not in said
    assert 70 * GIB < targets(found, load_settings()).vram_bytes < 79 * GIB


def test_a_gpu_that_is_full_is_named_with_what_is_missing_and_the_cpu_computes(machine, shown):
    machine(FULL)
    found = site()
    said = shown(found)
    assert "the GPU is not used: 1.0 GiB of its memory can be used, 2.1 GiB are needed " in said
    assert "CPU: 382.3 GiB" in said
    assert targets(found, load_settings()).gpu_required is False


def test_a_full_gpu_beside_a_free_one_is_passed_over_by_a_variable(machine, shown, monkeypatch):
    machine(FULL, SECOND)
    assert "another GPU has 77.6 GiB: the first one that CUDA_VISIBLE_DEVICES names" in shown(
        site()
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    said = shown(site())
    assert "GPU: 12." in said
    assert "is not used" not in said


def test_a_torch_without_cuda_beside_a_gpu_names_the_way_out(machine, shown):
    machine(H100, cuda=False)
    found = site()
    assert (
        "the GPU is not used: torch here was built without CUDA; ktops doctor --only py.torch_cuda"
    ) in shown(found)
    assert "CPU: 382.3 GiB" in shown(found)
    assert targets(found, load_settings()).vram_bytes == 0


def test_a_context_that_the_gpu_has_no_room_for_leaves_layers_to_the_cpu(machine, shown):
    machine(H100)
    assert site(ctx_size=163840).placement.gpu_head
    found = site(ctx_size=163840, gpu_memory="14GiB")
    layers = found.placement.gpu_layers
    assert 0 < layers < 61
    said = shown(found)
    assert f"the GPU holds {layers} of 61 layers, the CPU computes the others: 14.0 GiB " in said
    assert f"GPU: {format_bytes(found.placement.vram_bytes)} ({layers} layers, " in said
    assert targets(found, load_settings()).vram_bytes == found.placement.vram_bytes <= 14 * 2**30


def test_a_budget_without_room_for_a_layer_leaves_all_to_the_cpu(machine, shown):
    machine(H100)
    said = shown(site(gpu_memory="1GiB"))
    assert "the GPU is not used: 1.0 GiB of its memory can be used, 2.1 GiB are needed " in said
    assert "CPU: 382.3 GiB" in said


def test_before_a_download_the_same_is_planned(machine):
    machine(H100)
    settings = load_settings()
    plan = plan_early("r1-q4km", settings)
    target = early_target("r1-q4km", settings, plan)
    assert plan.served.placement == site().placement
    assert (target.vram_bytes, target.gpu_required) == (site().placement.vram_bytes, True)
    low, high = plan.served.decode_tokens_per_s
    assert 10 < low < high < 14


NVIDIA_SMI = """#!/bin/sh
case "$1" in
  --query-gpu*) echo "{line}" ;;
  *) cat "{report}" ;;
esac
"""
REPORT = """<?xml version="1.0" ?>
<nvidia_smi_log><driver_version>580.1</driver_version><cuda_version>13.0</cuda_version>
<gpu id="00000000:17:00.0"><product_name>NVIDIA H100 80GB HBM3</product_name>
<product_architecture>Hopper</product_architecture>
<fb_memory_usage><total>81559 MiB</total><free>81079 MiB</free></fb_memory_usage></gpu>
</nvidia_smi_log>
"""


@pytest.fixture
def recorded_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An nvidia-smi on the path that answers as on a host with one H100."""
    folder = tmp_path / "bin"
    folder.mkdir()
    report = folder / "report.xml"
    report.write_text(REPORT)
    program = folder / "nvidia-smi"
    program.write_text(NVIDIA_SMI.format(line=H100, report=report))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_serve_uses_a_gpu_that_the_driver_tells_of(
    ktops, native_build, recorded_driver, monkeypatch
):
    monkeypatch.setattr("ktops_doctor.GPU_CHECKS", ("gpu.vram",))  # torch here is a CPU's
    monkeypatch.setattr(gpus, "torch_has_cuda", lambda: True)
    ran = ktops("serve", "demo", "--port", "0", "--dry-run")
    assert ran.status == 0, ran.stderr
    assert "GPU: " in ran.stderr
    assert "(6 layers, " in ran.stderr


def test_serve_beside_a_torch_without_cuda_says_so_and_computes_on_the_cpu(
    ktops, native_build, recorded_driver, monkeypatch
):
    monkeypatch.setattr(gpus, "torch_has_cuda", lambda: False)
    ran = ktops("serve", "demo", "--port", "0", "--dry-run")
    assert ran.status == 0, ran.stderr
    assert "the GPU is not used: torch here was built without CUDA" in ran.stderr
    assert "CPU: " in ran.stderr


def test_a_torch_that_finds_no_gpu_is_told_before_anything_is_loaded(
    ktops, native_build, recorded_driver, monkeypatch
):
    """The plan wants the GPU, and the torch of this environment is a CPU build."""
    monkeypatch.setattr(gpus, "torch_has_cuda", lambda: True)
    ran = ktops("serve", "demo", "--port", "0", "--dry-run")
    assert ran.status == 1
    assert "demo cannot be served here:" in ran.stderr
    assert "py.torch_cuda  torch is a CPU build" in ran.stderr
    assert "https://download.pytorch.org/whl/cu130" in ran.stderr


def test_where_ram_is_short_because_the_gpu_is_full_both_are_named(machine):
    machine(FULL, host=dataclasses.replace(HOST, available_ram_bytes=375 * GIB))
    with pytest.raises(KtopsError) as caught:
        show_site(Output(Mode.QUIET), site())
    assert caught.value.code == "not-enough-memory"
    assert "this model needs 382.3 GiB of RAM" in caught.value.message
    assert "\n  the GPU is not used: 1.0 GiB of its memory can be used" in caught.value.message
    machine(H100, host=dataclasses.replace(HOST, available_ram_bytes=375 * GIB))
    assert site().placement.fits
