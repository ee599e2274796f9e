"""Experts whose weights stay in GPU memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.expert_gemv import others_ids, resident_experts
from ktops_engine.kernels.grouped_gemm import ExpertMatrices, has_kernel
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.moe.host_memory import bytes_at, copy_bytes
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
    """Some experts of a layer in GPU memory, for decode; prompts use `matrices` and `slot_of`."""

    def __init__(
        self,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        expert_ids: Sequence[int],
        device: torch.device,
    ) -> None:
        """Copies `expert_ids` there from packed matrices in RAM."""
        self.slot_of = {expert: slot for slot, expert in enumerate(expert_ids)}
        slots = torch.full((gate.num_experts,), -1, dtype=torch.int32)
        for expert, slot in self.slot_of.items():
            slots[expert] = slot
        self._slots = slots.to(device)
        self.matrices = ExpertMatrices(
            *(_copy_experts(matrix, expert_ids, device) for matrix in (gate, up, down))
        )

    def decode(
        self,
        x: torch.Tensor,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        y: torch.Tensor,
    ) -> None:
        """Add these experts' part to y: [tokens, hidden] float32.

        x: [tokens, hidden] bfloat16; expert_ids: [tokens, top_k] int32; expert_weights: float32.
        """
        resident_experts(x, self.matrices, self._slots, expert_ids, expert_weights, y)

    def others(self, expert_ids: torch.Tensor) -> torch.Tensor:
        """What is left for the CPU: expert_ids with -1 for those that are here."""
        return others_ids(expert_ids, self._slots)


def _copy_experts(matrix: Matrix, expert_ids: Sequence[int], device: torch.device) -> GpuMatrix:
    size = expert_bytes(matrix)
    data = torch.empty(len(expert_ids), size, dtype=torch.uint8, device=device)
    rows = expert_rows(matrix)
    for slot, expert in enumerate(expert_ids):
        copy_bytes(data[slot], rows[expert])
    type = QuantType(matrix.type)
    return GpuMatrix(data.view(-1), type, matrix.rows, matrix.cols, len(expert_ids))
