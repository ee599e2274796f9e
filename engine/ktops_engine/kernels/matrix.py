"""A weight matrix in GPU memory, and how two of them are multiplied at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch

from ktops_engine.gguf import QuantType

# The tokens of a decode step for which kernels read each weight once. Larger steps are prompts to
# them; graphs are captured, and experts asked of the CPU, for no more.
MAX_FEW_TOKENS = 16


class Join(IntEnum):
    """What a product does with a second matrix of the same type and columns."""

    NONE = 0
    GATED = 1  # silu(first x) * (second x), of the same rows
    STACKED = 2  # the rows of the second below those of the first


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
