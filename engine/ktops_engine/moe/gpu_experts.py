"""Experts whose weights stay in GPU memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.expert_gemv import resident_experts
from ktops_engine.kernels.grouped_gemm import ExpertMatrices, grouped_experts, has_kernel
from ktops_engine.kernels.routing import Routing
from ktops_engine.kernels.stretches import reorder
from ktops_engine.moe.expert_pairs import group_pairs
from ktops_engine.moe.host_memory import bytes_at
from ktops_engine.moe.staging import Floats, Ids, Staging
from ktops_engine.native.load import Matrix
from ktops_engine.native.structs import Layout


def expert_bytes(matrix: Matrix) -> int:
    """Bytes of one expert's matrix."""
    return matrix.rows * QuantType(matrix.type).nbytes(matrix.cols)


def has_gpu_kernels(matrices: Iterable[Matrix]) -> bool:
    """Whether experts with these matrices can be computed on the GPU."""
    return all(
        matrix.layout is Layout.PANEL16
        and has_kernel(QuantType(matrix.type), matrix.rows, matrix.cols)
        for matrix in matrices
    )


def expert_rows(matrix: Matrix) -> torch.Tensor:
    """All experts' packed bytes in RAM: uint8 [experts, bytes of one]."""
    size = expert_bytes(matrix)
    return bytes_at(matrix.data_ptr, matrix.num_experts * size).view(matrix.num_experts, size)


class ResidentExperts:
    """All routed experts of a layer in GPU memory; nothing of them is in RAM."""

    def __init__(self, staging: Staging, matrices: ExpertMatrices) -> None:
        """`staging` brings the router's choice to the host; its buffers are not used."""
        self._staging = staging
        self._matrices = matrices
        gate = matrices.gate
        self._slots = torch.arange(gate.num_experts, dtype=torch.int32, device=gate.data.device)

    def prefill(self, x: torch.Tensor, routing: Routing, meanwhile: Callable[[], None]) -> None:
        """x += the experts of a prompt.

        x: [tokens, hidden] float32. `meanwhile` may queue what the GPU does while the host plans.
        """
        chosen = self._staging.read_choice(routing)
        meanwhile()
        ids, weights = chosen()
        self.add_prompt(routing.h, ids, weights, x)

    def add_prompt(self, h: torch.Tensor, ids: Ids, weights: Floats, y: torch.Tensor) -> None:
        """y += the experts of a prompt, which the router's choice is known of on the host.

        h: [tokens, hidden] bfloat16; y: float32; both where the experts are; ids, weights:
        [tokens, top_k].
        """
        counts = np.bincount(ids[ids >= 0], minlength=self._slots.numel()).tolist()
        group = [(expert, expert) for expert, count in enumerate(counts) if count]
        pairs, (batches,) = group_pairs(ids, weights, counts, [group], h.device)
        h = reorder(h, self._matrices.gate.type)
        for tiles in batches:
            grouped_experts(h, self._matrices, pairs, tiles, y)

    def decode(
        self,
        x: torch.Tensor,
        routing: Routing,
        meanwhile: Callable[[], None],
        *,
        is_captured: bool,
    ) -> None:
        """The same for a token of some sequences each; can be captured, the host has no part."""
        del is_captured
        meanwhile()
        resident_experts(routing, self._matrices, self._slots, x)

    def write_tokens(self, routing: Routing, y: torch.Tensor, inner: torch.Tensor) -> None:
        """y = the experts of a few tokens, with `inner` to work in: [tokens * top_k at least,
        intermediate] bfloat16. Takes no memory, so that any GPU's graph can have it."""
        resident_experts(routing, self._matrices, self._slots, y, inner, adds=False)
