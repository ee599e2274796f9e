"""A weight matrix in GPU memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ktops_engine.gguf import QuantType


@dataclass(frozen=True, eq=False)
class GpuMatrix:
    """Weights [num_experts, rows, cols]; the experts follow one another without gaps.

    `data` of a quantised type: uint8, packed panels of 16 rows (csrc/README.md, PANEL16); `rows` is
    a multiple of 16. Of type BF16: bfloat16 [num_experts, rows, cols].
    """

    data: torch.Tensor
    type: QuantType
    rows: int
    cols: int
    num_experts: int = 1
