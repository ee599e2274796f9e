"""Experts whose weights lie in RAM, for layers on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ktops_engine.kernels.expert_gemv import resident_experts
from ktops_engine.kernels.routing import Routing
from ktops_engine.moe.handoff import Handoff
from ktops_engine.moe.hot_experts import HotExperts
from ktops_engine.moe.streamed_experts import StreamedExperts


class RamExperts:
    """The routed experts of a layer: prompts on GPU and CPU at once, single tokens by the CPU but
    for those experts that have copies in GPU memory."""

    def __init__(
        self,
        index: int,
        handoff: Handoff,
        streamed: StreamedExperts,
        hot: HotExperts | None = None,
    ) -> None:
        """`index`: the layer's, in `handoff`; `hot`: copies that `streamed` has as well."""
        self._index = index
        self._handoff = handoff
        self._streamed = streamed
        self._hot = hot

    def prefill(self, x: torch.Tensor, routing: Routing, meanwhile: Callable[[], None]) -> None:
        """x += the experts of a prompt.

        x: [tokens, hidden] float32. `meanwhile` may queue what the GPU does while the host plans.
        """
        x += self._streamed(routing, meanwhile)

    def decode(
        self,
        x: torch.Tensor,
        routing: Routing,
        meanwhile: Callable[[], None],
        *,
        is_captured: bool,
    ) -> None:
        """The same for a token of some sequences each, while the GPU does what `meanwhile` queues.

        While it `is_captured`, nobody answers: who replays the graph calls `Handoff.serve`.
        """
        hot = self._hot
        slots = None if hot is None else hot.slots
        self._handoff.post(self._index, routing, slots)
        meanwhile()
        if hot is not None:
            resident_experts(routing, hot.matrices, hot.slots, x)
        if not is_captured:
            self._handoff.serve(1)
        self._handoff.take(x)
