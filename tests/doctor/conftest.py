"""Machines written down: a healthy server, and the changes that make every other one of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ktops_doctor import Result, Target, run_checks
from ktops_doctor.recorded_host import RecordedHost

Record = dict[str, Any]
GIB = 1 << 30
PLAN = "/opt/ktops/bin/python -P -m ktops.checkup.plan_child r1-q4km"

INTEL_FLAGS = (
    "fpu sse sse2 avx f16c fma avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni avx512_bf16"
    " amx_bf16 amx_tile amx_int8"
)


def cpu_files(
    *, sockets: int, cores: int, threads: int = 2, nodes: int = 0, node_bytes: int = 0
) -> dict[str, str]:
    """/sys of a machine: `cores` a socket, numbered as Linux does, `nodes` NUMA nodes in all."""
    files: dict[str, str] = {}
    total = sockets * cores
    for core in range(total):
        siblings = ",".join(str(core + thread * total) for thread in range(threads))
        for thread in range(threads):
            cpu = f"/sys/devices/system/cpu/cpu{core + thread * total}"
            files[f"{cpu}/topology/thread_siblings_list"] = f"{siblings}\n"
            files[f"{cpu}/cpufreq/scaling_governor"] = "performance\n"
    files["/sys/devices/system/cpu/online"] = f"0-{total * threads - 1}\n"
    for node in range(nodes):
        width = total // nodes
        parts = [
            f"{node * width + thread * total}-{(node + 1) * width - 1 + thread * total}"
            for thread in range(threads)
        ]
        folder = f"/sys/devices/system/node/node{node}"
        files[f"{folder}/cpulist"] = ",".join(parts) + "\n"
        files[f"{folder}/meminfo"] = f"Node {node} MemTotal: {node_bytes >> 10} kB\n"
    return files


def cpu_info(*, vendor: str, family: int, model: int, name: str, flags: str) -> str:
    return (
        f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n"
        f"model name\t: {name}\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    )


def mem_info(total: int, available: int, swap: int = 0, swap_free: int | None = None) -> str:
    free = swap if swap_free is None else swap_free
    return (
        f"MemTotal:       {total >> 10} kB\nMemFree:        1024 kB\n"
        f"MemAvailable:   {available >> 10} kB\n"
        f"SwapTotal:      {swap >> 10} kB\nSwapFree:       {free >> 10} kB\n"
    )


def smi(
    *,
    driver: str = "550.54.15",
    cuda: str = "12.4",
    name: str = "NVIDIA L40S",
    architecture: str = "Ada Lovelace",
    total_mib: int = 49140,
    free_mib: int | Sequence[int] = 48782,
    lanes: int = 16,
    count: int = 1,
) -> dict[str, Any]:
    """nvidia-smi's answer, cut down to the elements that are read and some that are not; of several
    GPUs each may have memory of its own free."""
    all_free = [free_mib] * count if isinstance(free_mib, int) else free_mib
    gpus = "".join(
        f"""
    <gpu id="00000000:17:00.0">
      <product_name>{name}</product_name>
      <uuid>GPU-{index}5f2a7c1</uuid>
      <product_architecture>{architecture}</product_architecture>
      <pci>
        <pci_bus_id>00000000:17:00.0</pci_bus_id>
        <pci_gpu_link_info>
          <pcie_gen><max_link_gen>4</max_link_gen><current_link_gen>1</current_link_gen></pcie_gen>
          <link_widths>
            <max_link_width>16x</max_link_width>
            <current_link_width>{lanes}x</current_link_width>
          </link_widths>
        </pci_gpu_link_info>
      </pci>
      <fb_memory_usage>
        <total>{total_mib} MiB</total><used>1 MiB</used><free>{free} MiB</free>
      </fb_memory_usage>
      <bar1_memory_usage><total>65536 MiB</total><free>65535 MiB</free></bar1_memory_usage>
    </gpu>"""
        for index, free in enumerate(all_free)
    )
    cuda_line = f"<cuda_version>{cuda}</cuda_version>" if cuda else ""
    text = (
        '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n'
        f"<nvidia_smi_log><driver_version>{driver}</driver_version>{cuda_line}"
        f"<attached_gpus>{len(all_free)}</attached_gpus>{gpus}</nvidia_smi_log>"
    )
    return {"status": 0, "stdout": text}


def healthy_server() -> Record:
    """Two Xeon 8460Y+, 2 TiB, one L40S, Ubuntu, everything installed."""
    files = cpu_files(sockets=2, cores=40, nodes=2, node_bytes=1024 * GIB)
    files |= {
        "/etc/os-release": 'ID=ubuntu\nID_LIKE=debian\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n',
        "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro\n",
        "/proc/cpuinfo": cpu_info(
            vendor="GenuineIntel",
            family=6,
            model=143,
            name="Intel(R) Xeon(R) Platinum 8460Y+",
            flags=INTEL_FLAGS,
        ),
        "/proc/meminfo": mem_info(2048 * GIB, 2000 * GIB),
        "/proc/mounts": "/dev/sda1 / ext4 rw 0 0\n/dev/nvme0n1 /data xfs rw 0 0\n",
        "/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-2.scope\n",
        "/proc/self/status": "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n"
        "Mems_allowed_list:\t0-1\n",
        "/proc/sys/kernel/numa_balancing": "0\n",
        "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "/sys/fs/cgroup/user.slice/memory.max": "max\n",
        "/sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
        "/sys/bus/pci/devices/0000:17:00.0/vendor": "0x10de\n",
        "/sys/bus/pci/devices/0000:17:00.0/class": "0x030200\n",
        "/sys/bus/pci/devices/0000:00:1f.0/vendor": "0x8086\n",
        "/sys/bus/pci/devices/0000:00:1f.0/class": "0x060100\n",
        "/opt/ktops/bin/cmake": "",
        "/opt/ktops/bin/ninja": "",
    }
    system_library = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6"
    return {
        "files": files,
        "elf": {
            system_library: libstdcxx(30),
            "/cache/libktops.so": {"needs": {"libc.so.6": ["GLIBC_2.2.5", "GLIBC_2.34"]}},
            "/torch/lib/libtorch_cpu.so": {
                "needs": {
                    "libstdc++.so.6": ["GLIBCXX_3.4", "GLIBCXX_3.4.22", "CXXABI_1.3.5"],
                    "libm.so.6": ["GLIBC_2.27"],
                }
            },
        },
        "env": {"HOME": "/home/u"},
        "programs": {name: f"/usr/bin/{name}" for name in ("g++", "as", "nvidia-smi")},
        "commands": {
            "nvidia-smi -q -x": smi(),
            "g++ -dumpfullversion -dumpversion": {"status": 0, "stdout": "13.2.0\n"},
            "as --version": {"status": 0, "stdout": "GNU assembler (GNU Binutils) 2.42\n"},
            "/opt/ktops/bin/cmake --version": {"status": 0, "stdout": "cmake version 4.1.2\n\n"},
            "/opt/ktops/bin/ninja --version": {"status": 0, "stdout": "1.13.0\n"},
            PLAN: planned(tokens_per_s=[13.1, 16.4]),
        },
        "probes": {
            "torch": {
                "facts": {
                    "torch_found": True,
                    "torch": "2.9.1+cu126",
                    "torch_cuda": "12.6",
                    "cuda_available": True,
                    "cuda_warning": "",
                }
            },
            "triton": {
                "facts": {
                    "compiler": "/usr/bin/gcc",
                    "compiler_error": "",
                    "triton_found": True,
                    "triton": "3.5.1",
                }
            },
            "libraries": {
                "facts": {
                    "libraries": {"torch": ["/torch/lib/libtorch_cpu.so"]},
                    "libstdcxx": {"path": system_library},
                }
            },
            "native": {
                "facts": {
                    "built": True,
                    "path": "/cache/libktops.so",
                    "numa": True,
                    "compiler": "g++ 13.2.0",
                    "built_at": "2026-11-20T10:00:00+00:00",
                    "isa": "avx512vnni",
                    "isa_available": ["scalar", "avx2", "avx512", "avx512vnni"],
                }
            },
            "imports": {
                "facts": {
                    "numpy": {"version": "2.3.1"},
                    "tokenizers": {"version": "0.22.0"},
                    "gguf": {"version": ""},
                }
            },
            "model demo": {
                "facts": {"num_shards": 2, "total_bytes": 25 << 20, "architecture": "deepseek2"}
            },
            "mempolicy": {"facts": {"allowed": True, "reason": ""}},
        },
        "platform": {
            "system": "Linux",
            "machine": "x86_64",
            "kernel": "6.8.0-45-generic",
            "libc": "glibc 2.39",
        },
        "python": {
            "version": [3, 12, 3],
            "executable": "/opt/ktops/bin/python",
            "prefix": "/opt/ktops",
            "base_prefix": "/usr",
        },
        "packages": {"numpy": "2.3.1", "torch": "2.9.1", "fastapi": "0.120.0"},
        "requirements": {
            "ktops": ["fastapi>=0.115", "numpy>=1.26", "torch>=2.9"],
            "torch": ["numpy", 'triton==3.5.1; platform_system == "Linux"'],
        },
        "cpus_allowed": "0-159",
        "limits": {"NOFILE": 65536, "MEMLOCK": 8 << 20},
        "reach": {
            "https://huggingface.co": answer(0.2),
            "https://modelscope.cn": answer(0.3),
        },
        "disks": {
            "/": disk("/", total=900 * GIB, free=600 * GIB, kind="ext4"),
            "/data": disk("/data", total=8000 * GIB, free=7000 * GIB, kind="xfs"),
        },
    }


def planned(**facts: object) -> Record:
    """What the child that plans prints."""
    known = {
        "tokens_per_s": None,
        "with_all_gpus_tokens_per_s": None,
        "ram_bytes": None,
        "needed_bytes": None,
        "there_bytes": None,
    }
    return {"status": 0, "stdout": json.dumps({**known, **facts}) + "\n"}


def answer(seconds: float, skew: float = 0.4) -> Record:
    """A hub that answers."""
    return {"stage": "done", "status": 200, "seconds": seconds, "clock_skew": skew}


def silent(stage: str, reason: str) -> Record:
    """A hub that does not: the request ended at `stage`."""
    return {"stage": stage, "reason": reason}


def libstdcxx(end: int) -> Record:
    """A libstdc++ whose versions end at GLIBCXX_3.4.<end>."""
    names = ["GLIBCXX_3.4", *(f"GLIBCXX_3.4.{minor}" for minor in range(1, end + 1))]
    return {"defines": ["libstdc++.so.6", *names, "CXXABI_1.3", "CXXABI_1.3.5"]}


def disk(path: str, *, total: int, free: int, kind: str, writable: bool = True) -> Record:
    return {
        "path": path,
        "total_bytes": total,
        "free_bytes": free,
        "file_system": kind,
        "writable": writable,
    }


def without_gpu(record: Record) -> None:
    record["files"] = {
        path: text for path, text in record["files"].items() if "0000:17:00.0" not in path
    }
    del record["commands"]["nvidia-smi -q -x"], record["programs"]["nvidia-smi"]


@pytest.fixture
def server() -> Record:
    """A healthy server that a test may change."""
    return copy.deepcopy(healthy_server())


@pytest.fixture
def r1() -> Target:
    return Target(
        name="r1-q4km",
        title="DeepSeek-R1 671B, Q4_K_M",
        weights_bytes=404_425_000_000,
        ram_bytes=382_000_000_000,
        vram_bytes=14_000_000_000,
        cores=32,
    )


@pytest.fixture
def demo() -> Target:
    return Target(
        name="demo",
        title="ktops demo",
        weights_bytes=32_000_000,
        ram_bytes=1_000_000_000,
        vram_bytes=0,
        cores=1,
        present_bytes=32_000_000,
        weights="demo",
    )


Findings = dict[str, tuple[str, str]]


@pytest.fixture
def diagnose() -> Callable[..., Findings]:
    """`diagnose(record, target)`: id -> (status, fix) of every check that is not ok."""

    def examine(record: Record, target: Target, ids: Sequence[str] | None = None) -> Findings:
        results = run_checks(ids, RecordedHost(record), target)
        return {r.id: (r.status.value, r.fix) for r in results if r.status != "ok"}

    return examine


@pytest.fixture
def ask() -> Callable[[Record, Target, str], Result]:
    """`ask(record, target, id)`: the result of one check."""

    def examine(record: Record, target: Target, check_id: str) -> Result:
        (result,) = run_checks([check_id], RecordedHost(record), target)
        return result

    return examine
