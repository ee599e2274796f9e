"""How the columns of a quantised matrix are cut for kernels, and what its types are called there.

A lane handles a *unit* of columns in a row:

| type       | unit                  | parts x runs of 16 columns                              |
|------------|-----------------------|---------------------------------------------------------|
| Q4_K, Q5_K | 64, four to a block   | 2 x 2: low and high nibbles                             |
| Q6_K       | 128, two to a block   | 4 x 2: low nibbles of two stretches of ql, then high ones |
| Q8_0       | 32, the block         | 1 x 2                                                   |
| Q4_0, Q5_0 | 32, the block         | 2 x 1: low and high nibbles                             |
"""

from __future__ import annotations

from dataclasses import dataclass

import triton.language as tl

from ktops_engine.gguf import QuantType

Q4_0 = tl.constexpr(int(QuantType.Q4_0))
Q5_0 = tl.constexpr(int(QuantType.Q5_0))
Q8_0 = tl.constexpr(int(QuantType.Q8_0))
Q4_K = tl.constexpr(int(QuantType.Q4_K))
Q5_K = tl.constexpr(int(QuantType.Q5_K))
Q6_K = tl.constexpr(int(QuantType.Q6_K))

PANEL_ROWS = 16


@dataclass(frozen=True)
class Unit:
    """How a type's columns are cut: `parts` x `runs` x 16 columns a unit."""

    parts: int
    runs: int

    @property
    def cols(self) -> int:
        return self.parts * self.runs * 16


UNITS = {
    QuantType.Q4_K: Unit(2, 2),
    QuantType.Q5_K: Unit(2, 2),
    QuantType.Q6_K: Unit(4, 2),
    QuantType.Q8_0: Unit(1, 2),
    QuantType.Q5_0: Unit(2, 1),
    QuantType.Q4_0: Unit(2, 1),
}


def panel_words(type: QuantType, cols: int) -> int:
    """Words of four bytes that 16 rows take."""
    return PANEL_ROWS // 4 * type.nbytes(cols)
