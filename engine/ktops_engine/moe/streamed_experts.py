"""A prompt through a layer's experts on GPU and CPU at once.

The weights stay packed in RAM. The GPU takes the crowded experts, brought through staging buffers
by its copy engine while it computes those that came before; the CPU computes the others in place.
`expert_split` says who takes what, from rates that every layer corrects. While the GPU is busy with
what lies between two layers of experts, some of the next one's are already on their way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.grouped_gemm import (
    ExpertMatrices,
    Pairs,
    Tiles,
    grouped_experts,
)
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.kernels.stretches import reorder
from ktops_engine.moe.expert_pairs import group_pairs
from ktops_engine.moe.expert_split import ExpertCost, Rates, Split, corrected, split_experts
from ktops_engine.moe.gpu_experts import expert_bytes, expert_rows, has_gpu_kernels
from ktops_engine.moe.host_memory import copy_bytes
from ktops_engine.moe.staging import NUM_BUFFERS, Staging
from ktops_engine.native.load import Matrix, Pool

# Of a first call, before anything has been measured.
FIRST_RATES = Rates(stream=40e9, gpu_flops=150e12, cpu_bytes=100e9, cpu_flops=4e12)

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass
class StreamStats:
    """What has been done: experts by who computed them (`ahead`: brought before they were asked
    for), bytes brought to the GPU, and seconds of both sides in the last layer measured."""

    ahead: int = 0
    streamed: int = 0
    cpu: int = 0
    streamed_bytes: int = 0
    gpu_seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Ahead:
    """Experts of a layer in the buffer that is filled ahead."""

    layer: StreamedExperts
    slot_of: dict[int, int]
    matrices: ExpertMatrices


class ExpertStream:
    """What all layers share: staging buffers, the thread that waits for the CPU, and the rates."""

    def __init__(
        self,
        pool: Pool,
        device: torch.device,
        max_expert_bytes: int,
        group_experts: int = 4,
        ahead_experts: int = 16,
    ) -> None:
        """Takes (3 * group_experts + ahead_experts) * max_expert_bytes of GPU memory."""
        self.pool = pool
        self.device = device
        self.staging = Staging(device, max_expert_bytes, group_experts, ahead_experts)
        self.rates = FIRST_RATES
        self.stats = StreamStats()
        self._layers: list[StreamedExperts] = []
        # Who is in the buffer that is filled ahead, or on the way there.
        self._ahead: Future[Ahead] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ktops-cpu-experts")
        self._unmeasured: tuple[Split, Callable[[], float], float] | None = None

    def add(self, layer: StreamedExperts) -> None:
        """Layers are added in the order in which they are called."""
        self._layers.append(layer)

    def submit(self, work: Callable[[], float]) -> Future[float]:
        """Run `work` beside the caller."""
        return self._thread.submit(work)

    def bring_ahead_after(self, layer: StreamedExperts) -> None:
        """Queue copies of some experts of the next layer, beside the caller."""
        following = self._layers[(self._layers.index(layer) + 1) % len(self._layers)]
        self._ahead = self._thread.submit(following.bring_ahead)

    def ahead_of(self, layer: StreamedExperts) -> Ahead | None:
        """Those of its experts that have been brought ahead."""
        ahead = self._ahead.result() if self._ahead is not None else None
        return ahead if ahead is not None and ahead.layer is layer else None

    def learn(self) -> None:
        """Correct the rates by the layer before, whose GPU work is over by now."""
        if self._unmeasured is not None:
            split, gpu_seconds, cpu_seconds = self._unmeasured
            seconds = gpu_seconds()
            self.stats.gpu_seconds, self.stats.cpu_seconds = seconds, cpu_seconds
            self.rates = corrected(self.rates, split, seconds, cpu_seconds)
            self._unmeasured = None

    def finished(self, split: Split, gpu_seconds: Callable[[], float], cpu_seconds: float) -> None:
        """Note a layer; `gpu_seconds` is asked when the GPU is done with it."""
        self._unmeasured = (split, gpu_seconds, cpu_seconds)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


class StreamedExperts:
    """y = sum over chosen experts of weight * down(silu(gate(x)) * up(x)), for prompts.

    gate, up: [experts, intermediate, hidden]; down: [experts, hidden, intermediate]; packed, in
    RAM. Types that the GPU has no kernel for stay on the CPU.
    """

    def __init__(
        self,
        stream: ExpertStream,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
    ) -> None:
        self._stream = stream
        stream.add(self)
        self._matrices = (gate, up, down)
        self._rows = tuple(map(expert_rows, self._matrices))
        self._can_stream = has_gpu_kernels(self._matrices)
        flops = 2 * sum(matrix.rows * matrix.cols for matrix in self._matrices)
        self._cost = ExpertCost(sum(map(expert_bytes, self._matrices)), flops)
        self._counts = [0] * gate.num_experts  # of the last call

    def __call__(
        self,
        x: torch.Tensor,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """x: [tokens, hidden] bfloat16; expert_ids: [tokens, top_k] int32; expert_weights: float32
        of the same shape; all on the GPU, contiguous -> [tokens, hidden] float32 there.

        `meanwhile` may queue what the GPU does while nothing of the experts is there yet.
        """
        stream = self._stream
        routed = stream.staging.read_back(expert_ids, expert_weights)
        meanwhile()
        ids, weights = (tensor.numpy() for tensor in routed())  # waits for the router
        stream.learn()
        self._counts = np.bincount(ids[ids >= 0], minlength=len(self._counts)).tolist()
        ahead = stream.ahead_of(self)
        slots_ahead = {} if ahead is None else ahead.slot_of
        split = split_experts(
            self._counts,
            self._cost,
            stream.rates,
            slots_ahead.keys(),
            can_stream=self._can_stream,
        )
        runs = self._runs(split)
        fetched = [self._fetch_next(run) for run in runs[:NUM_BUFFERS]]
        cpu_part = self._start_cpu(x, ids, weights, split)
        y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        gpu_seconds = self._run_gpu(x, ids, weights, split, ahead, runs, fetched, y)
        cpu_seconds = cpu_part.add_to(y) if cpu_part is not None else 0.0
        if split.streamed:  # after y, which would have to wait for them on its way
            stream.bring_ahead_after(self)
        stream.finished(split, gpu_seconds, cpu_seconds)
        self._count(split)
        return y

    def bring_ahead(self) -> Ahead:
        """Queue copies of the experts that are likely to be asked for: those that were before."""
        staging = self._stream.staging
        every = range(len(self._counts))
        likely = sorted(every, key=lambda expert: (-self._counts[expert], expert))
        chosen = likely[: staging.ahead_experts] if self._can_stream else []
        slot_of = {expert: slot for slot, expert in enumerate(chosen)}
        return Ahead(self, slot_of, self._fetch(staging.ahead, chosen))

    def _count(self, split: Split) -> None:
        stats = self._stream.stats
        stats.ahead += len(split.resident)
        stats.streamed += len(split.streamed)
        stats.cpu += len(split.cpu)
        stats.streamed_bytes += len(split.streamed) * self._cost.num_bytes

    def _runs(self, split: Split) -> list[tuple[int, ...]]:
        """Streamed experts, those of one staging buffer together."""
        size = self._stream.staging.group_experts
        return [split.streamed[i : i + size] for i in range(0, len(split.streamed), size)]

    def _start_cpu(
        self, x: torch.Tensor, ids: Ids, weights: Floats, split: Split
    ) -> _CpuPart | None:
        if not split.cpu:
            return None
        is_cpu = np.zeros(len(self._counts), dtype=bool)
        is_cpu[list(split.cpu)] = True
        left = np.where((ids >= 0) & is_cpu[ids], ids, np.int32(-1))
        tokens = np.flatnonzero((left >= 0).any(axis=1))
        return _CpuPart(self._stream, self._matrices, x, tokens, left[tokens], weights[tokens])

    def _run_gpu(
        self,
        x: torch.Tensor,
        ids: Ids,
        weights: Floats,
        split: Split,
        ahead: Ahead | None,
        runs: Sequence[Sequence[int]],
        fetched: list[tuple[int, ExpertMatrices]],
        y: torch.Tensor,
    ) -> Callable[[], float]:
        """Queue kernels, and what is left of the copies. Returns what says how long it all took,
        once it is over."""
        staging = self._stream.staging
        early = [(e, ahead.slot_of[e]) for e in split.resident] if ahead else []
        groups = [early, *([(e, slot) for slot, e in enumerate(run)] for run in runs)]
        if not any(groups):
            return lambda: 0.0
        began = staging.mark()
        pairs, batches = group_pairs(ids, weights, self._counts, groups, x.device)
        x = reorder(x, QuantType(self._matrices[0].type))
        if early and ahead is not None:
            with staging.using(staging.ahead):
                _compute(x, ahead.matrices, pairs, batches[0], y)
        for index, tiles in enumerate(batches[1:]):
            buffer, matrices = fetched[index]
            with staging.using(buffer):
                _compute(x, matrices, pairs, tiles, y)
            if index + NUM_BUFFERS < len(runs):
                fetched.append(self._fetch_next(runs[index + NUM_BUFFERS]))
        ended = staging.mark()
        return lambda: staging.seconds_between(began, ended)

    def _fetch_next(self, experts: Sequence[int]) -> tuple[int, ExpertMatrices]:
        """Queue the copies of experts into the staging buffer whose turn it is."""
        buffer = self._stream.staging.next_buffer()
        return buffer, self._fetch(buffer, experts)

    def _fetch(self, buffer: int, experts: Sequence[int]) -> ExpertMatrices:
        """Queue the copies of experts into a staging buffer: all gates, all ups, all downs."""
        copied = []
        with self._stream.staging.filling(buffer) as rest:
            for matrix, rows in zip(self._matrices, self._rows, strict=True):
                num_bytes = len(experts) * rows.shape[1]
                part, rest = rest[:num_bytes], rest[num_bytes:]
                for target, expert in zip(part.view(-1, rows.shape[1]), experts, strict=True):
                    copy_bytes(target, rows[expert])
                type = QuantType(matrix.type)
                copied.append(GpuMatrix(part, type, matrix.rows, matrix.cols, len(experts)))
        return ExpertMatrices(*copied)


def _compute(
    x: torch.Tensor,
    matrices: ExpertMatrices,
    pairs: Pairs,
    batches: Sequence[Tiles],
    y: torch.Tensor,
) -> None:
    for tiles in batches:
        grouped_experts(x, matrices, pairs, tiles, y)


class _CpuPart:
    """The CPU's experts of one call, under way."""

    def __init__(
        self,
        stream: ExpertStream,
        matrices: tuple[Matrix, Matrix, Matrix],
        x: torch.Tensor,
        tokens: npt.NDArray[np.int64],
        ids: Ids,
        weights: Floats,
    ) -> None:
        """ids, weights: of `tokens`, the only rows of x that are needed."""
        self._staging = stream.staging
        self._pool = stream.pool
        self._matrices = matrices
        self._tokens = torch.from_numpy(tokens).to(x.device)
        self._ids, self._weights = ids, weights
        self._x, self._arrived = stream.staging.to_host(x, self._tokens)
        self._y = stream.staging.host_rows("y", self._x.shape)
        self._running = stream.submit(self._compute)

    def _compute(self) -> float:
        """On the thread beside: the experts' products. Returns seconds, the way of x included."""
        started = perf_counter()
        self._arrived()
        num_tokens, top_k = self._ids.shape
        self._pool.moe_forward(
            *self._matrices,
            self._x.data_ptr(), self._ids.ctypes.data, self._weights.ctypes.data,
            self._y.data_ptr(), num_tokens, top_k,
        )  # fmt: skip
        return perf_counter() - started

    def add_to(self, y: torch.Tensor) -> float:
        """Wait, and add the result to y. Returns the seconds it took to compute."""
        seconds = self._running.result()
        y.index_add_(0, self._tokens, self._staging.from_host(self._y))
        return seconds
