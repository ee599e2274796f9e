"""Whole machines: each gives exactly the expected ids, statuses and fixes, and nothing else."""

from __future__ import annotations

import pytest

from ktops_doctor import run_checks
from ktops_doctor.recorded_host import RecordedHost

from .conftest import GIB, cpu_files, cpu_info, disk, libstdcxx, mem_info, smi, without_gpu

PIP = "/opt/ktops/bin/python -m pip install"


def skipped(*check_ids: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(check_ids, ("skip", ""))


# On every machine here: nvcc is not installed, and the weights are not downloaded.
USUAL = skipped("gpu.toolkit", "model.files")
WITHOUT_TRITON = skipped("py.torch_cuda", "py.triton", "cc.triton")
WITHOUT_GPU = {
    **skipped("gpu.driver", "gpu.cuda", "gpu.vram", "gpu.arch", "gpu.link"),
    **WITHOUT_TRITON,
}
ONE_NODE = skipped("numa.balancing", "numa.policy")


def test_the_healthy_server_of_the_article_passes_every_check(server, r1):
    results = run_checks(None, RecordedHost(server), r1)
    by_id = {result.id: result for result in results}
    assert {r.id for r in results if r.status != "ok"} == set(USUAL)
    assert by_id["mem.total"].summary == "2.0 TiB, needs 382 GB"
    assert by_id["cpu.cores"].summary == "80 physical cores (160 threads), needs 32"
    assert by_id["cpu.isa"].summary == "AMX and AVX-512 (Intel(R) Xeon(R) Platinum 8460Y+)"
    assert by_id["gpu.vram"].summary == "NVIDIA L40S, 47.6 of 48.0 GiB free, needs 14 GB"
    assert by_id["gpu.cuda"].summary == "driver 550.54.15 runs CUDA 12.4, needs 12.1"
    assert by_id["gpu.link"].summary == "PCIe 4 x16"
    assert by_id["numa.nodes"].summary == "2 nodes of 1.0 TiB"
    assert by_id["disk.space"].summary == "600.0 GiB free on / (ext4), needs 376.7 GiB"
    assert by_id["lib.glibcxx"].summary == (
        "libktops has its own (static); torch needs GLIBCXX_3.4.22, "
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6 has GLIBCXX_3.4.30"
    )


def laptop(record):
    record["files"] = {
        path: text
        for path, text in record["files"].items()
        if not path.startswith(("/sys/devices/system", "/sys/bus"))
    }
    record["files"] |= cpu_files(sockets=1, cores=8, nodes=1, node_bytes=16 * GIB)
    for path in list(record["files"]):
        if path.endswith("scaling_governor"):
            record["files"][path] = "powersave\n"
    record["files"]["/proc/cpuinfo"] = cpu_info(
        vendor="AuthenticAMD",
        family=25,
        model=0x50,
        name="AMD Ryzen 7 5800H",
        flags="fpu sse avx f16c fma avx2",
    )
    record["files"]["/proc/meminfo"] = mem_info(15 * GIB, 9 * GIB, swap=8 * GIB)
    record["files"]["/proc/self/status"] = "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0\n"
    del record["commands"]["nvidia-smi -q -x"]
    record["cpus_allowed"] = "0-15"
    record["disks"] = {"/": disk("/", total=450 * GIB, free=100 * GIB, kind="ext4")}
    record["probes"]["native"]["facts"]["numa"] = False
    record["probes"]["torch"]["facts"] = {
        "torch_found": True,
        "torch": "2.9.1+cpu",
        "torch_cuda": None,
    }


GOVERNOR = (
    "sudo sh -c 'for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; "
    "do echo performance > $f; done'"
)
NO_GPU_FIX = "lspci -nn | grep -i nvidia   # empty: not seated, or not passed to this VM"
SMALLER = "ktops models   # lists smaller models and what each needs"


def test_a_laptop_is_told_what_r1_would_need(server, r1, diagnose):
    laptop(server)
    assert diagnose(server, r1) == {
        **USUAL,
        **ONE_NODE,
        **WITHOUT_GPU,
        **skipped("mem.available"),
        "limit.memlock": (
            "warn",
            "ulimit -l unlimited   # or LimitMEMLOCK=infinity in the systemd unit",
        ),
        "cpu.cores": ("warn", "ktops models   # smaller models need fewer"),
        "cpu.governor": ("warn", GOVERNOR),
        "mem.total": ("fail", SMALLER),
        "gpu.device": ("fail", NO_GPU_FIX),
        "disk.space": ("fail", "export KTOPS_MODELS=/path   # on a disk with 376.7 GiB free"),
    }


def test_a_laptop_is_ready_for_the_demo(server, demo, diagnose):
    laptop(server)
    assert diagnose(server, demo) == {
        **skipped("gpu.toolkit", "disk.type"),
        **ONE_NODE,
        **WITHOUT_GPU,
        "cpu.governor": ("warn", GOVERNOR),
    }


CONTAINER_FIX = (
    "docker update --memory 356g --memory-swap 356g CONTAINER   # on the container's host"
)


def contained(record):
    """Docker: a cgroup namespace, its own root, no capability to place memory."""
    record["files"]["/.dockerenv"] = ""
    record["files"]["/proc/self/cgroup"] = "0::/\n"
    record["files"]["/sys/fs/cgroup/memory.max"] = f"{64 * GIB}\n"
    record["files"]["/sys/fs/cgroup/memory.current"] = f"{GIB}\n"
    record["files"]["/sys/fs/cgroup/memory.stat"] = f"anon 1\ninactive_file {GIB // 2}\n"
    record["files"]["/sys/fs/cgroup/cpu.max"] = "1600000 100000\n"
    record["probes"]["mempolicy"] = {
        "facts": {"allowed": False, "reason": "Operation not permitted"}
    }


CONTAINER = {
    **USUAL,
    **skipped("mem.available"),
    "cpu.quota": ("warn", "docker update --cpus 0 CONTAINER   # on the container's host"),
    "mem.limit": ("fail", CONTAINER_FIX),
    "numa.policy": (
        "warn",
        "docker run --cap-add SYS_NICE --gpus all IMAGE   # the container needs the capability",
    ),
}


def test_a_container_with_64_gib_is_found_by_its_limit_not_by_the_machine(server, r1, diagnose):
    contained(server)
    assert diagnose(server, r1) == CONTAINER


def test_control_groups_of_version_1_say_the_same(server, r1, diagnose):
    contained(server)
    server["files"] = {
        path: text
        for path, text in server["files"].items()
        if not path.startswith("/sys/fs/cgroup")
    }
    group = "/docker/0123456789ab"
    server["files"] |= {
        "/proc/self/cgroup": f"5:memory:{group}\n4:cpu,cpuacct:{group}\n1:name=systemd:{group}\n",
        # Inside the container only the root of the mount is visible.
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{64 * GIB}\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "1600000\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert diagnose(server, r1) == CONTAINER


def test_version_1_without_a_limit_is_no_limit(server, r1, diagnose):
    server["files"] |= {
        "/proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    }
    assert diagnose(server, r1) == USUAL


def test_a_limit_of_a_parent_slice_counts(server, r1, diagnose):
    server["files"]["/sys/fs/cgroup/user.slice/user-1000.slice/memory.max"] = f"{200 * GIB}\n"
    fix = "sudo systemctl set-property session-2.scope MemoryMax=356G"
    assert diagnose(server, r1) == {
        **USUAL,
        **skipped("mem.available"),
        "mem.limit": ("fail", fix),
    }


def conda(record, *, end=29, name="x"):
    prefix = f"/opt/conda/envs/{name}"
    library = f"{prefix}/lib/libstdc++.so.6"
    record["files"] |= {f"{prefix}/conda-meta/history": "", "/opt/conda/condabin/conda": ""}
    record["env"] |= {"CONDA_PREFIX": prefix}
    record["programs"]["conda"] = "/opt/conda/condabin/conda"
    record["elf"][library] = libstdcxx(end)
    record["elf"]["/cache/libktops.so"]["needs"]["libstdc++.so.6"] = ["GLIBCXX_3.4.30"]
    record["probes"]["libraries"]["facts"]["libstdcxx"] = {"path": library}
    return library


def test_conda_with_an_old_libstdcxx_is_named_with_both_versions(server, r1, diagnose):
    library = conda(server)
    fix = "conda install -y -n x -c conda-forge libstdcxx-ng"
    assert diagnose(server, r1) == {**USUAL, "lib.glibcxx": ("fail", fix)}
    (result,) = run_checks(["lib.glibcxx"], RecordedHost(server), r1)
    assert result.summary == (
        f"libktops needs GLIBCXX_3.4.30; this Python loads {library}, which ends at 3.4.29: "
        "libktops.so does not load"
    )


def test_where_conda_is_not_at_hand_the_systems_newer_library_is_linked(server, r1, diagnose):
    library = conda(server)
    del server["programs"]["conda"]
    fix = (
        f"cp -aT --remove-destination {library} {library}.before-ktops && "
        f"ln -sfT /usr/lib/x86_64-linux-gnu/libstdc++.so.6 {library}"
    )
    assert diagnose(server, r1) == {**USUAL, "lib.glibcxx": ("fail", fix)}


def test_a_new_enough_conda_library_is_no_problem(server, r1, diagnose):
    conda(server, end=33)
    assert diagnose(server, r1) == USUAL


def test_a_driver_that_is_too_old_fails_cuda_and_torch_alike(server, r1, diagnose):
    server["commands"]["nvidia-smi -q -x"] = smi(driver="515.65.01", cuda="11.7")
    server["probes"]["torch"]["facts"] |= {"cuda_available": False}
    assert diagnose(server, r1) == {
        **USUAL,
        **skipped("py.triton", "cc.triton"),
        "gpu.cuda": ("fail", "sudo apt-get install -y nvidia-driver"),
        "py.torch_cuda": (
            "fail",
            f"{PIP} --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126",
        ),
    }


def test_a_server_without_a_gpu_fails_one_check_and_skips_the_rest(server, r1, diagnose):
    without_gpu(server)
    assert diagnose(server, r1) == {
        **USUAL,
        **WITHOUT_GPU,
        "gpu.device": ("fail", NO_GPU_FIX),
    }
    results = run_checks(["gpu.driver", "gpu.vram", "gpu.link"], RecordedHost(server), r1)
    assert {r.value for r in results} == {"waits for gpu.device"}
    assert {r.status for r in results} == {"skip"}


def test_a_server_without_a_gpu_is_ready_for_the_demo(server, demo, diagnose):
    without_gpu(server)
    assert diagnose(server, demo) == {
        **skipped("gpu.toolkit", "disk.type"),
        **WITHOUT_GPU,
    }


@pytest.mark.parametrize(
    ("facts", "error", "fix"),
    [
        ({"torch_found": False}, "", f"{PIP} 'torch>=2.9'"),
        (
            {"torch_found": True, "torch_error": "ImportError: undefined symbol: ncclCommInit"},
            "",
            f"{PIP} --force-reinstall 'torch>=2.9'",
        ),
        ({"torch_found": True}, "ended by SIGSEGV", f"{PIP} --force-reinstall 'torch>=2.9'"),
        (
            {"torch_found": True, "torch_error": "ImportError: version `GLIBCXX_3.4.30' not found"},
            "",
            "ktops doctor --only lib.glibcxx",
        ),
        (
            {"torch_found": True, "torch": "2.4.0", "torch_cuda": "12.1"},
            "",
            f"{PIP} --upgrade 'torch>=2.9'",
        ),
    ],
)
def test_a_broken_torch_is_named_and_the_rest_goes_on(server, r1, diagnose, facts, error, fix):
    server["probes"]["torch"] = {
        "facts": facts,
        "error": error,
    }
    assert diagnose(server, r1) == {
        **USUAL,
        **WITHOUT_TRITON,
        "py.torch": ("fail", fix),
    }


def test_a_full_disk_is_short_by_an_exact_figure_and_a_roomier_one_is_named(server, r1, diagnose):
    server["disks"]["/"] = disk("/", total=450 * GIB, free=0, kind="ext4")
    assert diagnose(server, r1) == {
        **USUAL,
        "disk.space": ("fail", "export KTOPS_MODELS=/data/ktops-models   # 6.8 TiB free there"),
        "disk.cache": (
            "fail",
            "export KTOPS_CACHE=/path   # a folder that can be written, with room",
        ),
    }
    (result,) = run_checks(["disk.space"], RecordedHost(server), r1)
    assert result.summary == "0 B free on / (ext4), needs 376.7 GiB: 376.7 GiB short"


def test_a_vm_that_masks_avx512_is_told_what_its_cpu_has(server, r1, diagnose):
    server["files"]["/proc/cpuinfo"] = cpu_info(
        vendor="GenuineIntel",
        family=6,
        model=143,
        name="Intel Xeon Processor (SapphireRapids)",
        flags="fpu sse avx f16c fma avx2 hypervisor",
    )
    fix = "virt-xml VM --edit --cpu host-passthrough   # on the host, then restart the VM"
    assert diagnose(server, r1) == {**USUAL, "cpu.masked": ("warn", fix)}
    masked, isa = run_checks(["cpu.isa", "cpu.masked"], RecordedHost(server), r1)[::-1]
    assert masked.value == "Sapphire Rapids without AVX-512, AVX-512 VNNI, AMX"
    assert isa.value == "AVX2 (Intel Xeon Processor (SapphireRapids))"


def test_eight_nodes_of_an_nps4_machine_are_counted_and_the_build_must_match(server, r1, diagnose):
    server["files"] = {
        path: text
        for path, text in server["files"].items()
        if not path.startswith("/sys/devices/system")
    }
    server["files"] |= cpu_files(sockets=2, cores=48, nodes=8, node_bytes=96 * GIB)
    server["files"] |= {
        "/proc/cpuinfo": cpu_info(
            vendor="AuthenticAMD",
            family=25,
            model=17,
            name="AMD EPYC 9454 48-Core Processor",
            flags="fpu sse avx f16c fma avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni",
        ),
        "/proc/meminfo": mem_info(768 * GIB, 750 * GIB),
        "/proc/sys/kernel/numa_balancing": "1\n",
        "/proc/self/status": "Uid:\t1000\t1000\t1000\t1000\nMems_allowed_list:\t0-7\n",
    }
    server["cpus_allowed"] = "0-191"
    server["probes"]["native"]["facts"]["numa"] = False
    assert diagnose(server, r1) == {
        **USUAL,
        "numa.balancing": ("warn", "sudo sysctl kernel.numa_balancing=0"),
        "numa.build": ("warn", "ktops build --numa on --force"),
    }
    (nodes,) = run_checks(["numa.nodes"], RecordedHost(server), r1)
    assert nodes.value == "8 nodes of 96.0 GiB"
