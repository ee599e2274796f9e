"""What the engine counts: waiting time, and the parts of expert weights it reads."""

from __future__ import annotations

import torch

from ktops_engine.gguf import QuantType
from ktops_engine.kv_cache import BlockPool
from ktops_engine.moe.cpu_experts import CpuExperts
from ktops_engine.native.load import Matrix
from ktops_engine.scheduler import Scheduler, SchedulerLimits
from ktops_engine.stats import EngineStats, ExpertTraffic, StepCounts
from ktops_engine.types import Request, Sampled, SamplingParams

LIMITS = SchedulerLimits(max_model_len=64, prefill_chunk=8, max_running=1, max_waiting=4)


def test_an_output_says_how_long_its_request_waited():
    now = 100.0
    scheduler = Scheduler(BlockPool(4, 16), LIMITS, [0], clock=lambda: now)
    for name in ("first", "second"):
        scheduler.add(Request(name, [1, 2], SamplingParams(max_tokens=1)))
    waited = []
    for seconds in (2.0, 5.0):
        now += seconds
        outputs = scheduler.update(scheduler.next_batch(), [Sampled(3)])
        waited += [output.queue_seconds for output in outputs]
    assert waited == [2.0, 7.0]


class NoPool:
    """Computes nothing."""

    def moe_forward(self, *arguments: object) -> None:
        pass


def experts() -> CpuExperts:
    gate, up = (Matrix(1, QuantType.Q8_0, 64, 32, num_experts=4) for _ in range(2))
    down = Matrix(1, QuantType.F32, 32, 64, num_experts=4)
    return CpuExperts(NoPool(), gate, up, down)


ONE_EXPERT = 2 * 64 * 34 + 32 * 64 * 4  # a row of 32 weights is one block of 34 bytes


def forward(layer: CpuExperts, ids: list[list[int]]) -> None:
    chosen = torch.tensor(ids, dtype=torch.int32)
    layer(torch.zeros(len(ids), 32), chosen, torch.zeros(chosen.shape))


def test_every_chosen_expert_is_counted_once_a_call():
    layer = experts()
    forward(layer, [[0, 3]])
    assert layer.traffic.num_bytes == 2 * ONE_EXPERT
    forward(layer, [[0, 3], [3, 1], [0, -1]])
    assert layer.traffic.num_bytes == 5 * ONE_EXPERT
    assert layer.traffic.seconds > 0


def test_traffic_of_layers_adds_up():
    assert ExpertTraffic(1, 0.5) + ExpertTraffic(2, 0.25) == ExpertTraffic(3, 0.75)


def test_a_cache_without_blocks_is_not_used():
    assert EngineStats(0, 0, 0, 0, StepCounts(), ExpertTraffic()).kv_cache_usage == 0.0
    assert EngineStats(1, 0, 8, 6, StepCounts(), ExpertTraffic()).kv_cache_usage == 0.25
