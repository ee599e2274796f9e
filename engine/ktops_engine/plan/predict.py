"""How fast a placement can be: bytes and operations a token needs, over what the machine gives.

The formulas stand in docs/plan.md, the rates in `rates`. A prediction is a range between what
published engines reach of a machine and what a careful one could; it promises nothing about this
version, except through the rates that were measured with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ktops_engine.machine import MachineFacts
from ktops_engine.model_config import ModelConfig
from ktops_engine.plan import rates
from ktops_engine.plan.model_bytes import ModelFacts, Part
from ktops_engine.plan.rates import Range
from ktops_engine.plan.shares import Placement

LOW, HIGH = 0, 1


class Resource(StrEnum):
    """What can limit the speed of a model that fits."""

    RAM_BANDWIDTH = "RAM bandwidth"
    CPU_COMPUTE = "CPU compute"
    VRAM_BANDWIDTH = "VRAM bandwidth"
    GPU_COMPUTE = "GPU compute"
    PCIE = "PCIe"
    HANDOFF = "GPU-CPU handoff"


@dataclass(frozen=True)
class Prediction:
    """Tokens a second for one request, (low, high), and what limits the high end of each.

    Prefill is for a prompt of one chunk or more (`Placement.prefill_chunk` tokens).
    """

    decode_tokens_per_s: Range
    prefill_tokens_per_s: Range
    limited_by: Resource
    prefill_limited_by: Resource


@dataclass(frozen=True)
class Unknown:
    """Why there is no prediction: the rates of these resources are not known."""

    resources: tuple[Resource, ...]


def predict(placement: Placement, facts: ModelFacts, machine: MachineFacts) -> Prediction | Unknown:
    """The speed of `placement` on `machine`, for one request.

    Unknown when a rate is missing that the placement depends on. Capacity is not looked at.
    """
    if missing := _missing(placement, machine):
        return Unknown(missing)
    decode = [_decode_seconds(placement, facts, machine, end) for end in (LOW, HIGH)]
    prefill = [_prefill_seconds(placement, facts, machine, end) for end in (LOW, HIGH)]
    return Prediction(
        decode_tokens_per_s=(1 / sum(decode[LOW].values()), 1 / sum(decode[HIGH].values())),
        prefill_tokens_per_s=(1 / sum(prefill[LOW].values()), 1 / sum(prefill[HIGH].values())),
        limited_by=_largest(decode[HIGH]),
        prefill_limited_by=_largest(prefill[HIGH]),
    )


def token_flops(model: ModelConfig) -> tuple[float, float]:
    """Floating-point operations of one token: outside the routed experts, and inside them."""
    hidden, heads, rank = model.hidden_size, model.num_attention_heads, model.kv_lora_rank
    queries = heads * model.qk_head_dim
    lora = model.q_lora_rank
    attention = hidden * queries if lora is None else lora * (hidden + queries)
    attention += hidden * (rank + model.qk_rope_head_dim)
    attention += rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
    attention += heads * model.v_head_dim * hidden
    dense = model.first_k_dense_replace
    expert_layers = model.num_hidden_layers - dense
    expert = 3 * hidden * model.moe_intermediate_size
    always = model.num_hidden_layers * attention + dense * 3 * hidden * model.intermediate_size
    always += expert_layers * (model.n_shared_experts * expert + hidden * model.n_routed_experts)
    return 2.0 * always, 2.0 * expert_layers * model.num_experts_per_tok * expert


def _missing(placement: Placement, machine: MachineFacts) -> tuple[Resource, ...]:
    missing = []
    read = placement.ram.weights_bytes - placement.ram.parts.get(Part.TOKEN_EMBEDDING, 0)
    if read and machine.read_bandwidth is None:
        missing.append(Resource.RAM_BANDWIDTH)
    for share in placement.gpus:
        gpu = machine.gpus[int(share.device.removeprefix("gpu"))]
        known = {
            Resource.VRAM_BANDWIDTH: gpu.read_bandwidth,
            Resource.GPU_COMPUTE: gpu.bf16_flops,
            Resource.PCIE: gpu.pcie_bandwidth,
        }
        missing += [name for name, value in known.items() if value is None]
    return tuple(dict.fromkeys(missing))


def _decode_seconds(
    placement: Placement, facts: ModelFacts, machine: MachineFacts, end: int
) -> dict[Resource, float]:
    """Seconds of one token by what they are spent on. CPU and GPU take turns: each layer needs the
    one before. The low end reads a full cache, the high end an empty one."""
    model, ram = facts.config, placement.ram
    chosen = model.num_experts_per_tok / model.n_routed_experts
    cpu_bytes: float = ram.weights_bytes - ram.parts.get(Part.TOKEN_EMBEDDING, 0)
    cpu_bytes += ram.parts.get(Part.KV_CACHE, 0) if end == LOW else 0
    cpu_bytes -= (1 - chosen) * ram.routed_bytes
    seconds: dict[Resource, float] = {}
    if cpu_bytes > 0:
        memory, compute = _cpu_read_rates(placement, machine, end)
        name = Resource.RAM_BANDWIDTH if memory <= compute else Resource.CPU_COMPUTE
        cpu_layers = model.num_hidden_layers - placement.gpu_layers
        seconds[name] = cpu_bytes / min(memory, compute)
        seconds[name] += cpu_layers * rates.CPU_LAYER_SECONDS[end]
    on_gpu = 0.0
    for share in placement.gpus:
        gpu = machine.gpus[int(share.device.removeprefix("gpu"))]
        gpu_bytes = share.weights_bytes - (1 - chosen) * share.routed_bytes
        gpu_bytes += share.parts.get(Part.KV_CACHE, 0) if end == LOW else 0
        on_gpu += gpu_bytes / ((gpu.read_bandwidth or 0.0) * rates.VRAM_SHARE[end])
    if placement.gpus:
        layers = model.num_hidden_layers
        away = layers - model.first_k_dense_replace - placement.gpu_expert_layers
        hops = placement.gpu_expert_layers if len(placement.gpus) > 1 else 0
        on_gpu += placement.gpu_layers * rates.GPU_LAYER_SECONDS[end]
        seconds[Resource.VRAM_BANDWIDTH] = on_gpu + hops * rates.GPU_HOP_SECONDS[end]
        seconds[Resource.HANDOFF] = away * rates.HANDOFF_SECONDS[end]
    return seconds


@dataclass(frozen=True)
class _Work:
    """Seconds of one prompt token, and what they are spent on."""

    seconds: float
    resource: Resource


def _prefill_seconds(
    placement: Placement, facts: ModelFacts, machine: MachineFacts, end: int
) -> dict[Resource, float]:
    """Seconds of one prompt token by what they are spent on: what every token uses, then the
    experts, because a layer's experts are known when its attention is done.

    Experts in RAM are streamed to the GPU or computed by the CPU (low end: by whoever is faster),
    or divided so that both finish together (high end: their token rates add up).
    """
    always, routed = token_flops(facts.config)
    ram, model_bytes = placement.ram, facts.bytes
    on_gpu = placement.gpu_layers / facts.config.num_hidden_layers
    in_ram = ram.routed_bytes / max(1, model_bytes.routed_experts)
    other_bytes = ram.weights_bytes - ram.routed_bytes - ram.parts.get(Part.TOKEN_EMBEDDING, 0)
    work = [_on_cpu(placement, machine, end, always * (1 - on_gpu), other_bytes)]
    if placement.gpus:
        flops, expert_flops = _gpu_flops(machine, end)
        there = always * on_gpu / flops + routed * (1 - in_ram) / expert_flops
        work.append(_Work(there, Resource.GPU_COMPUTE))
    if ram.routed_bytes:
        ways = [_on_cpu(placement, machine, end, routed * in_ram, ram.routed_bytes)]
        if placement.gpus:
            ways.append(_streamed(placement, machine, end, routed * in_ram))
        work.append(_together(ways) if end == HIGH else min(ways, key=lambda way: way.seconds))
    seconds: dict[Resource, float] = {}
    for part in work:
        seconds[part.resource] = seconds.get(part.resource, 0.0) + part.seconds
    return seconds


def _on_cpu(
    placement: Placement, machine: MachineFacts, end: int, flops: float, num_bytes: int
) -> _Work:
    """`flops` of a token on the CPU, which reads `num_bytes` of weights once for a chunk."""
    compute = flops / _cpu_flops(placement, machine, end)
    memory, _ = _cpu_read_rates(placement, machine, end)
    read = num_bytes / placement.prefill_chunk / memory if num_bytes else 0.0
    return _Work(
        compute + read, Resource.CPU_COMPUTE if compute >= read else Resource.RAM_BANDWIDTH
    )


def _streamed(placement: Placement, machine: MachineFacts, end: int, flops: float) -> _Work:
    """The experts in RAM on the first GPU: all of them go there once for a chunk, while those that
    came before are computed."""
    pcie = (machine.gpus[0].pcie_bandwidth or 0.0) * rates.PCIE_SHARE[end]
    brought = placement.ram.routed_bytes / placement.prefill_chunk / pcie
    _, expert_flops = _gpu_flops(machine, end)
    computed = flops / expert_flops
    return _Work(
        max(brought, computed), Resource.PCIE if brought >= computed else Resource.GPU_COMPUTE
    )


def _together(ways: Sequence[_Work]) -> _Work:
    """Work divided among all ways so that they finish together; the fastest limits most."""
    fastest = min(ways, key=lambda way: way.seconds)
    return _Work(1 / sum(1 / way.seconds for way in ways), fastest.resource)


def _gpu_flops(machine: MachineFacts, end: int) -> tuple[float, float]:
    """FLOP/s of the first GPU for what every token uses, and for routed experts."""
    peak = machine.gpus[0].bf16_flops or 0.0
    return peak * rates.GPU_FLOPS_SHARE[end], peak * rates.GPU_EXPERT_FLOPS_SHARE[end]


def _cpu_read_rates(placement: Placement, machine: MachineFacts, end: int) -> tuple[float, float]:
    """Bytes of weights a second that memory delivers, and that the threads get through."""
    share = rates.MEASURED_RAM_SHARE if machine.bandwidth_is_measured else rates.DATASHEET_RAM_SHARE
    memory = (machine.read_bandwidth or 0.0) * share[end]
    return memory, placement.num_threads * rates.CORE_READ_BYTES[_isa(machine)][end]


def _cpu_flops(placement: Placement, machine: MachineFacts, end: int) -> float:
    return placement.num_threads * rates.CORE_FLOPS[_isa(machine)][end]


def _isa(machine: MachineFacts) -> str:
    return machine.isa or rates.UNKNOWN_ISA


def _largest(seconds: dict[Resource, float]) -> Resource:
    return max(seconds, key=lambda name: seconds[name])
