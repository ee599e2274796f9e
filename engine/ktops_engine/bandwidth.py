"""How fast this machine's cores read its RAM, measured with the engine's own threads.

A matrix of 8-bit weights is multiplied with one token: the kernel does little besides reading. The
answer is remembered for a day: it is the machine's, and a busy neighbour changes it.
"""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

from ktops_engine.gguf import QuantType
from ktops_engine.machine import MachineFacts
from ktops_engine.native.build import find_current
from ktops_engine.native.load import Matrix, Native, NativeBuffer, Pool, load_native
from ktops_engine.nodes import nodes_of_cpus
from ktops_engine.remembered import cache_file, keep, machine_key, recall

COLS = 8192
# So many times the largest cache, as it keeps some of what is read again and again: with 32 cores
# and 300 MiB, 1.3 GB came at 199 GB/s and 130 GB at 171.
CACHE_TIMES = 16
# And four times the third-level cache of any socket, where a virtual machine does not say.
LEAST_PER_NODE = 1280 << 20
CACHES = Path("/sys/devices/system/cpu")
MIN_BYTES = 256 << 20  # less says nothing of the RAM
MAX_RAM_SHARE = 8  # at most an eighth of what is free is taken for it
TIME_LIMIT_S = 0.3
FILE = "read-bandwidth.json"
REMEMBERED_S = 86400.0


def read_bandwidth(machine: MachineFacts) -> float | None:
    """Bytes/s that all of `machine.cpus` read together; measured once a day, else remembered.

    `machine` is the one this process runs on. None without a native library, or where there is not
    enough free memory to measure. Takes under a second the first time. Raises KtopsError when the
    library is there and cannot be loaded.
    """
    info = find_current()
    if info is None:
        return None
    key, now = machine_key(machine, info.sources_hash), time.time()
    rate, measured_at = _rate_and_time(recall(cache_file(FILE)).get(key))
    if 0 <= now - measured_at < REMEMBERED_S:
        return rate
    measured = measure_read_bandwidth(load_native(info), machine)
    if measured is not None:
        keep(cache_file(FILE), key, (measured, now))
    return measured


def _rate_and_time(value: object) -> tuple[float, float]:
    """Bytes/s and when they were measured, in seconds since 1970; long ago for anything else."""
    try:
        rate, measured_at = cast("tuple[float, float]", value)
        return float(rate), float(measured_at)
    except (TypeError, ValueError):
        return 0.0, 0.0


def working_set_bytes(machine: MachineFacts) -> int | None:
    """Bytes to measure the RAM with, rather than a cache; None without memory for that."""
    per_node = max(CACHE_TIMES * largest_cache_bytes(machine.cpus[0]), LEAST_PER_NODE)
    wanted = min(per_node * machine.num_nodes, machine.available_ram_bytes // MAX_RAM_SHARE)
    return wanted if wanted >= MIN_BYTES else None


def largest_cache_bytes(cpu: int) -> int:
    """Of the caches that a CPU has alone or shares, as the kernel tells (cpuX/cache/indexY/size in
    sysfs, "307200K"); 0 where it does not."""
    sizes = [0]
    for path in CACHES.glob(f"cpu{cpu}/cache/index*/size"):
        with suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) << 10)
    return max(sizes)


def measure_read_bandwidth(native: Native, machine: MachineFacts) -> float | None:
    """Bytes/s of the best of some passes over a large matrix; None without memory for one."""
    wanted = working_set_bytes(machine)
    if wanted is None:
        return None
    row_bytes = QuantType.Q8_0.nbytes(COLS)
    rows = wanted // row_bytes
    x = (ctypes.c_float * COLS)()
    y = (ctypes.c_float * rows)()
    with (
        native.alloc(rows * row_bytes) as buffer,
        native.create_pool(machine.cpus, nodes_of_cpus(machine.cpus)) as pool,
    ):
        weight = Matrix(buffer.address, QuantType.Q8_0, rows, COLS)
        pool.place(buffer, weight)
        _touch(buffer, len(machine.cpus))
        seconds = _fastest(pool, weight, ctypes.addressof(x), ctypes.addressof(y))
    return rows * row_bytes / seconds


def _touch(buffer: NativeBuffer, num_threads: int) -> None:
    """Write every page: memory that was never written is one page of zeros, in the cache."""
    step = -(-buffer.num_bytes // num_threads)

    def fill(start: int) -> None:
        ctypes.memset(buffer.address + start, 1, min(step, buffer.num_bytes - start))

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(fill, range(0, buffer.num_bytes, step)))


def _fastest(pool: Pool, weight: Matrix, x_ptr: int, y_ptr: int) -> float:
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < TIME_LIMIT_S:
        start = time.perf_counter()
        pool.matmul(weight, x_ptr, y_ptr, num_tokens=1)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
