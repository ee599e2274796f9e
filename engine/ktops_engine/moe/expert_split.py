"""Which experts of a layer a prompt takes on the GPU and which on the CPU, so that both finish
together. Pure.

Streaming an expert to the GPU costs the same however many tokens want it; on the CPU the cost grows
with them. So the GPU takes the most crowded ones, and one cut through the experts in that order is
best. All experts on one side are cuts too: few tokens stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

SMOOTHING = 0.25  # weight of a new measurement
STREAM_START = 1e-3  # seconds until the first streamed expert is there and its kernels run
LARGEST_CORRECTION = 4.0  # of one measurement: a hiccup must not turn the plan over


@dataclass(frozen=True)
class ExpertCost:
    """Bytes of an expert's matrices, and operations a token needs there."""

    num_bytes: int
    flops: int


@dataclass(frozen=True)
class Rates:
    """What both sides do in a second, working at the same time. `stream`: bytes from RAM to the
    GPU; `cpu_bytes`: bytes of weights the CPU reads."""

    stream: float
    gpu_flops: float
    cpu_bytes: float
    cpu_flops: float


@dataclass(frozen=True)
class Split:
    """Experts with tokens, the most crowded first. `resident` ones lie in GPU memory, `streamed`
    ones are brought there. Seconds are predictions."""

    resident: tuple[int, ...]
    streamed: tuple[int, ...]
    cpu: tuple[int, ...]
    gpu_seconds: float
    cpu_seconds: float


def split_experts(
    counts: Sequence[int],
    cost: ExpertCost,
    rates: Rates,
    resident: Set[int] = frozenset(),
    *,
    can_stream: bool = True,
) -> Split:
    """Cut the experts that have tokens; `counts[e]` tokens go to expert `e`. What is not
    `resident` goes to the CPU when it cannot be streamed.

    The cut whose slower side is fastest wins; of equal ones, that which streams least.
    """
    crowded = sorted((e for e in range(len(counts)) if counts[e]), key=lambda e: (-counts[e], e))
    on_gpu = [e for e in crowded if e in resident]
    others = [e for e in crowded if e not in resident]
    gpu_seconds = sum(cost.flops * counts[e] for e in on_gpu) / rates.gpu_flops
    cpu_seconds = sum(_cpu_seconds(counts[e], cost, rates) for e in others)
    best = Split(tuple(on_gpu), (), tuple(others), gpu_seconds, cpu_seconds)
    gpu_seconds += STREAM_START
    for cut, expert in enumerate(others if can_stream else (), start=1):
        gpu_seconds += max(
            cost.num_bytes / rates.stream, cost.flops * counts[expert] / rates.gpu_flops
        )
        cpu_seconds -= _cpu_seconds(counts[expert], cost, rates)
        if max(gpu_seconds, cpu_seconds) < max(best.gpu_seconds, best.cpu_seconds):
            streamed, rest = tuple(others[:cut]), tuple(others[cut:])
            best = Split(tuple(on_gpu), streamed, rest, gpu_seconds, max(cpu_seconds, 0.0))
    return best


def corrected(rates: Rates, split: Split, gpu_seconds: float, cpu_seconds: float) -> Rates:
    """Rates after a layer that took `gpu_seconds` and `cpu_seconds`; a side that did nothing worth
    measuring leaves its own as they are."""
    if split.streamed:
        factor = _factor(split.gpu_seconds, gpu_seconds)
        rates = replace(rates, stream=rates.stream * factor)
    if split.cpu:
        factor = _factor(split.cpu_seconds, cpu_seconds)
        rates = replace(
            rates, cpu_bytes=rates.cpu_bytes * factor, cpu_flops=rates.cpu_flops * factor
        )
    return rates


def _cpu_seconds(count: int, cost: ExpertCost, rates: Rates) -> float:
    return cost.num_bytes / rates.cpu_bytes + cost.flops * count / rates.cpu_flops


def _factor(predicted: float, measured: float) -> float:
    """What a rate is multiplied with: part of the way from what was predicted to what was seen."""
    if predicted <= 0 or measured <= 0:
        return 1.0
    seen = min(max(predicted / measured, 1 / LARGEST_CORRECTION), LARGEST_CORRECTION)
    return 1.0 + SMOOTHING * (seen - 1.0)
