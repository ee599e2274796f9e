"""Copies of a layer's most used experts in GPU memory, beside all of them in RAM.

Which ones is a matter of counts (`plan/hot_experts.py`); that the originals stay in RAM lets the
CPU compute any of them, and a prompt be divided as without copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.grouped_gemm import ExpertMatrices
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.moe.gpu_experts import expert_bytes, expert_rows
from ktops_engine.moe.host_memory import copy_bytes
from ktops_engine.native.load import Matrix

LayerMatrices = tuple[Matrix, Matrix, Matrix]  # gate, up, down


@dataclass(frozen=True)
class HotExperts:
    """Copies of some experts of a layer. `slots`: [num_experts] int32 on the GPU, where an expert
    lies in `matrices`, -1 for those that are in RAM alone; `slot_of`: the same on the host."""

    matrices: ExpertMatrices
    slots: torch.Tensor
    slot_of: Mapping[int, int]


def copy_hot_experts(
    layers: Mapping[int, LayerMatrices], chosen: Mapping[int, Sequence[int]], device: torch.device
) -> dict[int, HotExperts]:
    """Copies of the experts that are `chosen` of each layer, from their packed rows in RAM. A layer
    of which none is chosen has none.

    All of them lie in one piece of memory, because an allocator rounds up every one that it gives.
    Raises torch.OutOfMemoryError.
    """
    taken = {index: ids for index, ids in chosen.items() if ids}
    num_bytes = sum(
        len(ids) * sum(map(expert_bytes, layers[index])) for index, ids in taken.items()
    )
    rest = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    copies = {}
    for index, ids in taken.items():
        matrices = []
        for matrix in layers[index]:
            size = len(ids) * expert_bytes(matrix)
            part, rest = rest[:size], rest[size:]
            matrices.append(_copied(matrix, ids, part))
        slot_of = {expert: slot for slot, expert in enumerate(ids)}
        slots = [slot_of.get(expert, -1) for expert in range(layers[index][0].num_experts)]
        copies[index] = HotExperts(
            ExpertMatrices(*matrices),
            torch.tensor(slots, dtype=torch.int32, device=device),
            slot_of,
        )
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the rows may be freed when something fails after this
    return copies


def _copied(matrix: Matrix, ids: Sequence[int], target: torch.Tensor) -> GpuMatrix:
    rows = expert_rows(matrix)
    for part, expert in zip(target.view(len(ids), -1), ids, strict=True):
        copy_bytes(part, rows[expert])
    return GpuMatrix(target, QuantType(matrix.type), matrix.rows, matrix.cols, len(ids))
