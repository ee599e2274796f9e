"""The GPU and its driver: one fault at a time on the healthy server."""

from __future__ import annotations

import pytest

from .conftest import smi, without_gpu

IN_CONTAINER = "docker run --gpus all IMAGE   # the driver of the host must be passed on"


@pytest.mark.parametrize(
    ("answer", "fix"),
    [
        ({"status": None, "timed_out": True}, "sudo dmesg | grep -i 'nvrm\\|xid' | tail"),
        ({"status": None, "stderr": "no such file"}, "sudo apt-get install -y nvidia-driver"),
        (
            {"status": 18, "stdout": "Failed to initialize NVML: Driver/library version mismatch"},
            "sudo reboot   # the driver was updated while the old one was running",
        ),
        (
            {"status": 9, "stdout": "NVIDIA-SMI has failed because it couldn't communicate"},
            "sudo modprobe nvidia   # if that fails: dmesg | grep -i nvidia",
        ),
        (
            {"status": 0, "stdout": "garbage"},
            "sudo modprobe nvidia   # if that fails: dmesg | grep -i nvidia",
        ),
    ],
)
def test_each_way_a_driver_fails_has_its_fix(ask, server, r1, demo, answer, fix):
    server["commands"]["nvidia-smi -q -x"] = answer
    assert ask(server, r1, "gpu.device").status == "ok"
    result = ask(server, r1, "gpu.driver")
    assert (result.status, result.fix) == ("fail", fix)
    assert ask(server, demo, "gpu.driver").status == "warn"


def test_in_a_container_the_driver_comes_from_outside(ask, server, r1):
    without_gpu(server)
    server["env"]["container"] = "podman"
    assert ask(server, r1, "gpu.device").fix.startswith("docker run --gpus all IMAGE")
    server["files"] |= {
        "/sys/bus/pci/devices/0000:17:00.0/vendor": "0x10de\n",
        "/sys/bus/pci/devices/0000:17:00.0/class": "0x030000\n",
    }
    assert ask(server, r1, "gpu.driver").fix == IN_CONTAINER


def test_a_driver_that_does_not_tell_its_cuda_version_is_not_taken_for_a_new_one(ask, server, r1):
    server["commands"]["nvidia-smi -q -x"] = smi(driver="384.81", cuda="")
    result = ask(server, r1, "gpu.cuda")
    assert result.status == "fail"
    assert result.value == "driver 384.81 runs CUDA of unknown version"


def test_gpu_memory_held_by_others_and_a_card_that_is_too_small_differ(ask, server, r1):
    server["commands"]["nvidia-smi -q -x"] = smi(free_mib=4000)
    result = ask(server, r1, "gpu.vram")
    assert (result.status, result.fix) == (
        "fail",
        "nvidia-smi --query-compute-apps=pid,used_memory,name --format=csv",
    )
    server["commands"]["nvidia-smi -q -x"] = smi(total_mib=12288, free_mib=12000)
    assert ask(server, r1, "gpu.vram").fix.startswith("ktops models")


def test_several_gpus_are_counted_and_the_first_is_held_against_the_need(ask, server, r1):
    server["commands"]["nvidia-smi -q -x"] = smi(count=8)
    assert ask(server, r1, "gpu.device").value == "8 x NVIDIA L40S"
    value = "GPU 0 NVIDIA L40S, 47.6 of 48.0 GiB free"
    assert ask(server, r1, "gpu.vram").value == value


@pytest.mark.parametrize("variable", [None, "0,1,2", "GPU-05"])
def test_room_on_a_further_gpu_does_not_help_the_server(ask, server, r1, variable):
    server["commands"]["nvidia-smi -q -x"] = smi(free_mib=(4000, 20_000, 48_000))
    server["env"]["CUDA_VISIBLE_DEVICES"] = variable
    result = ask(server, r1, "gpu.vram")
    assert (result.status, result.value) == ("fail", "GPU 0 NVIDIA L40S, 3.9 of 48.0 GiB free")
    alone = variable == "GPU-05"
    assert result.fix.startswith(
        "nvidia-smi --query" if alone else "export CUDA_VISIBLE_DEVICES=2,0,1   # GPU 2 has 46.9"
    )


@pytest.mark.parametrize("variable", ["2,0", "GPU-25f2a,0", " 2 "])
def test_the_first_gpu_is_the_one_that_the_environment_names_first(ask, server, r1, variable):
    server["commands"]["nvidia-smi -q -x"] = smi(free_mib=(4000, 4000, 48_000))
    server["env"]["CUDA_VISIBLE_DEVICES"] = variable
    result = ask(server, r1, "gpu.vram")
    assert (result.status, result.value) == ("ok", "GPU 2 NVIDIA L40S, 46.9 of 48.0 GiB free")


@pytest.mark.parametrize("variable", ["-1", "7,0", "MIG-1"])
def test_an_environment_that_names_no_gpu_is_said(ask, server, r1, demo, variable):
    server["env"]["CUDA_VISIBLE_DEVICES"] = variable
    result = ask(server, r1, "gpu.vram")
    assert (result.status, result.fix) == ("fail", "unset CUDA_VISIBLE_DEVICES")
    assert result.value == f"CUDA_VISIBLE_DEVICES={variable} names no GPU of this machine"
    assert ask(server, demo, "gpu.vram").status == "warn"


def test_an_empty_environment_hides_every_gpu_and_an_unset_one_none(ask, server, r1, demo):
    assert ask(server, r1, "gpu.vram").status == "ok"
    server["env"]["CUDA_VISIBLE_DEVICES"] = ""
    result = ask(server, r1, "gpu.vram")
    assert (result.status, result.fix) == ("fail", "unset CUDA_VISIBLE_DEVICES")
    assert result.value == "CUDA_VISIBLE_DEVICES is set and empty, which hides every GPU"
    assert ask(server, demo, "gpu.vram").status == "warn"


def test_a_narrow_link_is_found_and_an_idle_one_is_not_mistaken_for_it(ask, server, r1):
    server["commands"]["nvidia-smi -q -x"] = smi(lanes=4)
    result = ask(server, r1, "gpu.link")
    assert (result.status, result.value, result.expected) == ("warn", "PCIe 4 x4", "should be x16")
    assert result.fix.startswith("sudo lspci -vv -s 0000:17:00.0 | grep -i lnk")


def test_a_gpu_without_bf16_is_a_warning(ask, server, r1):
    server["commands"]["nvidia-smi -q -x"] = smi(name="Tesla T4", architecture="Turing")
    assert ask(server, r1, "gpu.arch").status == "warn"


def test_a_toolkit_is_named_and_its_age_does_not_matter(ask, server, r1):
    nvcc = "Cuda compilation tools, release 11.8, V11.8.89\n"
    server["commands"]["nvcc --version"] = {"status": 0, "stdout": nvcc}
    result = ask(server, r1, "gpu.toolkit")
    assert (result.status, result.value) == (
        "ok",
        "CUDA toolkit 11.8, which nothing here needs",
    )
