"""How fast a placement reads a prompt: a function of the prompt's length.

Every chunk of a prompt needs its experts once, however many tokens want them, so short prompts are
slow by the token and long ones fast, until attention's share, which grows with the square, shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ktops_engine.machine import MachineFacts
from ktops_engine.model_config import ModelConfig
from ktops_engine.plan import rates
from ktops_engine.plan.flops import score_flops, token_flops
from ktops_engine.plan.model_bytes import ModelFacts, Part
from ktops_engine.plan.resources import (
    HIGH,
    LOW,
    Resource,
    cpu_flops,
    gpu_flops,
    ram_rate,
    vram_rate,
)
from ktops_engine.plan.shares import Placement


@dataclass(frozen=True)
class PromptPrediction:
    """Tokens a second of a prompt of `num_tokens`, (low, high), and what limits the high end."""

    num_tokens: int
    tokens_per_s: rates.Range
    limited_by: Resource


@dataclass(frozen=True)
class _Work:
    """Seconds of a chunk, and what they are spent on."""

    seconds: float
    resource: Resource


def prompt_speed(
    placement: Placement, facts: ModelFacts, machine: MachineFacts, num_tokens: int
) -> PromptPrediction:
    """The speed of one prompt of `num_tokens`; all rates that `placement` depends on are known."""
    low, high = (_prompt_seconds(placement, facts, machine, num_tokens, end) for end in (LOW, HIGH))
    return PromptPrediction(
        num_tokens,
        (num_tokens / sum(low.values()), num_tokens / sum(high.values())),
        max(high, key=lambda name: high[name]),
    )


def _prompt_seconds(
    placement: Placement, facts: ModelFacts, machine: MachineFacts, num_tokens: int, end: int
) -> dict[Resource, float]:
    """Seconds by what they are spent on: chunk by chunk, then the scores of attention."""
    seconds = dict.fromkeys(Resource, 0.0)
    whole, rest = divmod(num_tokens, placement.prefill_chunk)
    for count, tokens in ((whole, placement.prefill_chunk), (1, rest)):
        if count and tokens:
            for work in _chunk(placement, facts, machine, tokens, end):
                seconds[work.resource] += count * work.seconds
    scores = score_flops(facts.config, num_tokens)
    on_gpu = placement.gpu_layers / facts.config.num_hidden_layers
    if on_gpu < 1:
        seconds[Resource.CPU_COMPUTE] += scores * (1 - on_gpu) / cpu_flops(placement, machine, end)
    if on_gpu:
        rate = gpu_flops(machine.gpus[0], rates.GPU_SCORES_SHARE, end)
        seconds[Resource.GPU_COMPUTE] += scores * on_gpu / rate
    return seconds


def _chunk(
    placement: Placement, facts: ModelFacts, machine: MachineFacts, num_tokens: int, end: int
) -> list[_Work]:
    """What a chunk of `num_tokens` waits for, one after the other: what every token uses, then the
    experts, because a layer's experts are known when its attention is done."""
    always, routed = (num_tokens * flops for flops in token_flops(facts.config))
    ram = placement.ram
    on_gpu = placement.gpu_layers / facts.config.num_hidden_layers
    wanted = _wanted_share(facts.config, num_tokens, end)
    by_cpu, divided = _routed_bytes(placement, facts)
    per_byte = routed / max(1, facts.bytes.routed_experts)
    cpu_bytes: float = ram.weights_bytes - ram.routed_bytes - ram.parts.get(Part.TOKEN_EMBEDDING, 0)
    cpu_bytes += wanted * by_cpu
    work = []
    if cpu_bytes:
        flops = always * (1 - on_gpu) + per_byte * by_cpu
        work.append(_on_cpu(placement, machine, end, flops, cpu_bytes))
    if placement.gpus:
        work += _on_gpus(placement, machine, end, always * on_gpu)
        work += _in_vram(placement, machine, end, per_byte, wanted)
    if divided > placement.hot_bytes:
        hot = per_byte * placement.hot_share * facts.bytes.routed_experts
        left = max(0.0, per_byte * divided - hot), wanted * (divided - placement.hot_bytes)
        work.append(_divided(placement, machine, end, *left, hot))
    return work


