"""A prompt through a layer's experts on GPU and CPU at once.

The weights stay packed in RAM. The GPU takes the crowded experts, brought through staging buffers
by its copy engine while it computes those that came before; the CPU computes the others in place.
`expert_split` says who takes what, from rates that every layer corrects. While the GPU is busy with
what lies between two layers of experts, some of the next one's are already on their way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.grouped_gemm import (
    ExpertMatrices,
    Pairs,
    Tiles,
    grouped_experts,
)
from ktops_engine.kernels.launch import is_compiling
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.kernels.routing import Routing
from ktops_engine.kernels.stretches import reorder
from ktops_engine.moe.cpu_part import CpuPart
from ktops_engine.moe.expert_pairs import group_pairs
from ktops_engine.moe.expert_split import ExpertCost, Split, split_experts
from ktops_engine.moe.expert_stream import Ahead, ExpertStream
from ktops_engine.moe.gpu_experts import expert_bytes, expert_rows, has_gpu_kernels
from ktops_engine.moe.host_memory import copy_bytes
from ktops_engine.moe.hot_experts import HotExperts
from ktops_engine.moe.staging import NUM_BUFFERS, Floats, Ids
from ktops_engine.native.load import Matrix


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
        hot: HotExperts | None = None,
        *,
        is_last: bool = False,
    ) -> None:
        """`hot`: copies of some of them that lie in GPU memory; `is_last`: of the model's last
        layer, which computes a few rows of a prompt: bringing experts ahead for them is not worth
        it, and how long they take says little of other layers."""
        self._stream = stream
        self._hot = hot
        self._is_last = is_last
        if not is_last:
            stream.add(self)
        self._matrices = (gate, up, down)
        self._rows = tuple(map(expert_rows, self._matrices))
        self._can_stream = has_gpu_kernels(self._matrices)
        flops = 2 * sum(matrix.rows * matrix.cols for matrix in self._matrices)
        self._cost = ExpertCost(sum(map(expert_bytes, self._matrices)), flops)
        self._counts = [0] * gate.num_experts  # of the last call
        self._hot_slots = {} if hot is None else hot.slot_of

    def __call__(
        self, routing: Routing, meanwhile: Callable[[], None] = lambda: None
    ) -> torch.Tensor:
        """Tokens on the GPU, with the router's choice -> [tokens, hidden] float32 there.

        `meanwhile` may queue what the GPU does while nothing of the experts is there yet.
        """
        stream, x = self._stream, routing.h
        chosen = stream.staging.read_choice(routing)
        meanwhile()
        ids, weights = chosen()  # waits for the router
        stream.learn()
        self._counts = np.bincount(ids[ids >= 0], minlength=len(self._counts)).tolist()
        if is_compiling():
            return self._launch_once(x, ids, weights)
        ahead = stream.ahead_of(self)
        on_gpu = set(self._hot_slots) | set({} if ahead is None else ahead.slot_of)
        split = split_experts(
            self._counts,
            self._cost,
            stream.rates,
            on_gpu,
            can_stream=self._can_stream,
        )
        runs = self._runs(split)
        fetched = [self._fetch_next(run) for run in runs[:NUM_BUFFERS]]
        cpu_part = self._start_cpu(x, ids, weights, split)
        y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        gpu_seconds = self._run_gpu(x, ids, weights, split, ahead, runs, fetched, y)
        cpu_seconds = cpu_part.add_to(y) if cpu_part is not None else 0.0
        if not self._is_last:
            if split.streamed:  # after y, which would have to wait for them on its way
                stream.bring_ahead_after(self)
            stream.finished(split, gpu_seconds, cpu_seconds)
        self._count(split)
        return y

    def _launch_once(self, x: torch.Tensor, ids: Ids, weights: Floats) -> torch.Tensor:
        """What prompts launch, with one expert brought: no more is there to be compiled, and
        nothing to be learnt about speed."""
        y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        if self._can_stream:
            split = Split((), (0,), (), 0.0, 0.0)
            self._run_gpu(x, ids, weights, split, None, [(0,)], [self._fetch_next((0,))], y)
        return y

    def bring_ahead(self) -> Ahead:
        """Queue copies of the experts that are likely to be asked for: those that were before."""
        staging = self._stream.staging
        in_ram = [expert for expert in range(len(self._counts)) if expert not in self._hot_slots]
        likely = sorted(in_ram, key=lambda expert: (-self._counts[expert], expert))
        chosen = likely[: staging.ahead_experts] if self._can_stream else []
        slot_of = {expert: slot for slot, expert in enumerate(chosen)}
        return Ahead(self, slot_of, self._fetch(staging.ahead, chosen))

    def _count(self, split: Split) -> None:
        stats = self._stream.stats
        num_hot = sum(expert in self._hot_slots for expert in split.resident)
        stats.hot += num_hot
        stats.ahead += len(split.resident) - num_hot
        stats.streamed += len(split.streamed)
        stats.cpu += len(split.cpu)

    def _runs(self, split: Split) -> list[tuple[int, ...]]:
        """Streamed experts, those of one staging buffer together."""
        size = self._stream.staging.group_experts
        return [split.streamed[i : i + size] for i in range(0, len(split.streamed), size)]

    def _start_cpu(
        self, x: torch.Tensor, ids: Ids, weights: Floats, split: Split
    ) -> CpuPart | None:
        if not split.cpu:
            return None
        is_cpu = np.zeros(len(self._counts), dtype=bool)
        is_cpu[list(split.cpu)] = True
        left = np.where((ids >= 0) & is_cpu[ids], ids, np.int32(-1))
        tokens = np.flatnonzero((left >= 0).any(axis=1))
        return CpuPart(self._stream, self._matrices, x, tokens, left[tokens], weights[tokens])

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
        slots_ahead = {} if ahead is None else ahead.slot_of
        hot, early = (
            [(expert, slots[expert]) for expert in split.resident if expert in slots]
            for slots in (self._hot_slots, slots_ahead)
        )
        groups = [hot, early, *([(e, slot) for slot, e in enumerate(run)] for run in runs)]
        if not any(groups):
            return lambda: 0.0
        began = staging.mark()
        pairs, batches = group_pairs(ids, weights, self._counts, groups, x.device)
        x = reorder(x, QuantType(self._matrices[0].type))
        if hot and self._hot is not None:
            _compute(x, self._hot.matrices, pairs, batches[0], y)
        if early and ahead is not None:
            with staging.using(staging.ahead):
                _compute(x, ahead.matrices, pairs, batches[1], y)
        for index, tiles in enumerate(batches[2:]):
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
