"""A prompt through GPU and CPU experts gives what the CPU alone gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from ktops_engine.bench.layer import ExpertLayer
from ktops_engine.bench.shapes import LayerShape
from ktops_engine.gguf import QuantType
from ktops_engine.kernels.routing import Routing
from ktops_engine.moe import host_memory
from ktops_engine.moe.cpu_experts import CpuExperts
from ktops_engine.moe.expert_split import Rates
from ktops_engine.moe.expert_stream import ExpertStream
from ktops_engine.moe.gpu_experts import expert_bytes
from ktops_engine.moe.streamed_experts import StreamedExperts
from ktops_engine.native.build import BuildInfo
from ktops_engine.native.load import Matrix, Pool, load_native

SHAPE = LayerShape(128, 128, 6, 2, QuantType.Q8_0, QuantType.Q5_0)
# Products of bfloat16; the interpreter cuts off what the GPU rounds.
TOLERANCE = 2e-2


@dataclass
class Engine:
    pool: Pool
    layer: ExpertLayer
    stream: ExpertStream

    def on_cpu(self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        experts = CpuExperts(self.pool, self.layer.gate, self.layer.up, self.layer.down)
        return experts(x.float().cpu(), ids.cpu(), weights.cpu())

    def streamed(self, *, is_last: bool = False) -> StreamedExperts:
        matrices = self.layer.gate, self.layer.up, self.layer.down
        return StreamedExperts(self.stream, *matrices, is_last=is_last)


@pytest.fixture
def engine(native_build: BuildInfo, device: str) -> Iterator[Engine]:
    native = load_native(native_build)
    pool = native.create_pool([0, 0])
    with ExpertLayer(native, pool, SHAPE) as layer:
        size = sum(map(expert_bytes, (layer.gate, layer.up, layer.down)))
        stream = ExpertStream(pool, torch.device(device), size, group_experts=2, ahead_experts=3)
        yield Engine(pool, layer, stream)
        stream.close()
    pool.close()


def prompt(device: str, num_tokens: int) -> Routing:
    x = torch.randn(num_tokens, SHAPE.hidden_size).to(device, torch.bfloat16)
    ids = torch.rand(num_tokens, SHAPE.num_experts).argsort(dim=1)[:, : SHAPE.num_experts_per_tok]
    return Routing(x, ids.to(device, torch.int32), torch.rand(ids.shape).to(device))


def relative(y: torch.Tensor, reference: torch.Tensor) -> float:
    return float((y.cpu() - reference).norm() / reference.norm())


ALL_ON_CPU = Rates(stream=1.0, gpu_flops=1e15, cpu_bytes=1e12, cpu_flops=1e15)
ALL_STREAMED = Rates(stream=1e12, gpu_flops=1e15, cpu_bytes=1.0, cpu_flops=1.0)
BOTH = Rates(stream=1e6, gpu_flops=1e15, cpu_bytes=1e6, cpu_flops=1e15)


@pytest.mark.parametrize(
    ("rates", "on_cpu"), [(ALL_ON_CPU, 6), (ALL_STREAMED, 0), (BOTH, 3)], ids=["cpu", "gpu", "both"]
)
def test_wherever_the_experts_are_computed_the_sum_is_the_same(
    engine: Engine, device: str, rates: Rates, on_cpu: int
) -> None:
    engine.stream.rates = rates
    x, ids, weights = prompt(device, 24)
    y = engine.streamed()(Routing(x, ids, weights))
    assert engine.stream.stats.cpu == on_cpu
    assert engine.stream.stats.streamed == 6 - on_cpu
    assert relative(y, engine.on_cpu(x, ids, weights)) < TOLERANCE


def test_experts_that_a_mask_leaves_out_add_nothing(engine: Engine, device: str) -> None:
    engine.stream.rates = BOTH
    x, ids, weights = prompt(device, 12)
    ids[::2] = -1
    y = engine.streamed()(Routing(x, ids, weights))
    assert y.cpu()[::2].abs().max() == 0
    assert relative(y, engine.on_cpu(x, ids, weights)) < TOLERANCE


def test_two_calls_in_a_row_do_not_disturb_each_other(engine: Engine, device: str) -> None:
    engine.stream.rates = ALL_STREAMED
    calls = [prompt(device, num_tokens) for num_tokens in (20, 7)]
    experts = engine.streamed()
    results = [experts(call) for call in calls]
    for call, y in zip(calls, results, strict=True):
        assert relative(y, engine.on_cpu(*call)) < TOLERANCE


def test_the_next_layers_experts_are_brought_ahead(engine: Engine, device: str) -> None:
    engine.stream.rates = ALL_STREAMED
    first, second = engine.streamed(), engine.streamed()
    calls = [prompt(device, 20) for _ in range(3)]
    results = [experts(call) for call, experts in zip(calls, (first, second, first), strict=True)]
    assert engine.stream.stats.ahead == 6
    assert engine.stream.stats.streamed == 18 - 6
    for call, y in zip(calls, results, strict=True):
        assert relative(y, engine.on_cpu(*call)) < TOLERANCE


def test_past_the_last_layer_the_first_ones_experts_are_brought_ahead(
    engine: Engine, device: str
) -> None:
    engine.stream.rates = ALL_STREAMED
    first, second, last = (engine.streamed(is_last=at == 2) for at in range(3))
    calls = [prompt(device, size) for size in (20, 20, 1, 20)]
    results = [layer(x) for layer, x in zip((first, second, last, first), calls, strict=True)]
    # Three of the second layer's and three of the first one's: those outlast the last layer.
    assert engine.stream.stats.ahead == 6
    assert engine.stream.stats.streamed == 3 * 6 + 2 - 6
    for call, y in zip(calls, results, strict=True):
        assert relative(y, engine.on_cpu(*call)) < TOLERANCE


def test_a_few_rows_of_the_last_layer_teach_no_rates(engine: Engine, device: str) -> None:
    engine.streamed(is_last=True)(prompt(device, 1))
    before = engine.stream.rates
    other = engine.streamed()
    other(prompt(device, 20))
    assert engine.stream.rates == before
    other(prompt(device, 20))
    assert engine.stream.rates != before


def test_what_is_to_be_done_meanwhile_is_queued_once(engine: Engine, device: str) -> None:
    x, ids, weights = prompt(device, 4)
    done: list[int] = []
    engine.streamed()(Routing(x, ids, weights), meanwhile=lambda: done.append(1))
    assert done == [1]


def test_types_without_a_gpu_kernel_stay_on_the_cpu(engine: Engine, device: str) -> None:
    hidden, intermediate, num = 96, 64, 3  # 96 columns are no whole stretches
    gate, up, down = (
        torch.randn(num, rows, cols) / cols**0.5
        for rows, cols in ((intermediate, hidden), (intermediate, hidden), (hidden, intermediate))
    )
    matrices = [
        Matrix(part.data_ptr(), QuantType.F32, part.shape[1], part.shape[2], num)
        for part in (gate, up, down)
    ]
    engine.stream.rates = ALL_STREAMED
    x = torch.randn(5, hidden).to(device, torch.bfloat16)
    ids = torch.randint(num, (5, 1)).to(device, torch.int32)
    weights = torch.rand(5, 1).to(device)
    y = StreamedExperts(engine.stream, *matrices)(Routing(x, ids, weights))
    expected = CpuExperts(engine.pool, *matrices)(x.float().cpu(), ids.cpu(), weights.cpu())
    assert relative(y, expected) < 1e-5
    assert engine.stream.stats.streamed == 0


def test_copies_are_cut_where_registered_pieces_end(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "PIECE_BYTES", 64)
    source = torch.randint(256, (1000,), dtype=torch.uint8)
    target = torch.zeros(900, dtype=torch.uint8, device=device)
    host_memory.copy_bytes(target, source[77:977])
    assert torch.equal(target.cpu(), source[77:977])


@pytest.mark.gpu
def test_memory_is_registered_and_given_back(native_build: BuildInfo) -> None:
    with load_native(native_build).alloc(3 << 20) as buffer:
        view = host_memory.bytes_at(buffer.address, buffer.num_bytes)
        assert host_memory.register(buffer.address, buffer.num_bytes).num_bytes == buffer.num_bytes
        assert view.is_pinned()
        host_memory.unregister(buffer.address, buffer.num_bytes)
        assert not view.is_pinned()
        del view


@pytest.mark.gpu
def test_memory_that_cannot_be_registered_spoils_nothing() -> None:
    refused = host_memory.register(1 << 45, 4096)
    assert refused.num_bytes == 0
    assert refused.error != 0
    assert torch.ones(3, device="cuda").sum().item() == 3
