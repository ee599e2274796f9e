"""Makes the routed experts of each layer on a GPU where their weights lie: there, on a further GPU,
or in RAM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from ktops_engine.model_config import ModelConfig
from ktops_engine.models.deepseek2_gpu import RoutedExperts
from ktops_engine.models.hybrid_weights import HybridWeights
from ktops_engine.models.weights import Weights
from ktops_engine.moe.expert_stream import ExpertStream
from ktops_engine.moe.further_gpu import FurtherGpu
from ktops_engine.moe.further_gpu_experts import FurtherGpuExperts
from ktops_engine.moe.gpu_experts import ResidentExperts, expert_bytes
from ktops_engine.moe.handoff import Handoff
from ktops_engine.moe.host_memory import register, unregister
from ktops_engine.moe.hot_experts import copy_hot_experts
from ktops_engine.moe.ram_experts import RamExperts
from ktops_engine.moe.streamed_experts import StreamedExperts
from ktops_engine.native.load import Pool
from ktops_engine.plan.sizes import gib
from ktops_engine.text import text


def place_routed(
    weights: HybridWeights,
    layers: Sequence[int],
    config: ModelConfig,
    pool: Pool,
    resources: ExitStack,
    on_note: Callable[[str], None],
) -> tuple[dict[int, RoutedExperts], Handoff | None]:
    """The routed experts of `layers`, by layer, and the handoff of those in RAM, None when there
    are none. The other arguments are those of `build_hybrid`.

    Raises KtopsError out-of-memory, and torch.OutOfMemoryError.
    """
    device = weights.on_gpu.device
    by_cpu = weights.experts_in_ram(layers)
    handoff = None
    if by_cpu:
        sizes = config.hidden_size, config.num_experts_per_tok
        handoff = Handoff(pool.native, pool, list(by_cpu.values()), *sizes, device)
    most_bytes = max((sum(map(expert_bytes, matrices)) for matrices in by_cpu.values()), default=0)
    stream = ExpertStream(pool, device, most_bytes)
    resources.callback(stream.close)
    if by_cpu and device.type == "cuda":
        _register(weights.in_ram, resources, on_note)
    copies = copy_hot_experts(by_cpu, weights.hot, device)
    routed: dict[int, RoutedExperts] = {}
    if handoff is not None:
        for place, (index, matrices) in enumerate(by_cpu.items()):
            copied = copies.get(index)
            is_last = index == config.num_hidden_layers - 1
            streamed = StreamedExperts(stream, *matrices, copied, is_last=is_last)
            routed[index] = RamExperts(place, handoff, streamed, copied)
    gpus: dict[torch.device, FurtherGpu] = {}
    for index in layers:
        if index in by_cpu:
            continue
        experts = ResidentExperts(stream.staging, weights.experts_on_gpu(index))
        where = weights.on_gpu.expert_device(index)
        if where == device:
            routed[index] = experts
            continue
        if where not in gpus:
            gpus[where] = FurtherGpu(
                device,
                where,
                config.hidden_size,
                config.moe_intermediate_size,
                config.num_experts_per_tok,
            )
        routed[index] = FurtherGpuExperts(gpus[where], stream.staging, experts)
    return routed, handoff


def _register(in_ram: Weights, resources: ExitStack, on_note: Callable[[str], None]) -> None:
    """Let the GPU read the experts where they lie, as far as the driver goes along."""
    address, num_bytes = in_ram.span
    done = register(address, num_bytes)
    resources.callback(unregister, address, done.num_bytes)
    if done.error:
        on_note(
            text(
                "the driver lets the GPU read {done} of {total} GiB of weights in RAM "
                "(CUDA error {error}): prompts are slower",
                done=gib(done.num_bytes),
                total=gib(num_bytes),
                error=done.error,
            )
        )
