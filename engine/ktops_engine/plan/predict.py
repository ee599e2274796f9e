"""How fast a placement can be: bytes and operations a token needs, over what the machine gives.

The formulas stand in docs/plan.md, the rates in `rates`. A prediction is a range between what
published engines reach of a machine and what a careful one could; it promises nothing about this
version, except through the rates that were measured with it.
"""

from __future__ import annotations

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
        prefill_tokens_per_s=(1 / max(prefill[LOW].values()), 1 / max(prefill[HIGH].values())),
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


def _prefill_seconds(
    placement: Placement, facts: ModelFacts, machine: MachineFacts, end: int
) -> dict[Resource, float]:
    """Seconds of one prompt token on each resource; they overlap, so the longest counts.

    With a GPU, experts in RAM are streamed to it and the CPU computes some meanwhile, so that both
    finish together: their token rates add up. At the low end, nothing is computed meanwhile.
    """
    always, routed = token_flops(facts.config)
    cpu_share = 1 - placement.gpu_layers / facts.config.num_hidden_layers
    cpu_flops = _cpu_flops(placement, machine, end)
    if not placement.gpus:
        memory, _ = _cpu_read_rates(placement, machine, end)
        return {
            Resource.CPU_COMPUTE: (always + routed) / cpu_flops,
            Resource.RAM_BANDWIDTH: placement.ram.weights_bytes / placement.prefill_chunk / memory,
        }
    gpu = machine.gpus[0]
    in_ram = placement.ram.routed_bytes / max(1, facts.bytes.routed_experts)
    gpu_flops = (gpu.bf16_flops or 0.0) * rates.GPU_FLOPS_SHARE[end]
    seconds = {Resource.GPU_COMPUTE: (always * (1 - cpu_share) + routed) / gpu_flops}
    if cpu_share:
        seconds[Resource.CPU_COMPUTE] = always * cpu_share / cpu_flops
    if placement.ram.routed_bytes:
        pcie = (gpu.pcie_bandwidth or 0.0) * rates.PCIE_SHARE[end]
        streamed = placement.prefill_chunk * pcie / placement.ram.routed_bytes
        computed = cpu_flops / (routed * in_ram) if end == HIGH else 0.0
        seconds[Resource.PCIE if streamed >= computed else Resource.CPU_COMPUTE] = max(
            1 / (streamed + computed), seconds.get(Resource.CPU_COMPUTE, 0.0)
        )
    return seconds


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
