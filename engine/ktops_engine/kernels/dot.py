"""Products of bfloat16 tiles, also where Triton interprets instead of compiling."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, sums):
    """sums + a b: a [m, k], b [k, n] bfloat16, sums [m, n] float32. The interpreter would multiply
    the bits of bfloat16 as integers, so it gets float32, to which nothing is lost."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums)
    else:
        return tl.dot(a, b, sums)
