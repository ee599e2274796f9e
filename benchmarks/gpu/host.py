"""RAM and the GPU: registering, copies, and a prompt through one R1 layer's experts in RAM."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from gpu.timing import Figure, event_seconds
from gpu.weights import activations, native
from ktops_engine.bench.layer import ExpertLayer
from ktops_engine.bench.shapes import SHAPES
from ktops_engine.kernels.routing import Routing
from ktops_engine.moe.cpu_experts import CpuExperts
from ktops_engine.moe.expert_split import Rates
from ktops_engine.moe.gpu_experts import expert_bytes, expert_rows
from ktops_engine.moe.host_memory import bytes_at, copy_bytes, register, unregister
from ktops_engine.moe.streamed_experts import ExpertStream, StreamedExperts
from ktops_engine.native.load import Pool

REGISTERED = 4 << 30
COPIED = 1 << 30
GROUP_EXPERTS = 4
# Rates at which nothing is left to the CPU.
ALL_STREAMED = Rates(stream=1e12, gpu_flops=1e18, cpu_bytes=1.0, cpu_flops=1.0)
LEARNING_CALLS = 8


def transfers() -> Iterator[Figure]:
    """Registering memory with the driver, and copies to the GPU before and after."""
    with native().alloc(REGISTERED) as buffer:
        memory = bytes_at(buffer.address, REGISTERED)
        memory.fill_(1)
        target = torch.empty(COPIED, dtype=torch.uint8, device="cuda")

        def copy() -> None:
            copy_bytes(target, memory[:COPIED])

        def copies(name: str) -> Figure:
            copy()
            seconds = statistics.median(event_seconds(copy) for _ in range(5))
            return Figure("RAM", name, None, seconds, COPIED)

        yield copies("copy to the GPU, not registered")
        began = time.perf_counter()
        done = register(buffer.address, REGISTERED)
        seconds = time.perf_counter() - began
        note = f"refused with {done.error}" if done.error else ""
        yield Figure("RAM", "registering", None, seconds, done.num_bytes, note=note)
        yield copies("copy to the GPU")
        unregister(buffer.address, done.num_bytes)


@contextmanager
def _layer(pool: Pool) -> Iterator[ExpertLayer]:
    """A whole R1 layer, registered."""
    with ExpertLayer(native(), pool, SHAPES["r1"]) as layer:
        pinned = [
            (matrix.data_ptr, register(matrix.data_ptr, expert_rows(matrix).numel()).num_bytes)
            for matrix in (layer.gate, layer.up, layer.down)
        ]
        yield layer
        torch.cuda.synchronize()
        for address, num_bytes in pinned:
            unregister(address, num_bytes)


def prompts(all_tokens: Sequence[int]) -> Iterator[Figure]:
    """The experts of one layer on the CPU alone, streamed alone, and divided between both."""
    shape = SHAPES["r1"]
    needed = shape.num_experts * shape.expert_bytes
    if psutil.virtual_memory().available < needed * 1.2:
        raise RuntimeError(f"a layer takes {needed / 1e9:.1f} GB of RAM")
    with native().create_pool(sorted(os.sched_getaffinity(0))) as pool, _layer(pool) as layer:
        for tokens in all_tokens:
            yield from _prompt(pool, layer, tokens)


def _prompt(pool: Pool, layer: ExpertLayer, tokens: int) -> Iterator[Figure]:
    shape = layer.shape
    x = activations(tokens, shape.hidden_size)
    draws = torch.rand(tokens, shape.num_experts, device="cuda")
    ids = draws.argsort(1)[:, : shape.num_experts_per_tok].int().contiguous()
    weights = torch.rand(ids.shape, device="cuda")

    alone = CpuExperts(pool, layer.gate, layer.up, layer.down)
    on_cpu = (x.float().cpu(), ids.cpu(), weights.cpu())
    times = []
    for _ in range(3):
        began = time.perf_counter()
        alone(*on_cpu)
        times.append(time.perf_counter() - began)
    cpu = statistics.median(times[1:])
    yield Figure("prompt", "CPU alone", tokens, cpu)

    streamed, _ = _through(pool, layer, Routing(x, ids, weights), ALL_STREAMED)
    yield Figure("prompt", "streamed alone", tokens, streamed)
    both, share = _through(pool, layer, Routing(x, ids, weights), None)
    ideal = 1e3 / (1 / cpu + 1 / streamed)
    note = f"{share:.0%} of the experts streamed; ideal {ideal:.0f} ms"
    yield Figure("prompt", "both", tokens, both, note=note)


def _through(
    pool: Pool,
    layer: ExpertLayer,
    routing: Routing,
    rates: Rates | None,
) -> tuple[float, float]:
    """Seconds of a call once rates are learned, or at `rates`, and what share was streamed."""
    size = sum(map(expert_bytes, (layer.gate, layer.up, layer.down)))
    stream = ExpertStream(pool, torch.device("cuda"), size, GROUP_EXPERTS, ahead_experts=0)
    experts = StreamedExperts(stream, layer.gate, layer.up, layer.down)
    times, before = [], (0, 0)
    for _ in range(LEARNING_CALLS if rates is None else 4):
        if rates is not None:
            stream.rates = rates
        before = (stream.stats.streamed, stream.stats.cpu)
        torch.cuda.synchronize()
        began = time.perf_counter()
        experts(routing)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    stats = stream.stats
    stream.close()
    streamed, on_cpu = stats.streamed - before[0], stats.cpu - before[1]
    return statistics.median(times[-3:]), streamed / max(streamed + on_cpu, 1)
