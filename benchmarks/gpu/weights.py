"""Random packed matrices in GPU memory. One panel of 16 rows is drawn and repeated: what a kernel
does, and what memory gives, does not depend on values."""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import torch

from ktops_engine.bench.blocks import random_blocks
from ktops_engine.gguf import QuantType
from ktops_engine.kernels.grouped_gemm import ExpertMatrices
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.moe.host_memory import bytes_at
from ktops_engine.native.build import build_native
from ktops_engine.native.load import Matrix, Native, load_native
from ktops_engine.native.structs import Layout

PANEL_ROWS = 16


@cache
def native() -> Native:
    """The native library, built when it is not there."""
    return load_native(build_native())


@cache
def _panel(type: QuantType, cols: int) -> torch.Tensor:
    blocks = random_blocks(type, PANEL_ROWS, cols, np.random.default_rng(cols))
    packed = native().alloc(blocks.nbytes)
    with native().create_pool([min(os.sched_getaffinity(0))]) as pool:
        target = Matrix(packed.address, type, PANEL_ROWS, cols, layout=Layout.PANEL16)
        pool.pack(target, blocks.ctypes.data)
    panel = bytes_at(packed.address, blocks.nbytes).cuda()
    packed.free()
    return panel


def matrix(type: QuantType, rows: int, cols: int, num_experts: int = 1) -> GpuMatrix:
    """A matrix in memory of its own."""
    if type is QuantType.BF16:
        shape = (num_experts, rows, cols)
        return GpuMatrix(
            torch.randn(shape, device="cuda", dtype=torch.bfloat16), type, rows, cols, num_experts
        )
    data = _panel(type, cols).repeat(num_experts * rows // PANEL_ROWS)
    return GpuMatrix(data, type, rows, cols, num_experts)


def matrix_bytes(type: QuantType, rows: int, cols: int) -> int:
    """Bytes of such a matrix."""
    return rows * type.nbytes(cols)


def experts(count: int, hidden: int, intermediate: int) -> ExpertMatrices:
    """Experts with the types of most layers of a Q4_K_M file."""
    return ExpertMatrices(
        matrix(QuantType.Q4_K, intermediate, hidden, count),
        matrix(QuantType.Q4_K, intermediate, hidden, count),
        matrix(QuantType.Q6_K, hidden, intermediate, count),
    )


def activations(*shape: int) -> torch.Tensor:
    """Random bfloat16."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)
