"""Experts whose weights stay in the memory of a further GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ktops_engine.kernels.routing import Routing
from ktops_engine.moe.further_gpu import FurtherGpu
from ktops_engine.moe.gpu_experts import ResidentExperts
from ktops_engine.moe.staging import Staging


class FurtherGpuExperts:
    """All routed experts of a layer on a further GPU, computed there, beside what the first one
    does meanwhile."""

    def __init__(self, gpu: FurtherGpu, staging: Staging, experts: ResidentExperts) -> None:
        """`staging` brings the router's choice to the host; `experts` lie on `gpu`."""
        self._gpu = gpu
        self._staging = staging
        self._experts = experts

    def prefill(self, x: torch.Tensor, routing: Routing, meanwhile: Callable[[], None]) -> None:
        """x += the experts of a prompt.

        x: [tokens, hidden] float32; it and `routing` are on the first GPU. `meanwhile` may queue
        what that one does.
        """
        chosen = self._staging.read_choice(routing)
        with self._gpu.working():
            there = routing.h.to(self._gpu.device, non_blocking=True)
        meanwhile()
        ids, weights = chosen()
        with self._gpu.working():
            y = torch.zeros(x.shape, dtype=torch.float32, device=self._gpu.device)
            self._experts.add_prompt(there, ids, weights, y)
            back = y.to(x.device, non_blocking=True)
        self._gpu.join()
        x += back

    def decode(
        self,
        x: torch.Tensor,
        routing: Routing,
        meanwhile: Callable[[], None],
        *,
        is_captured: bool,
    ) -> None:
        """The same for a token of some sequences each; can be captured in a graph of the first
        GPU, the host has no part."""
        del is_captured
        self._gpu.begin(self._experts, routing)
        meanwhile()
        self._gpu.take(x)