def _routed_bytes(placement: Placement, facts: ModelFacts) -> tuple[int, int]:
    """Bytes of routed experts in RAM that the CPU computes alone, being of layers that are its own,
    and of those that it shares with the GPU."""
    in_ram = placement.ram.routed_bytes
    layers = facts.bytes.layers[placement.gpu_layers :]
    by_cpu = min(in_ram, sum(layer.routed_experts for layer in layers))
    return by_cpu, in_ram - by_cpu


def _wanted_share(model: ModelConfig, num_tokens: int, end: int) -> float:
    """The share of the experts that any of `num_tokens` is sent to."""
    left_out = 1 - model.num_experts_per_tok / model.n_routed_experts
    return (1 - left_out**num_tokens) * rates.WANTED_EXPERTS_SHARE[end]


def _on_cpu(
    placement: Placement, machine: MachineFacts, end: int, flops: float, num_bytes: float
) -> _Work:
    """`flops` on the CPU, which reads `num_bytes` of weights for them."""
    compute = flops / cpu_flops(placement, machine, end)
    read = num_bytes / ram_rate(machine, end) if num_bytes else 0.0
    return _Work(
        compute + read, Resource.CPU_COMPUTE if compute >= read else Resource.RAM_BANDWIDTH
    )


def _on_gpus(placement: Placement, machine: MachineFacts, end: int, flops: float) -> list[_Work]:
    """`flops` of what every token uses on the first GPU, and the unpacking of its weights."""
    first = placement.gpus[0]
    unpacked = rates.UNPACKING_READS * (first.weights_bytes - first.routed_bytes)
    gpu = machine.gpus[first.gpu_index]
    rate = vram_rate(gpu, rates.VRAM_SHARE, end)
    computed = flops / gpu_flops(gpu, rates.GPU_FLOPS_SHARE, end)
    return [_Work(computed, Resource.GPU_COMPUTE), _Work(unpacked / rate, Resource.VRAM_BANDWIDTH)]


def _in_vram(
    placement: Placement, machine: MachineFacts, end: int, per_byte: float, wanted: float
) -> Iterator[_Work]:
    """The experts that lie on GPUs, of which a share is `wanted`, with `per_byte` operations for a
    byte: layer by layer, so one GPU at a time."""
    for share in placement.gpus:
        gpu, held = machine.gpus[share.gpu_index], share.routed_bytes
        read = wanted * held / vram_rate(gpu, rates.VRAM_SHARE, end)
        computed = per_byte * held / gpu_flops(gpu, rates.GPU_EXPERT_FLOPS_SHARE, end)
        if read > computed:
            yield _Work(read, Resource.VRAM_BANDWIDTH)
        else:
            yield _Work(computed, Resource.GPU_COMPUTE)


def _divided(
    placement: Placement,
    machine: MachineFacts,
    end: int,
    flops: float,
    num_bytes: float,
    hot_flops: float,
) -> _Work:
    """`flops` of experts in RAM, streamed to the first GPU and on the CPU, so divided that both
    finish together. Both of them read the RAM. The GPU has `hot_flops` of copies to do besides."""
    on_cpu = _on_cpu(placement, machine, end, flops, num_bytes)
    both = _together([on_cpu, _streamed(machine, end, flops + hot_flops, num_bytes)])
    read = num_bytes / ram_rate(machine, end)
    return both if both.seconds >= read else _Work(read, Resource.RAM_BANDWIDTH)


def _streamed(machine: MachineFacts, end: int, flops: float, num_bytes: float) -> _Work:
    """Experts brought to the first GPU, while those that came before are computed."""
    brought = num_bytes / ((machine.gpus[0].pcie_bandwidth or 0.0) * rates.PCIE_SHARE[end])
    computed = flops / gpu_flops(machine.gpus[0], rates.GPU_EXPERT_FLOPS_SHARE, end)
    return _Work(
        max(brought, computed), Resource.PCIE if brought >= computed else Resource.GPU_COMPUTE
    )


def _together(ways: Sequence[_Work]) -> _Work:
    """Work divided among all ways so that they finish together; the fastest limits most."""
    fastest = min(ways, key=lambda way: way.seconds)
    return _Work(1 / sum(1 / way.seconds for way in ways), fastest.resource)
