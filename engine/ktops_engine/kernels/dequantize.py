"""Quantised rows to bfloat16, for products with many tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.launch import launch
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.kernels.units import PANEL_ROWS, UNITS, panel_words
from ktops_engine.kernels.unpack import load_header, load_run, unpack_run

# The fastest of six on an H100: 2.3 TB/s read and written of 2.4.
_UNITS_A_PROGRAM, _NUM_WARPS = 16, 8


@triton.jit(do_not_specialize=["first_panel", "num_units", "num_blocks"])
def _dequantize_kernel(
    data,
    out,
    first_panel,
    num_units,
    num_blocks,
    panel_stride,
    TYPE: tl.constexpr,
    PARTS: tl.constexpr,
    RUNS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """One program: UNITS units of columns of one panel."""
    panel = tl.program_id(0)
    unit = (tl.program_id(1) * UNITS + tl.arange(0, UNITS))[:, None]
    row = tl.arange(0, 16)[None, :]
    mask = unit < num_units
    words = (first_panel + panel).to(tl.int64) * panel_stride + row * 0
    header = load_header(TYPE, data, words, row, unit, num_blocks, mask)
    row_of_out = (panel * 16 + row).to(tl.int64) * num_units
    targets = out + ((row_of_out + unit) * (PARTS * RUNS * 16))[:, :, None]
    targets += tl.arange(0, 16)[None, None, :]
    for RUN in tl.static_range(RUNS):
        run = load_run(TYPE, RUN, data, words, row, unit, mask)
        for PART in tl.static_range(PARTS):
            weights = unpack_run(TYPE, PART, RUN, run, header, unit)
            tl.store(targets + 16 * (PART * RUNS + RUN), weights, mask=mask[:, :, None])


def dequantize(
    weight: GpuMatrix,
    first_row: int = 0,
    num_rows: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows of a matrix, counted on through its experts, as bfloat16 [num_rows, cols].

    `first_row` and `num_rows` (all that follow, when not given) are multiples of 16 for quantised
    types. `out`: where the rows go, contiguous.
    """
    total = weight.num_experts * weight.rows
    count = total - first_row if num_rows is None else num_rows
    if not 0 <= first_row <= first_row + count <= total:
        raise ValueError(f"rows {first_row} to {first_row + count} of {total}")
    if out is None:
        out = torch.empty(count, weight.cols, dtype=torch.bfloat16, device=weight.data.device)
    elif out.shape != (count, weight.cols) or out.dtype != torch.bfloat16:
        raise ValueError(f"out is {out.dtype} {tuple(out.shape)}")
    if weight.type is QuantType.BF16:
        return out.copy_(weight.data.view(total, weight.cols)[first_row : first_row + count])
    if first_row % PANEL_ROWS or count % PANEL_ROWS or not out.is_contiguous():
        raise ValueError(f"rows {first_row} to {first_row + count} are not whole panels")
    cut = UNITS[weight.type]
    num_units = weight.cols // cut.cols
    grid = (count // PANEL_ROWS, triton.cdiv(num_units, _UNITS_A_PROGRAM))
    if count:
        launch(
            _dequantize_kernel,
            grid,
            weight.data.view(torch.int32),
            out,
            first_row // PANEL_ROWS,
            num_units,
            weight.cols // weight.type.block_size,
            panel_words(weight.type, weight.cols),
            TYPE=int(weight.type),
            PARTS=cut.parts,
            RUNS=cut.runs,
            UNITS=_UNITS_A_PROGRAM,
            num_warps=_NUM_WARPS,
        )
    return out
