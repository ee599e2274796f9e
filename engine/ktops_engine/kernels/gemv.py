"""Products of quantised matrices with the few tokens of a decode step.

The weights are read once, each by one program, and unpacked in registers (`unpack`). One token:
sums in float32, lane by lane, here. More: products of bfloat16 (`gemv_many`). Plain weights have a
kernel of their own (`gemv_plain`). No atomics: a result is the same from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.gemv_many import MAX_TOKENS, many_tokens
from ktops_engine.kernels.gemv_plain import plain_gemv
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.kernels.unpack import (
    PANEL_ROWS,
    UNITS,
    load_header,
    load_run,
    panel_words,
    part_word,
    scale,
    value,
)


@triton.jit
def _one_token(
    data,
    panel,
    x,
    num_units,
    num_blocks,
    TYPE: tl.constexpr,
    PARTS: tl.constexpr,
    RUNS: tl.constexpr,
    UNITS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The products of 16 rows with one token: [16] float32. x: pointer to four bfloat16 at once."""
    row = tl.arange(0, 16)[None, :]
    panel = panel + row * 0
    acc = tl.zeros((UNITS, 16), tl.float32)
    for start in tl.range(0, num_units, UNITS, num_stages=STAGES):
        unit = (start + tl.arange(0, UNITS))[:, None]
        mask = unit < num_units
        header = load_header(TYPE, data, panel, row, unit, num_blocks, mask)
        for RUN in tl.static_range(RUNS):
            run = load_run(TYPE, RUN, data, panel, row, unit, mask)
            for PART in tl.static_range(PARTS):
                products = tl.zeros((UNITS, 16), tl.float32)
                sums = tl.zeros((UNITS, 1), tl.float32)
                for J in tl.static_range(4):
                    at = unit * (PARTS * RUNS * 4) + (4 * (PART * RUNS + RUN) + J)
                    four = tl.load(x + at, mask=mask, other=0)
                    word = part_word(TYPE, PART, J, run)
                    for K in tl.static_range(4):
                        # A bfloat16 is the upper half of a float32.
                        half = (four >> (32 * (K // 2))).to(tl.int32)
                        bits = half & -65536 if K % 2 else half << 16
                        x_k = bits.to(tl.float32, bitcast=True)
                        products += x_k * value(TYPE, PART, K, word, run[12])
                        sums += x_k
                a, b = scale(TYPE, PART, RUN, header, unit)
                acc += a * products - b * sums
    return tl.sum(acc, axis=0)


@triton.jit(do_not_specialize=["num_panels", "num_units", "num_blocks"])
def _one_token_kernel(
    data,
    up_data,
    x,
    y,
    num_panels,
    num_units,
    num_blocks,
    panel_stride,
    TYPE: tl.constexpr,
    PARTS: tl.constexpr,
    RUNS: tl.constexpr,
    UNITS: tl.constexpr,
    STAGES: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
):
    """One program: 16 rows of one head. x: int64 [heads, cols / 4]; y: [heads, rows]."""
    head = tl.program_id(1)
    panel = head * num_panels + tl.program_id(0)
    words = panel.to(tl.int64) * panel_stride
    x += head * num_units * (PARTS * RUNS * 4)
    result = _one_token(data, words, x, num_units, num_blocks, TYPE, PARTS, RUNS, UNITS, STAGES)
    if GATED:
        up = _one_token(up_data, words, x, num_units, num_blocks, TYPE, PARTS, RUNS, UNITS, STAGES)
        result = result * tl.sigmoid(result) * up
    targets = y + panel * 16 + tl.arange(0, 16)
    if ADD:
        result += tl.load(targets)
    tl.store(targets, result.to(y.dtype.element_ty))


def _launch(
    weight: GpuMatrix, up: GpuMatrix | None, x: torch.Tensor, y: torch.Tensor, add: bool
) -> None:
    """x: [tokens, heads, cols] bfloat16, y: [tokens, heads, rows] that is written or added to, both
    contiguous. With `up`, y is silu(weight x) * (up x)."""
    num_tokens, heads, cols = x.shape
    if weight.type is QuantType.BF16:
        plain_gemv(weight, up, x, y, add)
        return
    if num_tokens > 1:
        many_tokens(weight, up, x, y, add)
        return
    cut = UNITS[weight.type]
    num_panels = weight.rows // PANEL_ROWS
    num_units = cols // cut.cols
    num_warps = _num_warps(num_panels * heads, num_units)
    data = weight.data.view(torch.int32)
    _one_token_kernel[num_panels, heads](
        data,
        data if up is None else up.data.view(torch.int32),
        x.view(torch.int64),
        y,
        num_panels,
        num_units,
        cols // weight.type.block_size,
        panel_words(weight.type, cols),
        TYPE=int(weight.type),
        PARTS=cut.parts,
        RUNS=cut.runs,
        UNITS=8 * num_warps,
        STAGES=1,
        GATED=up is not None,
        ADD=add,
        num_warps=num_warps,
    )


def _num_warps(num_programs: int, num_units: int) -> int:
    """Warps a program. Each takes 8 units at a time; those that have none left in the last step are
    lost, and so are multiprocessors with fewer than about 16 warps."""

    def use(num_warps: int) -> float:
        step = 8 * num_warps
        steps = -(-num_units // step)
        return num_units / (steps * step) * min(1.0, num_warps * num_programs / (132 * 16))

    return max((1, 2, 4, 8, 16), key=use)


def _checked(weight: GpuMatrix, x: torch.Tensor) -> None:
    if x.dtype != torch.bfloat16 or not x.is_contiguous():
        raise ValueError(f"x is not contiguous bfloat16: {x.dtype}, strides {x.stride()}")
    if x.shape[-1] != weight.cols or not 1 <= x.shape[0] <= MAX_TOKENS:
        raise ValueError(f"x is {tuple(x.shape)}, the matrix has {weight.cols} columns")


def gemv(
    weight: GpuMatrix,
    x: torch.Tensor,
    *,
    add_to: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """x: [tokens, cols] bfloat16 contiguous, 1 to 16 tokens -> x @ weight.T, [tokens, rows].

    `add_to`: float32 [tokens, rows] contiguous; the product is added to it and it is returned.
    """
    _checked(weight, x)
    shape = (x.shape[0], weight.rows)
    if weight.num_experts != 1:
        raise ValueError(f"{weight.num_experts} matrices where one was expected")
    if add_to is None:
        y = torch.empty(shape, dtype=out_dtype, device=x.device)
    else:
        y = add_to
        if y.shape != shape or y.dtype != torch.float32 or not y.is_contiguous():
            raise ValueError(f"add_to is {y.dtype} {tuple(y.shape)}, not float32 {shape}")
    _launch(weight, None, x[:, None], y[:, None], add=add_to is not None)
    return y


def gemv_gate_up(gate: GpuMatrix, up: GpuMatrix, x: torch.Tensor) -> torch.Tensor:
    """x: [tokens, cols] bfloat16 -> silu(x @ gate.T) * (x @ up.T), [tokens, rows] bfloat16."""
    _checked(gate, x)
    if (gate.rows, gate.cols, gate.num_experts) != (up.rows, up.cols, up.num_experts):
        raise ValueError(f"gate is {gate.rows} x {gate.cols}, up {up.rows} x {up.cols}")
    if gate.type is not up.type:
        gated = torch.nn.functional.silu(gemv(gate, x, out_dtype=torch.float32))
        return (gated * gemv(up, x, out_dtype=torch.float32)).to(torch.bfloat16)
    y = torch.empty(x.shape[0], gate.rows, dtype=torch.bfloat16, device=x.device)
    _launch(gate, up, x[:, None], y[:, None], add=False)
    return y


def gemv_heads(weight: GpuMatrix, x: torch.Tensor) -> torch.Tensor:
    """x: [tokens, heads, cols] bfloat16 -> [tokens, heads, rows]: head h by matrix h."""
    _checked(weight, x)
    if x.dim() != 3 or x.shape[1] != weight.num_experts:
        raise ValueError(f"x is {tuple(x.shape)}, there are {weight.num_experts} matrices")
    y = torch.empty(*x.shape[:2], weight.rows, dtype=torch.bfloat16, device=x.device)
    _launch(weight, None, x, y, add=False)
    return y
