"""System, CPU, memory and NUMA: one fault at a time on the healthy server."""

from __future__ import annotations

import pytest

from .conftest import GIB, cpu_info, mem_info


@pytest.mark.parametrize(
    ("field", "value", "check_id", "status"),
    [
        ("machine", "aarch64", "sys.os", "fail"),
        ("system", "Darwin", "sys.os", "fail"),
        ("kernel", "3.10.0-1160.el7.x86_64", "sys.kernel", "warn"),
        ("libc", "glibc 2.17", "sys.glibc", "fail"),
        ("libc", "", "sys.glibc", "fail"),
    ],
)
def test_a_platform_nothing_is_built_for_is_named(ask, server, r1, field, value, check_id, status):
    server["platform"][field] = value
    assert ask(server, r1, check_id).status == status


def test_the_library_of_a_newer_system_does_not_fit_an_old_glibc(ask, server, r1):
    server["platform"]["libc"] = "glibc 2.31"
    result = ask(server, r1, "lib.glibc")
    assert (result.status, result.value) == (
        "fail",
        "libktops needs GLIBC_2.34, the system has 2.31",
    )
    assert result.fix.startswith("ktops build --force")


def test_few_open_files_are_a_warning(ask, server, r1):
    server["limits"]["NOFILE"] = 256
    assert ask(server, r1, "limit.nofile").fix == "ulimit -n 4096"


@pytest.mark.parametrize(
    ("swap", "capabilities", "limit", "status"),
    [
        (0, "0", 8 << 20, "ok"),
        (8 * GIB, "0", 8 << 20, "warn"),
        (8 * GIB, "0000000000004000", 8 << 20, "ok"),
        (8 * GIB, "0", None, "ok"),
        (8 * GIB, "0", 400 * 10**9, "ok"),
    ],
)
def test_locked_memory_matters_only_with_swap(ask, server, r1, swap, capabilities, limit, status):
    server["files"]["/proc/meminfo"] = mem_info(2048 * GIB, 2000 * GIB, swap=swap)
    server["files"]["/proc/self/status"] = f"Uid:\t1\t1\t1\t1\nCapEff:\t{capabilities}\n"
    server["limits"]["MEMLOCK"] = limit
    assert ask(server, r1, "limit.memlock").status == status


def test_hyper_threads_are_not_cores_and_a_cpuset_counts(ask, server, r1):
    server["cpus_allowed"] = "0-15,80-95"
    result = ask(server, r1, "cpu.cores")
    assert result.status == "warn"
    assert result.value == "16 physical cores (32 threads) of the machine's 80"
    assert result.fix.startswith("taskset -pc $$")


def test_a_cap_on_the_kernels_is_shown(ask, server, r1):
    server["env"]["KTOPS_ISA"] = "avx2"
    assert ask(server, r1, "cpu.isa").fix == "unset KTOPS_ISA"


def test_a_cpu_without_avx2_is_left_with_scalar_code(ask, server, r1):
    server["files"]["/proc/cpuinfo"] = cpu_info(
        vendor="GenuineIntel", family=6, model=62, name="Xeon E5-2697 v2", flags="fpu sse avx"
    )
    assert ask(server, r1, "cpu.isa").status == "warn"
    assert ask(server, r1, "cpu.masked").status == "skip"


def test_amx_is_withheld_by_an_old_kernel(ask, server, r1):
    server["platform"]["kernel"] = "5.15.0-119-generic"
    flags = "fpu avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni"
    server["files"]["/proc/cpuinfo"] = cpu_info(
        vendor="GenuineIntel", family=6, model=143, name="8460Y+", flags=flags
    )
    result = ask(server, r1, "cpu.masked")
    assert result.value == "Sapphire Rapids without AMX"
    assert result.fix == "uname -r   # then boot kernel 5.16 or newer"


