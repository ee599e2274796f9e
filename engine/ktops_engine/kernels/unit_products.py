"""Products of a quantised matrix with a few vectors, by plain sums in float32: device functions."""

from __future__ import annotations

import triton
import triton.language as tl

from ktops_engine.kernels.unpack import load_header, load_run, part_word, scale, value


@triton.jit
def unit_products(
    data, panel, row, unit, mask, num_blocks, x, x_unit,
    TYPE: tl.constexpr, PARTS: tl.constexpr, RUNS: tl.constexpr,
):  # fmt: skip
    """Products of units of rows with some vectors: a tuple of as many float32 tiles [units, rows].

    data, panel, row, unit, mask: as in `load_header`, panel a full tile; x: a tuple of pointers to
    the vectors, four bfloat16 at once; x_unit: [units, 1], which unit of them.
    """
    header = load_header(TYPE, data, panel, row, unit, num_blocks, mask)
    totals = ()
    for RUN in tl.static_range(RUNS):
        run = load_run(TYPE, RUN, data, panel, row, unit, mask)
        for PART in tl.static_range(PARTS):
            products = ()
            sums = ()
            for J in tl.static_range(4):
                at = x_unit * (PARTS * RUNS * 4) + (4 * (PART * RUNS + RUN) + J)
                fours = ()
                for T in tl.static_range(len(x)):
                    fours = fours + (tl.load(x[T] + at, mask=mask, other=0),)
                word = part_word(TYPE, PART, J, run)
                for K in tl.static_range(4):
                    weight = value(TYPE, PART, K, word, run[12])
                    products, sums = _added(products, sums, fours, weight, K)
            a, b = scale(TYPE, PART, RUN, header, unit)
            totals = _scaled(totals, products, sums, a, b)
    return totals


@triton.jit
def _added(products, sums, fours, weight, K: tl.constexpr):
    """Of every vector, its number K of four times a weight added to its products, and to its
    sum."""
    new_products = ()
    new_sums = ()
    for T in tl.static_range(len(fours)):
        # A bfloat16 is the upper half of a float32.
        half = (fours[T] >> (32 * (K // 2))).to(tl.int32)
        bits = half & -65536 if K % 2 else half << 16
        x = bits.to(tl.float32, bitcast=True)
        if len(products) == 0:
            new_products = new_products + (x * weight,)
            new_sums = new_sums + (x,)
        else:
            new_products = new_products + (tl.fma(x, weight, products[T]),)
            new_sums = new_sums + (sums[T] + x,)
    return new_products, new_sums


@triton.jit
def _scaled(totals, products, sums, a, b):
    """`totals` of every vector plus a * product - b * sum."""
    new_totals = ()
    for T in tl.static_range(len(products)):
        total = -b * sums[T]
        if len(totals) != 0:
            total += totals[T]
        new_totals = new_totals + (tl.fma(a, products[T], total),)
    return new_totals
