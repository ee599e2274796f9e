"""Products of quantised matrices with the few tokens of a decode step.

The weights are read once, each by one program, and unpacked in registers (`unpack`). 1 or 2
tokens: sums in float32, lane by lane (`gemv_few`). More: products of bfloat16 (`gemv_many`). Plain
weights have a kernel of their own (`gemv_plain`). No atomics: a result is the same from run to run.
"""

from __future__ import annotations

import torch

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.gemv_few import FEW_TOKENS, few_tokens
from ktops_engine.kernels.gemv_many import TILE_ROWS, many_tokens
from ktops_engine.kernels.gemv_plain import plain_gemv
from ktops_engine.kernels.matrix import MAX_FEW_TOKENS, GpuMatrix, Join


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
    _check(weight, x)
    shape = (x.shape[0], weight.rows)
    if weight.num_experts != 1:
        raise ValueError(f"{weight.num_experts} matrices where one was expected")
    if add_to is None:
        y = torch.empty(shape, dtype=out_dtype, device=x.device)
    else:
        y = add_to
        if y.shape != shape or y.dtype != torch.float32 or not y.is_contiguous():
            raise ValueError(f"add_to is {y.dtype} {tuple(y.shape)}, not float32 {shape}")
    _launch(weight, None, Join.NONE, x[:, None], y[:, None], add=add_to is not None)
    return y


def gemv_gate_up(gate: GpuMatrix, up: GpuMatrix, x: torch.Tensor) -> torch.Tensor:
    """x: [tokens, cols] bfloat16 -> silu(x @ gate.T) * (x @ up.T), [tokens, rows] bfloat16."""
    _check(gate, x)
    if (gate.rows, gate.cols, gate.num_experts) != (up.rows, up.cols, up.num_experts):
        raise ValueError(f"gate is {gate.rows} x {gate.cols}, up {up.rows} x {up.cols}")
    if gate.type is not up.type:
        gated = torch.nn.functional.silu(gemv(gate, x, out_dtype=torch.float32))
        return (gated * gemv(up, x, out_dtype=torch.float32)).to(torch.bfloat16)
    y = torch.empty(x.shape[0], gate.rows, dtype=torch.bfloat16, device=x.device)
    _launch(gate, up, Join.GATED, x[:, None], y[:, None], add=False)
    return y


def gemv_stacked(
    top: GpuMatrix, below: GpuMatrix, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [tokens, cols] bfloat16 -> x @ top.T and x @ below.T, float32 [tokens, rows] each, rows
    contiguous in themselves; in one launch where types and rows allow it."""
    _check(top, x)
    if top.cols != below.cols or {top.num_experts, below.num_experts} != {1}:
        raise ValueError(f"one matrix has {top.cols} columns, the other {below.cols}")
    joined = top.type is below.type and top.type is not QuantType.BF16
    if not joined or top.rows % TILE_ROWS:
        return gemv(top, x, out_dtype=torch.float32), gemv(below, x, out_dtype=torch.float32)
    y = torch.empty(x.shape[0], top.rows + below.rows, dtype=torch.float32, device=x.device)
    _launch(top, below, Join.STACKED, x[:, None], y[:, None], add=False)
    return y[:, : top.rows], y[:, top.rows :]


def gemv_heads(weight: GpuMatrix, x: torch.Tensor) -> torch.Tensor:
    """x: [tokens, heads, cols] bfloat16, columns contiguous -> [tokens, heads, rows]: head h by
    matrix h."""
    _check(weight, x)
    if x.dim() != 3 or x.shape[1] != weight.num_experts:
        raise ValueError(f"x is {tuple(x.shape)}, there are {weight.num_experts} matrices")
    y = torch.empty(*x.shape[:2], weight.rows, dtype=torch.bfloat16, device=x.device)
    _launch(weight, None, Join.NONE, x, y, add=False)
    return y


def _launch(
    weight: GpuMatrix,
    other: GpuMatrix | None,
    join: Join,
    x: torch.Tensor,
    y: torch.Tensor,
    add: bool,
) -> None:
    """x: [tokens, heads, cols]; y: [tokens, heads, rows] contiguous, written or added to."""
    if weight.type is QuantType.BF16:
        plain_gemv(weight, other, x, y, add)
    elif x.shape[0] <= FEW_TOKENS:
        few_tokens(weight, other, join, x, y, add)
    else:
        many_tokens(weight, other, join, x, y, add)


def _check(weight: GpuMatrix, x: torch.Tensor) -> None:
    # Kernels read four columns at once.
    apart = [stride % 4 for stride in x.stride()[:-1]]
    if x.dtype != torch.bfloat16 or x.stride(-1) != 1 or any(apart):
        raise ValueError(f"x is {x.dtype}, strides {x.stride()}: not rows of bfloat16")
    if x.shape[-1] != weight.cols or not 1 <= x.shape[0] <= MAX_FEW_TOKENS:
        raise ValueError(f"x is {tuple(x.shape)}, the matrix has {weight.cols} columns")
