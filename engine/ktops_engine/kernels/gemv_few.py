"""Products of quantised matrices with 1 or 2 tokens, by plain sums in float32; see `gemv`.

A lane takes a unit of columns of four rows: a weight is unpacked once for all tokens, what belongs
to a token once for all rows. A program has one panel: with two, half as many programs, 2112 x 7168
in Q4_K took 9.4 microseconds instead of 6.9 on an H100. Warps divide the columns among themselves
and add up at the end, so that every program has its loads under way at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.launch import launch
from ktops_engine.kernels.matrix import GpuMatrix, Join
from ktops_engine.kernels.unit_products import unit_products
from ktops_engine.kernels.units import PANEL_ROWS, UNITS, panel_words

# Of four, a weight would cost nine instructions, and a kernel ten seconds of compiling.
FEW_TOKENS = 2


@triton.jit
def _vectors(x, token_stride, num_tokens, TOKENS: tl.constexpr):
    """Pointers to the tokens, one tuple; those that are too many are the last one again."""
    found = ()
    for T in tl.static_range(TOKENS):
        found = found + (x + tl.minimum(T, num_tokens - 1) * token_stride,)
    return found


@triton.jit
def _rows_products(
    data, panel, x, num_units, num_blocks,
    TYPE: tl.constexpr, PARTS: tl.constexpr, RUNS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """The products of a panel's rows with the vectors x: a tuple of float32 [16].

    panel: int64, words to it.
    """
    row = tl.arange(0, 16)[None, :]
    panel = panel + row * 0
    totals = ()
    for _ in tl.static_range(len(x)):
        totals = totals + (tl.zeros((UNITS, 16), tl.float32),)
    for start in range(0, num_units, UNITS):
        unit = (start + tl.arange(0, UNITS))[:, None]
        mask = unit < num_units
        products = unit_products(
            data, panel, row, unit, mask, num_blocks, x, unit, TYPE, PARTS, RUNS
        )
        sums = ()
        for T in tl.static_range(len(x)):
            sums = sums + (totals[T] + products[T],)
        totals = sums
    results = ()
    for T in tl.static_range(len(x)):
        results = results + (tl.sum(totals[T], axis=0),)
    return results


@triton.jit(do_not_specialize=["num_tokens", "num_panels", "top_panels", "num_units", "num_blocks"])
def _few_kernel(
    data, other, x, y, num_tokens, num_panels, top_panels, num_units, num_blocks, panel_stride,
    token_stride, head_stride,
    TYPE: tl.constexpr, PARTS: tl.constexpr, RUNS: tl.constexpr, TOKENS: tl.constexpr,
    UNITS: tl.constexpr, JOIN: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One program: a panel of one head. x: int64, four columns; y: [tokens, heads, rows]."""
    head = tl.program_id(1)
    first = tl.program_id(0)
    panel = head * num_panels + first
    if JOIN == 2:  # noqa: SIM102 (known when Triton compiles, unlike the other)
        if first >= top_panels:
            data = other
            panel = first - top_panels
    words = panel.to(tl.int64) * panel_stride
    vectors = _vectors(x + head * head_stride, token_stride, num_tokens, TOKENS)
    results = _rows_products(data, words, vectors, num_units, num_blocks, TYPE, PARTS, RUNS, UNITS)
    if JOIN == 1:
        ups = _rows_products(other, words, vectors, num_units, num_blocks, TYPE, PARTS, RUNS, UNITS)
    rows = first * 16 + tl.arange(0, 16)
    for T in tl.static_range(TOKENS):
        result = results[T]
        if JOIN == 1:
            result = result * tl.sigmoid(result) * ups[T]
        targets = y + (T * tl.num_programs(1) + head) * (num_panels * 16) + rows
        if num_tokens > T:
            if ADD:
                result += tl.load(targets)
            tl.store(targets, result.to(y.dtype.element_ty))


def few_tokens(
    weight: GpuMatrix,
    other: GpuMatrix | None,
    join: Join,
    x: torch.Tensor,
    y: torch.Tensor,
    add: bool,
) -> None:
    """x: [tokens, heads, cols] bfloat16, columns contiguous, tokens and heads multiples of four
    apart; y: [tokens, heads, rows] contiguous, written or added to."""
    num_tokens, heads, cols = x.shape
    cut = UNITS[weight.type]
    num_panels = y.shape[2] // PANEL_ROWS
    top_panels = weight.rows // PANEL_ROWS
    num_units = cols // cut.cols
    num_warps = _num_warps(num_panels * heads, num_units)
    data = weight.data.view(torch.int32)
    launch(
        _few_kernel, (num_panels, heads),
        data, data if other is None else other.data.view(torch.int32), x.view(torch.int64), y,
        num_tokens, num_panels, top_panels, num_units, cols // weight.type.block_size,
        panel_words(weight.type, cols), x.stride(0) // 4, x.stride(1) // 4,
        TYPE=int(weight.type),
        PARTS=cut.parts,
        RUNS=cut.runs,
        TOKENS=triton.next_power_of_2(num_tokens),
        UNITS=8 * num_warps,
        JOIN=int(join),
        ADD=add,
        num_warps=num_warps,
    )  # fmt: skip


def _num_warps(num_programs: int, num_units: int) -> int:
    """Warps a program. Each takes 8 units at a time; those that have none left in the last step are
    lost, and so are multiprocessors with fewer than about 16 warps."""

    def use(num_warps: int) -> float:
        step = 8 * num_warps
        steps = -(-num_units // step)
        return num_units / (steps * step) * min(1.0, num_warps * num_programs / (132 * 16))

    return max((1, 2, 4, 8, 16), key=use)
