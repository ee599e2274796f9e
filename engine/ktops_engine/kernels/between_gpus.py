"""Some tokens and their experts from the GPU that routed them to where another GPU reads them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ktops_engine.kernels.launch import launch

COLS = 1024


def send(
    h: torch.Tensor,
    expert_ids: torch.Tensor,
    expert_weights: torch.Tensor,
    target: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Copy all three to `target`, in one launch: tensors of the same shapes and types, on this GPU,
    on one whose memory this one reaches, or in pinned RAM.

    h: [tokens, hidden] bfloat16; expert_ids: [tokens, top_k] int32; expert_weights: float32. All
    contiguous.
    """
    num_tokens, hidden = h.shape
    top_k = expert_ids.shape[1]
    launch(
        _send, (triton.cdiv(hidden, COLS), num_tokens),
        h, expert_ids, expert_weights, *target,
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