def test_a_boot_option_that_hides_instructions_is_named(ask, server, r1):
    server["files"]["/proc/cmdline"] = "root=/dev/sda1 clearcpuid=304 quiet\n"
    server["files"]["/proc/cpuinfo"] = cpu_info(
        vendor="AuthenticAMD", family=26, model=2, name="EPYC 9575F", flags="avx2 fma f16c"
    )
    result = ask(server, r1, "cpu.masked")
    assert "clearcpuid=304" in result.detail
    assert result.fix.startswith("grep -rn clearcpuid /etc/default/grub")


def test_memory_that_others_hold_is_not_available(ask, server, r1):
    server["files"]["/proc/meminfo"] = mem_info(2048 * GIB, 100 * GIB)
    result = ask(server, r1, "mem.available")
    assert (result.status, result.value) == ("fail", "100.0 GiB")


def test_what_a_control_group_has_used_is_not_available(ask, server, r1):
    group = "/sys/fs/cgroup/user.slice"
    server["files"] |= {f"{group}/memory.max": str(400 * GIB), f"{group}/memory.current": "10000"}
    assert ask(server, r1, "mem.available").status == "ok"
    server["files"][f"{group}/memory.current"] = str(100 * GIB)
    assert ask(server, r1, "mem.available").value == "300.0 GiB"


def test_swap_in_use_is_a_warning_only_when_much_of_it_is(ask, server, r1):
    meminfo = mem_info(2048 * GIB, 2000 * GIB, swap=8 * GIB, swap_free=4 * GIB)
    server["files"]["/proc/meminfo"] = meminfo
    assert ask(server, r1, "mem.swap").value == "4.0 GiB of 8.0 GiB used"
    assert ask(server, r1, "mem.swap").status == "warn"
    server["files"]["/proc/meminfo"] = mem_info(2048 * GIB, 2000 * GIB, swap=8 * GIB)
    assert ask(server, r1, "mem.swap").status == "ok"


def test_huge_pages_switched_off_get_the_command_for_root_or_for_sudo(ask, server, r1, demo):
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    server["files"][path] = "always madvise [never]\n"
    assert ask(server, r1, "mem.thp").fix == f"echo madvise | sudo tee {path}"
    server["files"]["/proc/self/status"] = "Uid:\t0\t0\t0\t0\n"
    assert ask(server, r1, "mem.thp").fix == f"echo madvise > {path}"
    assert ask(server, demo, "mem.thp").status == "ok"


def test_a_socket_without_memory_is_a_warning_and_memory_without_cores_is_not(ask, server, r1):
    node = "/sys/devices/system/node/node{}/{}"
    server["files"][node.format(2, "cpulist")] = "\n"
    server["files"][node.format(2, "meminfo")] = "Node 2 MemTotal: 1073741824 kB\n"
    result = ask(server, r1, "numa.nodes")
    assert (result.status, result.value) == (
        "ok",
        "3 nodes of 1.0 TiB, node 2 with memory alone",
    )
    server["files"][node.format(1, "meminfo")] = "Node 1 MemTotal: 0 kB\n"
    assert ask(server, r1, "numa.nodes").value == "3 nodes, node 1 without memory"


def test_a_process_bound_to_one_node_has_its_memory_alone(ask, server, r1):
    server["files"]["/proc/self/status"] = "Uid:\t1\t1\t1\t1\nMems_allowed_list:\t0\n"
    assert ask(server, r1, "numa.mems").status == "warn"
    meminfo = "/sys/devices/system/node/node0/meminfo"
    server["files"][meminfo] = f"Node 0 MemTotal: {(256 * GIB) >> 10} kB\n"
    assert ask(server, r1, "numa.mems").status == "fail"


def test_an_impossible_use_numa_is_named_before_the_build_refuses_it(ask, server, r1):
    server["env"]["USE_NUMA"] = "yes"
    assert ask(server, r1, "numa.build").fix == "unset USE_NUMA"


def test_a_control_group_that_allows_more_than_there_is_limits_nothing(ask, server, r1):
    server["files"]["/proc/meminfo"] = mem_info(126 * GIB, 120 * GIB)
    server["files"]["/sys/fs/cgroup/user.slice/memory.max"] = str(128 * GIB)
    assert ask(server, r1, "mem.limit").value == "the control group allows all there is"
    assert ask(server, r1, "mem.total").status == "fail"
