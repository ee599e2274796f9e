"""Products of quantised matrices with up to 16 tokens, on the tensor cores; see `gemv`.

A program takes 64 rows: their weights become a bfloat16 tile, the left operand, so that the tokens,
16 whatever their number, are the narrow side. Matrices with few rows are cut along the columns too;
the parts are then added up in one order by a second kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.dot import dot
from ktops_engine.kernels.launch import launch
from ktops_engine.kernels.matrix import GpuMatrix, Join
from ktops_engine.kernels.units import PANEL_ROWS, UNITS, panel_words
from ktops_engine.kernels.unpack import load_header, load_run, unpack_run

_UNITS = 4  # a step of the loop
TILE_ROWS = 64  # the tensor cores' smallest left operand
_SUMMED = 256  # results a program of the second kernel
_MAX_SPLITS = 8
# Four for each multiprocessor of an H100: loads of one are under way while another computes. Stages
# in shared memory instead were slower (835 GB/s of weights against 1,058, 18432 x 7168 in Q4_K).
_PROGRAMS = 528


@triton.jit
def _products(
    data,
    panel,
    row,
    row_mask,
    x,
    x_mask,
    first_unit,
    end_unit,
    num_blocks,
    TYPE: tl.constexpr,
    PARTS: tl.constexpr,
    RUNS: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The products of ROWS rows with 16 tokens, [ROWS, 16] float32, over some units of columns.

    x: pointers [1, 16] to the tokens' first columns.
    """
    acc = tl.zeros((ROWS, 16), tl.float32)
    k = tl.arange(0, 16 * UNITS)[:, None]
    for start in range(first_unit, end_unit, UNITS):
        unit = (start + tl.arange(0, UNITS))[:, None]
        mask = (unit < end_unit) & row_mask
        header = load_header(TYPE, data, panel, row, unit, num_blocks, mask)
        unit_of_k = start + k // 16
        cols = x + (unit_of_k * (PARTS * RUNS * 16) + k % 16)
        tokens = x_mask & (unit_of_k < end_unit)
        for RUN in tl.static_range(RUNS):
            run = load_run(TYPE, RUN, data, panel, row, unit, mask)
            for PART in tl.static_range(PARTS):
                weights = unpack_run(TYPE, PART, RUN, run, header, unit)
                weights = tl.reshape(tl.permute(weights, (1, 0, 2)), (ROWS, 16 * UNITS))
                x_run = tl.load(cols + 16 * (PART * RUNS + RUN), mask=tokens, other=0.0)
                acc = dot(weights, x_run, acc)
    return acc


