"""Parts of the report that other commands run before their own work. They print the same ids."""

from __future__ import annotations

# What can stop a server or slow it down, as far as it is answered within a fraction of a second.
# The weights, the port and torch are not asked about: the server meets them itself, at once.
SERVE_CHECKS = (
    "sys.os",
    "sys.glibc",
    "limit.nofile",
    "limit.memlock",
    "cpu.cores",
    "cpu.isa",
    "cpu.masked",
    "cpu.quota",
    "cpu.governor",
    "mem.total",
    "mem.limit",
    "mem.available",
    "mem.swap",
    "mem.thp",
    "numa.nodes",
    "numa.mems",
    "numa.balancing",
    "numa.build",
    "numa.policy",
    "gpu.device",
    "gpu.driver",
    "gpu.cuda",
    "gpu.vram",
    "gpu.arch",
    "gpu.link",
    "lib.native",
    "lib.glibcxx",
    "lib.glibc",
    "py.version",
    "py.packages",
    "disk.type",
)

# What computing on a GPU needs besides. torch is imported, which takes seconds.
GPU_CHECKS = ("py.torch_cuda", "py.triton", "cc.triton")

# What compiling the native library needs.
BUILD_CHECKS = (
    "sys.os",
    "cc.version",
    "cc.assembler",
    "cc.cmake",
    "cc.ninja",
    "disk.cache",
)
