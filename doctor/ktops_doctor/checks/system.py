"""Operating system, kernel, C library and the limits of this process."""

from __future__ import annotations

from ktops_doctor.check import Check, Finding, Section, fail, ok, warn
from ktops_doctor.expectations import dotted, needs
from ktops_doctor.fixes import os_release, remark
from ktops_doctor.host import Host
from ktops_doctor.target import Target
from ktops_doctor.topology import kilobytes, process_status
from ktops_doctor.units import GIB, binary, version
from ktops_engine.text import joined, text

MIN_KERNEL = (4, 18)
MIN_GLIBC = (2, 28)
MIN_OPEN_FILES = 1024
CAP_IPC_LOCK = 14
_LARGE_BYTES = 8 * GIB  # a smaller model is not worth locking


def _os(host: Host, target: Target) -> Finding:
    facts = host.platform()
    name = os_release(host).get("PRETTY_NAME", facts.system)
    value = joined((name, facts.machine))
    if facts.system == "Linux" and facts.machine == "x86_64":
        return ok(value)
    return fail(
        value,
        text("needs Linux on x86-64"),
        detail=text("the kernels and the memory layout are written for it"),
        fix="docker run --platform linux/amd64 -it ubuntu:24.04",
    )


def _kernel(host: Host, target: Target) -> Finding:
    release = host.platform().kernel
    expected = needs(dotted(MIN_KERNEL))
    if version(release) >= MIN_KERNEL:
        return ok(release, expected)
    return warn(
        release,
        expected,
        detail=text("torch and the GPU driver are not tested on kernels this old"),
        fix=remark("uname -r", text("then boot a newer kernel of your distribution")),
    )


def _glibc(host: Host, target: Target) -> Finding:
    libc = host.platform().libc
    expected = needs(f"glibc {dotted(MIN_GLIBC)}")
    name, _, number = libc.partition(" ")
    if name == "glibc" and version(number) >= MIN_GLIBC:
        return ok(libc, expected)
    return fail(
        libc or text("not glibc"),
        expected,
        detail=text("the torch wheels do not load with it"),
        fix=remark("docker run -it ubuntu:24.04", text("or upgrade the distribution")),
    )


def _open_files(host: Host, target: Target) -> Finding:
    limit = host.soft_limit("NOFILE")
    expected = needs(MIN_OPEN_FILES)
    if limit is None or limit >= MIN_OPEN_FILES:
        return ok(text("unlimited") if limit is None else str(limit), expected)
    return warn(
        str(limit),
        expected,
        detail=text("every client and every shard takes one: connections will be refused"),
        fix=f"ulimit -n {4 * MIN_OPEN_FILES}",
    )


def _locked_memory(host: Host, target: Target) -> Finding:
    limit = host.soft_limit("MEMLOCK")
    swap = kilobytes(host.read_text("/proc/meminfo") or "", "SwapTotal") or 0
    capabilities = int(process_status(host, "CapEff") or "0", 16)
    if limit is None or capabilities >> CAP_IPC_LOCK & 1:
        return ok(text("unlimited"))
    if limit >= target.ram_bytes or target.ram_bytes < _LARGE_BYTES:
        return ok(binary(limit))
    if not swap:
        return ok(text("{size}, and no swap that weights could be moved to", size=binary(limit)))
    return warn(
        text("{size} with {swap} of swap", size=binary(limit), swap=binary(swap)),
        detail=text(
            "weights that cannot be locked may be swapped out, and come back at disk speed"
        ),
        fix=remark("ulimit -l unlimited", text("or LimitMEMLOCK=infinity in the systemd unit")),
    )


CHECKS = (
    Check(
        id="sys.os",
        title=text("Operating system"),
        section=Section.SYSTEM,
        run=_os,
        why="The native kernels use x86-64 instructions and Linux interfaces for threads, memory "
        "and NUMA.",
    ),
    Check(
        id="sys.kernel",
        title=text("Linux kernel"),
        section=Section.SYSTEM,
        run=_kernel,
        why="Kernels before 4.18 are older than every distribution that the torch wheels support. "
        "AMX needs 5.16 besides: see cpu.masked.",
    ),
    Check(
        id="sys.glibc",
        title=text("C library"),
        section=Section.SYSTEM,
        run=_glibc,
        why="The torch wheels are built for glibc 2.28 (manylinux_2_28). On an older one, or on "
        'musl, `import torch` ends with "version `GLIBC_2.28\' not found".',
    ),
    Check(
        id="limit.nofile",
        title=text("Open files"),
        section=Section.SYSTEM,
        run=_open_files,
        why="A server holds one file for each client and each shard; at the limit, new clients are "
        "turned away.",
    ),
    Check(
        id="limit.memlock",
        title=text("Locked memory"),
        section=Section.SYSTEM,
        run=_locked_memory,
        why="Weights must stay in RAM. Where there is swap and memory may not be locked, the "
        "kernel can move them to disk, and decoding falls to disk speed.",
    ),
)
