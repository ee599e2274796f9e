"""Random weights in valid GGUF blocks: every byte is drawn, only the float16 scales are chosen.

Where they stand: ggml-org/llama.cpp, ggml/src/ggml-common.h.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

from ktops_engine.gguf import QuantType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SMALLEST_NORMAL = 2.0**-14  # of float16

# Byte offset of each float16 scale of a block, and what it is in units of the first one: the
# subtracted minimum of the K types balances the mean of what it is subtracted from.
_SCALES = MappingProxyType(
    {
        QuantType.Q4_0: ((0, 1.0),),
        QuantType.Q5_0: ((0, 1.0),),
        QuantType.Q8_0: ((0, 1.0),),
        QuantType.Q4_K: ((0, 1.0), (2, 7.5)),
        QuantType.Q5_K: ((0, 1.0), (2, 15.5)),
        QuantType.Q6_K: ((208, 1.0),),
    }
)
# Standard deviation of a weight whose block has scale 1 and random bytes otherwise.
_SPREAD = MappingProxyType(
    {
        QuantType.Q4_0: 4.6,
        QuantType.Q5_0: 9.2,
        QuantType.Q8_0: 74.0,
        QuantType.Q4_K: 255.0,
        QuantType.Q5_K: 514.0,
        QuantType.Q6_K: 1367.0,
    }
)


def random_blocks(
    type: QuantType, rows: int, cols: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Blocks of a quantised type, [rows, bytes of a row]. Weights are about 1/sqrt(cols), so that
    products with activations of about 1 are about 1, or larger by so much that no scale is
    subnormal in float16: libraries that flush such numbers would see other weights."""
    import numpy as np

    count = rows * cols // type.block_size
    blocks = rng.integers(0, 256, (count, type.block_bytes), dtype=np.uint8)
    scale = max(1 / (_SPREAD[type] * math.sqrt(cols)), 2 * SMALLEST_NORMAL)
    for offset, factor in _SCALES[type]:
        values = rng.uniform(0.5 * factor * scale, 1.5 * factor * scale, count).astype(np.float16)
        blocks[:, offset : offset + 2] = values[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)
