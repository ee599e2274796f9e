"""How fast a placement can be: bytes and operations a token needs, over what the machine gives.

The formulas stand in docs/plan.md, the rates in `rates`. A prediction is a range between what
engines reach of a machine today, this version where it was measured, and what a careful one could.
"""

from __future__ import annotations

from dataclasses import dataclass

from ktops_engine.machine import MachineFacts
from ktops_engine.plan import rates
from ktops_engine.plan.model_bytes import ModelFacts, Part
from ktops_engine.plan.predict_prompt import PromptPrediction, prompt_speed
from ktops_engine.plan.rates import Range
from ktops_engine.plan.resources import (
    HIGH,
    LOW,
    Resource,
    ram_rate,
    threads_read_rate,
    vram_rate,
)
from ktops_engine.plan.shares import Placement

# Prompts that are shown, and a whole chunk of larger ones.
PROMPT_LENGTHS = (512, 4096)


@dataclass(frozen=True)
class Prediction:
    """Tokens a second for one request, (low, high), and what limits the high end of each.

    `prompts` are of several lengths, shortest first; the longest is a chunk or more.
    """

    decode_tokens_per_s: Range
    limited_by: Resource
    prompts: tuple[PromptPrediction, ...]

    @property
    def prefill_tokens_per_s(self) -> Range:
        """Of the longest prompt."""
        return self.prompts[-1].tokens_per_s

    @property
    def prefill_limited_by(self) -> Resource:
        return self.prompts[-1].limited_by


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
    low, high = (_decode_seconds(placement, facts, machine, end) for end in (LOW, HIGH))
    lengths = {
        min(length, placement.ctx_size) for length in (*PROMPT_LENGTHS, placement.prefill_chunk)
    }
    return Prediction(
        decode_tokens_per_s=(1 / sum(low.values()), 1 / sum(high.values())),
        limited_by=max(high, key=lambda name: high[name]),
        prompts=tuple(prompt_speed(placement, facts, machine, n) for n in sorted(lengths)),
    )


def predict_prompt(
    placement: Placement, facts: ModelFacts, machine: MachineFacts, num_tokens: int
) -> PromptPrediction | Unknown:
    """The same for one prompt of `num_tokens`, 1 at least."""
    if missing := _missing(placement, machine):
        return Unknown(missing)
    return prompt_speed(placement, facts, machine, num_tokens)


def _missing(placement: Placement, machine: MachineFacts) -> tuple[Resource, ...]:
    missing = []
    read = placement.ram.weights_bytes - placement.ram.parts.get(Part.TOKEN_EMBEDDING, 0)
    if read and machine.read_bandwidth is None:
        missing.append(Resource.RAM_BANDWIDTH)
    for share in placement.gpus:
        gpu = machine.gpus[share.gpu_index]
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
    hot_bytes = placement.hot_share * chosen * facts.bytes.routed_experts
    cpu_bytes -= (1 - chosen) * ram.routed_bytes + hot_bytes
    seconds = dict.fromkeys(Resource, 0.0)
    if cpu_bytes > 0:
        memory = ram_rate(machine, end)
        compute = threads_read_rate(placement, machine, end)
        name = Resource.RAM_BANDWIDTH if memory <= compute else Resource.CPU_COMPUTE
        cpu_layers = model.num_hidden_layers - placement.gpu_layers
        seconds[name] = cpu_bytes / min(memory, compute)
        seconds[name] += cpu_layers * rates.CPU_LAYER_SECONDS[end]
    for share in placement.gpus:
        gpu = machine.gpus[share.gpu_index]
        always: float = share.weights_bytes - share.routed_bytes
        always += share.parts.get(Part.KV_CACHE, 0) if end == LOW else 0
        on_gpu = always / vram_rate(gpu, rates.VRAM_SHARE, end)
        routed = chosen * share.routed_bytes
        # Copies are read while the CPU reads the others: at best that takes no time.
        routed += hot_bytes if end == LOW and share.hot_bytes else 0
        on_gpu += routed / vram_rate(gpu, rates.VRAM_EXPERTS_SHARE, end)
        seconds[Resource.VRAM_BANDWIDTH] += on_gpu
    if placement.gpus:
        there = max(0, placement.gpu_layers - model.first_k_dense_replace)
        away = max(0, there - placement.gpu_expert_layers)
        on_gpu = placement.gpu_layers * rates.GPU_LAYER_SECONDS[end] + rates.HOST_STEP_SECONDS[end]
        on_gpu += sum(placement.expert_layers_by_gpu[1:]) * rates.GPU_HOP_SECONDS[end]
        seconds[Resource.VRAM_BANDWIDTH] += on_gpu
        seconds[Resource.HANDOFF] = away * rates.HANDOFF_SECONDS[end]
    return seconds