@triton.jit(
    do_not_specialize=[
        "num_tokens",
        "num_panels",
        "top_panels",
        "num_units",
        "num_blocks",
        "split_units",
    ]
)
def _many_kernel(
    data,
    other,
    x,
    y,
    num_tokens,
    num_panels,
    top_panels,
    num_units,
    num_blocks,
    split_units,
    panel_stride,
    token_stride,
    head_stride,
    TYPE: tl.constexpr,
    PARTS: tl.constexpr,
    RUNS: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    JOIN: tl.constexpr,
    ADD: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One program: ROWS rows of one head, over one split of the columns.

    y: [tokens, heads, rows], or with SPLIT float32 [splits, tokens, heads, rows], where those of
    the up projection follow when GATED.
    """
    head = tl.program_id(1)
    split = tl.program_id(2)
    num_heads = tl.num_programs(1)
    rows = num_panels * 16
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[None, :]
    row_mask = row < rows
    panel = head * num_panels + row // 16
    if JOIN == 2:  # noqa: SIM102 (known when Triton compiles, unlike the other)
        if tl.program_id(0) * ROWS >= top_panels * 16:
            data = other
            panel -= top_panels
    words = panel.to(tl.int64) * panel_stride
    first_unit = split * split_units
    end_unit = tl.minimum(first_unit + split_units, num_units)
    token = tl.arange(0, 16)[None, :]
    token_mask = token < num_tokens
    x += token * token_stride + head * head_stride
    result = _products(
        data, words, row % 16, row_mask, x, token_mask, first_unit, end_unit, num_blocks,
        TYPE, PARTS, RUNS, UNITS, ROWS,
    )  # fmt: skip
    size = num_tokens * num_heads * rows
    targets = y + (token * num_heads + head) * rows + tl.trans(row)
    mask = tl.trans(row_mask) & token_mask
    if SPLIT:
        tl.store(targets + split * size, result, mask=mask)
    if JOIN == 1:
        up = _products(
            other, words, row % 16, row_mask, x, token_mask, first_unit, end_unit, num_blocks,
            TYPE, PARTS, RUNS, UNITS, ROWS,
        )  # fmt: skip
        if SPLIT:
            tl.store(targets + (tl.num_programs(2) + split) * size, up, mask=mask)
        else:
            result = result * tl.sigmoid(result) * up
    if not SPLIT:
        if ADD:
            result += tl.load(targets, mask=mask)
        tl.store(targets, result.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["size", "splits"])
def _sum_kernel(
    parts, y, size, splits, GATED: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds up what `_many_kernel` left: parts [splits, size], twice when GATED; y: [size]."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    result = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        result += tl.load(parts + split * size + at, mask=mask)
    if GATED:
        up = tl.zeros((BLOCK,), tl.float32)
        for split in range(splits, 2 * splits):
            up += tl.load(parts + split * size + at, mask=mask)
        result = result * tl.sigmoid(result) * up
    if ADD:
        result += tl.load(y + at, mask=mask)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=mask)


def many_tokens(
    weight: GpuMatrix,
    other: GpuMatrix | None,
    join: Join,
    x: torch.Tensor,
    y: torch.Tensor,
    add: bool,
) -> None:
    """x: [tokens, heads, cols] bfloat16, columns contiguous; y: [tokens, heads, rows] contiguous,
    written or added to."""
    num_tokens, heads, cols = x.shape
    cut = UNITS[weight.type]
    num_units = cols // cut.cols
    rows = y.shape[2]
    tiles = triton.cdiv(rows, TILE_ROWS)
    splits, split_units = _splits(tiles * heads, num_units)
    data = weight.data.view(torch.int32)
    parts = y
    if splits > 1:
        shape = (2 * splits if join is Join.GATED else splits, *y.shape)
        parts = torch.empty(shape, dtype=torch.float32, device=x.device)
    launch(
        _many_kernel,
        (tiles, heads, splits),
        data,
        data if other is None else other.data.view(torch.int32),
        x,
        parts,
        num_tokens,
        rows // PANEL_ROWS,
        weight.rows // PANEL_ROWS,
        num_units,
        cols // weight.type.block_size,
        split_units,
        panel_words(weight.type, cols),
        x.stride(0),
        x.stride(1),
        TYPE=int(weight.type),
        PARTS=cut.parts,
        RUNS=cut.runs,
        UNITS=_UNITS,
        ROWS=TILE_ROWS,
        JOIN=int(join),
        ADD=add,
        SPLIT=splits > 1,
        num_warps=4,
        num_stages=1,
    )
    if splits > 1:
        launch(
            _sum_kernel, (triton.cdiv(y.numel(), _SUMMED),),
            parts, y, y.numel(), splits,
            GATED=join is Join.GATED, ADD=add, BLOCK=_SUMMED, num_warps=2,
        )  # fmt: skip


def _splits(num_tiles: int, num_units: int) -> tuple[int, int]:
    """How often the columns are cut so that there is work for _PROGRAMS, and the units of a split:
    whole steps of the loop, at least two."""
    steps = triton.cdiv(num_units, _UNITS)
    wanted = min(triton.cdiv(_PROGRAMS, num_tiles), _MAX_SPLITS, max(1, steps // 2))
    split_steps = triton.cdiv(steps, wanted)
    return triton.cdiv(steps, split_steps), split_steps * _UNITS
