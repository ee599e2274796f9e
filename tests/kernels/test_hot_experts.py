"""Copies of some experts in GPU memory change who computes, not what comes out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from ktops_engine.bench.layer import ExpertLayer
from ktops_engine.bench.shapes import LayerShape
from ktops_engine.gguf import QuantType
from ktops_engine.kernels.routing import Routing
from ktops_engine.moe.cpu_experts import CpuExperts
from ktops_engine.moe.expert_split import Rates
from ktops_engine.moe.expert_stream import ExpertStream
from ktops_engine.moe.gpu_experts import expert_bytes
from ktops_engine.moe.handoff import Handoff
from ktops_engine.moe.hot_experts import HotExperts, copy_hot_experts
from ktops_engine.moe.ram_experts import RamExperts
from ktops_engine.moe.streamed_experts import StreamedExperts
from ktops_engine.native.build import BuildInfo
from ktops_engine.native.load import Native, Pool, load_native

SHAPE = LayerShape(128, 128, 6, 2, QuantType.Q8_0, QuantType.Q5_0)
# Products of bfloat16; the interpreter cuts off what the GPU rounds.
TOLERANCE = 2e-2
ALL_ON_CPU = Rates(stream=1.0, gpu_flops=1e15, cpu_bytes=1e12, cpu_flops=1e15)
ALL_STREAMED = Rates(stream=1e12, gpu_flops=1e15, cpu_bytes=1.0, cpu_flops=1.0)


@dataclass
class Engine:
    native: Native
    pool: Pool
    layer: ExpertLayer
    device: torch.device

    @property
    def matrices(self):
        return self.layer.gate, self.layer.up, self.layer.down

    @property
    def expert_bytes(self) -> int:
        return sum(map(expert_bytes, self.matrices))

    def copies(self, experts: list[int]) -> HotExperts | None:
        return copy_hot_experts({0: self.matrices}, {0: experts}, self.device).get(0)

    def on_cpu(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return CpuExperts(self.pool, *self.matrices)(x.float().cpu(), ids.cpu(), weights.cpu())


@pytest.fixture
def engine(native_build: BuildInfo, device: str) -> Iterator[Engine]:
    native = load_native(native_build)
    pool = native.create_pool([0, 0])
    with ExpertLayer(native, pool, SHAPE) as layer:
        yield Engine(native, pool, layer, torch.device(device))
    pool.close()


@pytest.fixture
def handoff(engine: Engine) -> Handoff:
    sizes = SHAPE.hidden_size, SHAPE.num_experts_per_tok
    return Handoff(engine.native, engine.pool, [engine.matrices], *sizes, engine.device)


@pytest.fixture
def stream(engine: Engine) -> Iterator[ExpertStream]:
    stream = ExpertStream(
        engine.pool, engine.device, engine.expert_bytes, group_experts=2, ahead_experts=3
    )
    yield stream
    stream.close()


def tokens(device: torch.device, count: int) -> Routing:
    x = torch.randn(count, SHAPE.hidden_size).to(device, torch.bfloat16)
    ids = torch.rand(count, SHAPE.num_experts).argsort(dim=1)[:, : SHAPE.num_experts_per_tok]
    return Routing(x, ids.to(device, torch.int32), torch.rand(ids.shape).to(device))


def relative(y: torch.Tensor, reference: torch.Tensor) -> float:
    return float((y.cpu() - reference).norm() / reference.norm())


@pytest.mark.parametrize(
    ("num_tokens", "num_hot"),
    [(1, 3), (2, 4), *(pytest.param(16, n, marks=pytest.mark.gpu) for n in (1, 4, 6))],
)
def test_the_cpu_reads_only_what_has_no_copy_and_the_sum_is_the_same(
    engine: Engine, handoff: Handoff, stream: ExpertStream, num_tokens: int, num_hot: int
) -> None:
    chosen = random.sample(range(SHAPE.num_experts), num_hot)
    hot = engine.copies(chosen)
    experts = RamExperts(0, handoff, StreamedExperts(stream, *engine.matrices, hot), hot)
    x, ids, weights = tokens(engine.device, num_tokens)
    y = torch.ones(x.shape, device=engine.device)
    done: list[int] = []
    experts.decode(y, Routing(x, ids, weights), lambda: done.append(1), is_captured=False)
    handoff.check()
    assert done == [1]
    assert relative(y - 1, engine.on_cpu(x, ids, weights)) < TOLERANCE
    left = set(ids.flatten().tolist()) - set(chosen)
    assert handoff.traffic.num_bytes == len(left) * engine.expert_bytes


@pytest.mark.parametrize("rates", [ALL_ON_CPU, ALL_STREAMED], ids=["cpu", "streamed"])
@pytest.mark.parametrize("num_hot", [2, 6])
def test_prompts_use_the_copies_beside_what_is_streamed(
    engine: Engine, stream: ExpertStream, rates: Rates, num_hot: int
) -> None:
    stream.rates = rates
    chosen = random.sample(range(SHAPE.num_experts), num_hot)
    hot = engine.copies(chosen)
    layers = [StreamedExperts(stream, *engine.matrices, hot) for _ in range(2)]
    for experts in (*layers, *layers):
        call = tokens(engine.device, 20)
        assert relative(experts(call), engine.on_cpu(*call)) < TOLERANCE
    stats = stream.stats
    assert stats.hot == 4 * num_hot
    assert stats.hot + stats.ahead + stats.streamed + stats.cpu == 4 * SHAPE.num_experts
    # What has a copy is not brought ahead as well.
    assert stats.ahead == (3 * min(3, 6 - num_hot) if rates is ALL_STREAMED else 0)


def test_copies_of_several_layers_are_those_that_were_chosen(engine: Engine) -> None:
    chosen = {3: [5, 0], 4: [], 7: [2]}
    layers = dict.fromkeys(chosen, engine.matrices)
    copies = copy_hot_experts(layers, chosen, engine.device)
    assert set(copies) == {3, 7}
    for index, hot in copies.items():
        assert hot.slot_of == {expert: slot for slot, expert in enumerate(chosen[index])}
        assert hot.slots.tolist() == [hot.slot_of.get(e, -1) for e in range(SHAPE.num_experts)]
        assert hot.matrices.down.num_experts == len(chosen[index])
    assert engine.copies([]) is None
