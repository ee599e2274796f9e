"""Some tokens and their experts from the GPU that routed them to where another GPU reads them."""

from __future__ import annotations

import triton
import triton.language as tl

from ktops_engine.kernels.launch import launch
from ktops_engine.kernels.routing import Routing

COLS = 1024


def send(routing: Routing, target: Routing) -> None:
    """Copy tokens, ids and weights to `target`, in one launch: tensors of the same shapes, on this
    GPU, on one whose memory this one reaches, or in pinned RAM."""
    num_tokens, hidden = routing.h.shape
    top_k = routing.expert_ids.shape[1]
    launch(
        _send, (triton.cdiv(hidden, COLS), num_tokens),
        *routing, *target,
        HIDDEN=hidden, TOP_K=top_k, COLS=COLS, PAIRS=triton.next_power_of_2(top_k),
    )  # fmt: skip


@triton.jit
def _send(
    h, expert_ids, expert_weights, h_target, ids_target, weights_target,
    HIDDEN: tl.constexpr, TOP_K: tl.constexpr, COLS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Programs [columns, tokens]; those of the first columns take the experts along."""
    token = tl.program_id(1)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    at = token * HIDDEN + cols
    mask = cols < HIDDEN
    tl.store(h_target + at, tl.load(h + at, mask=mask), mask=mask)
    if tl.program_id(0) == 0:
        pairs = token * TOP_K + tl.arange(0, PAIRS)
        is_pair = tl.arange(0, PAIRS) < TOP_K
        ids = tl.load(expert_ids + pairs, mask=is_pair)
        tl.store(ids_target + pairs, ids, mask=is_pair)
        weights = tl.load(expert_weights + pairs, mask=is_pair)
        tl.store(weights_target + pairs, weights, mask=is_pair)
