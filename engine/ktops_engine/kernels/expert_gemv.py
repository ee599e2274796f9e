"""A few tokens through the experts that lie in GPU memory.

For decode, where every weight is read once and used once. A device table says where an expert lies,
so that nothing waits for the host and the launches can be captured in a graph: what belongs to
experts that lie elsewhere is not read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.gguf import QuantType
from ktops_engine.kernels.grouped_gemm import ExpertMatrices
from ktops_engine.kernels.launch import launch
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.kernels.routing import Routing
from ktops_engine.kernels.unit_products import unit_products
from ktops_engine.kernels.units import PANEL_ROWS, UNITS, panel_words

GATE_WARPS = 8
DOWN_WARPS = 16
UNITS_A_WARP = 8  # lanes read 16 bytes, of 4 rows


def resident_experts(
    routing: Routing,
    experts: ExpertMatrices,
    slots: torch.Tensor,
    y: torch.Tensor,
    inner: torch.Tensor | None = None,
    *,
    adds: bool = True,
) -> None:
    """y[t] += sum over k of w[t, k] * down_e(silu(gate_e h[t]) * (up_e h[t])), e = ids[t, k], for
    the experts that have a slot; y[t] = that sum, unless it `adds`.

    slots: [num_experts] int32, negative: not here; y: [tokens, hidden] float32, contiguous.
    inner: [tokens * top_k at least, intermediate] bfloat16 to work in, taken when None.
    """
    h, expert_ids, expert_weights = routing
    num_tokens, top_k = expert_ids.shape
    gate, up, down = experts.gate, experts.up, experts.down
    if inner is None:
        inner = torch.empty(num_tokens * top_k, gate.rows, dtype=torch.bfloat16, device=h.device)
    launch(
        _gate_up, (gate.rows // PANEL_ROWS, num_tokens * top_k),
        h.view(torch.int64), gate.data.view(torch.int32), up.data.view(torch.int32), inner,
        expert_ids, slots,
        TOP_K=top_k, **_sizes(gate, GATE_WARPS),
    )  # fmt: skip
    launch(
        _down, (down.rows // PANEL_ROWS, num_tokens),
        inner.view(torch.int64), down.data.view(torch.int32), y, expert_ids, expert_weights, slots,
        TOP_K=top_k, ADDS=adds, **_sizes(down, DOWN_WARPS),
    )  # fmt: skip


def _sizes(matrix: GpuMatrix, num_warps: int) -> dict[str, int]:
    """Constants of a launch."""
    cut = UNITS[QuantType(matrix.type)]
    return {
        "TYPE": int(matrix.type),
        "PARTS": cut.parts,
        "RUNS": cut.runs,
        "NUM_PANELS": matrix.rows // PANEL_ROWS,
        "NUM_UNITS": matrix.cols // cut.cols,
        "NUM_BLOCKS": matrix.cols // QuantType(matrix.type).block_size,
        "PANEL_WORDS": panel_words(matrix.type, matrix.cols),
        "UNITS": UNITS_A_WARP * num_warps,
        "num_warps": num_warps,
    }


@triton.jit
def _slot(expert_ids, slots, pair, mask):
    """Where pairs' experts lie, negative: not here."""
    expert = tl.load(expert_ids + pair, mask=mask, other=-1)
    return tl.load(slots + expert, mask=expert >= 0, other=-1).to(tl.int64)


@triton.jit
def _gate_up(
    x, gate, up, h, expert_ids, slots,
    TYPE: tl.constexpr, PARTS: tl.constexpr, RUNS: tl.constexpr, NUM_PANELS: tl.constexpr,
    NUM_UNITS: tl.constexpr, NUM_BLOCKS: tl.constexpr, PANEL_WORDS: tl.constexpr,
    UNITS: tl.constexpr, TOP_K: tl.constexpr,
):  # fmt: skip
    """One program: a panel of 16 rows and a pair. x: int64 [tokens, hidden / 4]."""
    pair = tl.program_id(1)
    slot = _slot(expert_ids, slots, pair, True)
    if slot >= 0:
        panel = (slot * NUM_PANELS + tl.program_id(0)) * PANEL_WORDS
        row = tl.arange(0, 16)[None, :]
        panel = panel + row * 0
        x += (pair // TOP_K) * NUM_UNITS * (PARTS * RUNS * 4)
        gates = tl.zeros((UNITS, 16), tl.float32)
        ups = tl.zeros((UNITS, 16), tl.float32)
        for start in range(0, NUM_UNITS, UNITS):
            unit = (start + tl.arange(0, UNITS))[:, None]
            mask = unit < NUM_UNITS
            gates += unit_products(
                gate, panel, row, unit, mask, NUM_BLOCKS, (x,), unit, TYPE, PARTS, RUNS
            )[0]
            ups += unit_products(
                up, panel, row, unit, mask, NUM_BLOCKS, (x,), unit, TYPE, PARTS, RUNS
            )[0]
        result = tl.sum(gates, axis=0)
        result = result * tl.sigmoid(result) * tl.sum(ups, axis=0)
        rows = pair * (NUM_PANELS * 16) + tl.program_id(0) * 16 + tl.arange(0, 16)
        tl.store(h + rows, result.to(tl.bfloat16))


@triton.jit
def _down(
    h, down, y, expert_ids, expert_weights, slots,
    TYPE: tl.constexpr, PARTS: tl.constexpr, RUNS: tl.constexpr, NUM_PANELS: tl.constexpr,
    NUM_UNITS: tl.constexpr, NUM_BLOCKS: tl.constexpr, PANEL_WORDS: tl.constexpr,
    UNITS: tl.constexpr, TOP_K: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """One program: 16 rows of a token; the units of all its experts are one long row to it. h:
    int64 [pairs, intermediate / 4]."""
    token = tl.program_id(1)
    row = tl.arange(0, 16)[None, :]
    total = tl.zeros((UNITS, 16), tl.float32)
    for start in range(0, NUM_UNITS * TOP_K, UNITS):
        unit = (start + tl.arange(0, UNITS))[:, None]
        pair = token * TOP_K + unit // NUM_UNITS
        mask = unit < NUM_UNITS * TOP_K
        slot = _slot(expert_ids, slots, pair, mask)
        mask = slot >= 0
        weight = tl.load(expert_weights + pair, mask=mask, other=0.0)
        panel = (slot * NUM_PANELS + tl.program_id(0)) * PANEL_WORDS + row * 0
        place = unit % NUM_UNITS
        at = token * (TOP_K * NUM_UNITS) + unit
        products = unit_products(
            down, panel, row, place, mask, NUM_BLOCKS, (h,), at, TYPE, PARTS, RUNS
        )
        total += weight * products[0]
    target = y + token * (NUM_PANELS * 16) + tl.program_id(0) * 16 + tl.arange(0, 16)
    result = tl.sum(total, axis=0)
    if ADDS:
        result += tl.load(target)
    tl.store(target, result)
