"""Cores and memory as the engine sees them, on made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktops_engine.machine import detect_machine, physical_cpus

GIB = 1 << 30


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def add_core(sys_root: Path, cpus: list[int], package: int = 0) -> None:
    for cpu in cpus:
        topology = sys_root / f"devices/system/cpu/cpu{cpu}/topology"
        write(topology / "physical_package_id", f"{package}\n")
        write(topology / "thread_siblings_list", ",".join(map(str, cpus)) + "\n")


def test_one_thread_of_each_core_is_used(tmp_path):
    add_core(tmp_path, [0, 4])
    add_core(tmp_path, [1, 5])
    add_core(tmp_path, [2, 6], package=1)
    assert physical_cpus([0, 1, 2, 4, 5, 6], tmp_path) == (0, 1, 2)


def test_a_cpuset_that_holds_only_second_threads_keeps_its_cores(tmp_path):
    add_core(tmp_path, [0, 4])
    add_core(tmp_path, [1, 5])
    assert physical_cpus([4, 5], tmp_path) == (4, 5)


def test_without_topology_every_cpu_counts(tmp_path):
    assert physical_cpus([3, 7], tmp_path) == (3, 7)


def test_this_machine_has_cores_within_its_cpuset_and_memory():
    machine = detect_machine()
    assert set(machine.cpus) <= os.sched_getaffinity(0)
    assert machine.cpus
    assert 0 < machine.available_ram_bytes <= machine.total_ram_bytes


@pytest.mark.parametrize(
    ("vendor", "added", "isa"),
    [
        ("AuthenticAMD", "", "avx512"),
        ("AuthenticAMD", "avx512_vnni", "avx512vnni"),
        ("AuthenticAMD", "avx512_vnni avx512_bf16", "avx512bf16"),
        ("GenuineIntel", "avx512_vnni avx512_bf16", "avx512vnni"),
        ("GenuineIntel", "avx512_vnni avx512_bf16 amx_tile amx_bf16", "amx"),
    ],
)
def test_the_kernels_of_a_machine_go_by_its_maker_and_flags(tmp_path, vendor, added, isa):
    flags = f"avx2 fma f16c avx512f avx512bw avx512vl avx512dq {added}"
    write(tmp_path / "cpuinfo", f"vendor_id : {vendor}\nflags : {flags}\n")
    assert detect_machine(tmp_path, tmp_path, {}).isa == isa


@pytest.mark.parametrize(
    ("cap", "isa"),
    [("", "avx512vnni"), ("scalar", "scalar"), ("avx512", "avx512"), ("amx", "avx512vnni")],
)
def test_the_kernels_are_no_better_than_the_environment_says(tmp_path, cap, isa):
    flags = "avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni"
    write(tmp_path / "cpuinfo", f"flags : {flags}\n")
    assert detect_machine(tmp_path, tmp_path, {"KTOPS_ISA": cap}).isa == isa


def test_a_cap_that_names_no_kernels_is_left_to_the_library_to_refuse(tmp_path):
    write(tmp_path / "cpuinfo", "flags : avx2 fma f16c\n")
    assert detect_machine(tmp_path, tmp_path, {"KTOPS_ISA": "avx1024"}).isa == "avx2"


def test_the_tightest_control_group_bounds_memory(tmp_path):
    write(tmp_path / "proc/self/cgroup", "0::/a/b\n")
    group = tmp_path / "sys/fs/cgroup/a"
    write(group / "memory.max", f"{GIB // 4}\n")
    write(group / "memory.current", f"{GIB // 8}\n")
    write(group / "memory.stat", f"anon 1\ninactive_file {GIB // 16}\n")
    write(group / "b/memory.max", "max\n")
    write(group / "b/memory.current", "1\n")
    machine = detect_machine(tmp_path / "sys", tmp_path / "proc")
    assert machine.total_ram_bytes == GIB // 4
    assert machine.available_ram_bytes == GIB // 4 - GIB // 8 + GIB // 16


def test_version_one_control_groups_count_too(tmp_path):
    write(tmp_path / "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n0::/x\n")
    group = tmp_path / "sys/fs/cgroup/memory/x"
    write(group / "memory.limit_in_bytes", f"{GIB // 4}\n")
    write(group / "memory.usage_in_bytes", f"{GIB // 8}\n")
    write(group / "memory.stat", "total_inactive_file 0\n")
    machine = detect_machine(tmp_path / "sys", tmp_path / "proc")
    assert (machine.total_ram_bytes, machine.available_ram_bytes) == (GIB // 4, GIB // 8)
