"""The output of an expert layer held against float64 on the dequantised weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ktops_engine.bench.layer import ExpertLayer
from ktops_engine.native.load import Matrix

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SAMPLED_ROWS = 256
ROWS_AT_ONCE = 256


def relative_l2(
    layer: ExpertLayer,
    x: npt.NDArray[np.float32],
    expert_ids: npt.NDArray[np.int32],
    expert_weights: npt.NDArray[np.float32],
    y: npt.NDArray[np.float32],
) -> float:
    """|y - exact| / |exact| of one token over the first rows of the output.

    x, y: [hidden_size]; expert_ids, expert_weights: [num_experts_per_tok].
    """
    import numpy as np

    rows = min(SAMPLED_ROWS, layer.shape.hidden_size)
    exact = np.zeros(rows)
    for expert, weight in zip(expert_ids.tolist(), expert_weights.tolist(), strict=True):
        gate = _product(layer, layer.gate, expert, x.astype(np.float64), layer.gate.rows)
        up = _product(layer, layer.up, expert, x.astype(np.float64), layer.up.rows)
        exact += weight * _product(layer, layer.down, expert, gate / (1 + np.exp(-gate)) * up, rows)
    difference = y[:rows].astype(np.float64) - exact
    return math.sqrt(float(difference @ difference) / float(exact @ exact))


def _product(
    layer: ExpertLayer, weight: Matrix, expert: int, x: npt.NDArray[np.float64], num_rows: int
) -> npt.NDArray[np.float64]:
    """The first `num_rows` rows of one expert's matrix times x."""
    import numpy as np

    y = np.empty(num_rows)
    dense = np.empty((ROWS_AT_ONCE, weight.cols), dtype=np.float32)
    for row in range(0, num_rows, ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, num_rows - row)
        first = expert * weight.rows + row
        layer.native.dequantize_rows(weight, first, count, dense.ctypes.data)
        y[row : row + count] = dense[:count].astype(np.float64) @ x
    return y
