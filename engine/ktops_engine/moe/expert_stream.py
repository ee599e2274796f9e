"""What the layers whose experts are streamed share: buffers, rates, a thread, and who is next."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from ktops_engine.kernels.grouped_gemm import ExpertMatrices
from ktops_engine.moe.expert_split import Rates, Split, corrected
from ktops_engine.moe.staging import Staging
from ktops_engine.native.load import Pool

# Of a first call, before anything has been measured.
FIRST_RATES = Rates(stream=40e9, gpu_flops=150e12, cpu_bytes=100e9, cpu_flops=4e12)


@dataclass
class StreamStats:
    """What has been done: experts by who computed them (`hot`: copies in GPU memory, `ahead`:
    brought before they were asked for)."""

    hot: int = 0
    ahead: int = 0
    streamed: int = 0
    cpu: int = 0


class StreamedLayer(Protocol):
    """A layer whose experts go through the buffers."""

    def bring_ahead(self) -> Ahead:
        """Queue copies of experts into the buffer that is filled ahead."""


@dataclass(frozen=True)
class Ahead:
    """Experts of a layer in the buffer that is filled ahead."""

    layer: StreamedLayer
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
        self._layers: list[StreamedLayer] = []
        # Who is in the buffer that is filled ahead, or on the way there.
        self._ahead: Future[Ahead] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ktops-cpu-experts")
        self._unmeasured: tuple[Split, Callable[[], float], float] | None = None

    def add(self, layer: StreamedLayer) -> None:
        """Layers are added in the order in which they are called, those that experts are brought
        ahead for."""
        self._layers.append(layer)

    def submit(self, work: Callable[[], float]) -> Future[float]:
        """Run `work` beside the caller."""
        return self._thread.submit(work)

    def bring_ahead_after(self, layer: StreamedLayer) -> None:
        """Queue copies of some experts of the next layer, beside the caller."""
        following = self._layers[(self._layers.index(layer) + 1) % len(self._layers)]
        self._ahead = self._thread.submit(following.bring_ahead)

    def ahead_of(self, layer: StreamedLayer) -> Ahead | None:
        """Those of its experts that have been brought ahead."""
        ahead = self._ahead.result() if self._ahead is not None else None
        return ahead if ahead is not None and ahead.layer is layer else None

    def learn(self) -> None:
        """Correct the rates by the layer before, whose GPU work is over by now."""
        if self._unmeasured is not None:
            split, gpu_seconds, cpu_seconds = self._unmeasured
            self.rates = corrected(self.rates, split, gpu_seconds(), cpu_seconds)
            self._unmeasured = None

    def finished(self, split: Split, gpu_seconds: Callable[[], float], cpu_seconds: float) -> None:
        """Note a layer; `gpu_seconds` is asked when the GPU is done with it."""
        self._unmeasured = (split, gpu_seconds, cpu_seconds)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
