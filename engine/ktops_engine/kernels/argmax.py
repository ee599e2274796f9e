"""The greatest logit of each sequence and its token, written where the host reads them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from ktops_engine.kernels.launch import launch

# Logits a program looks at. It writes one key; the few of a sequence are left to the host.
_COLS = 4096


@triton.jit
def _argmax_kernel(logits_ptr, keys_ptr, vocab_size, COLS: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = columns < vocab_size
    logits = tl.load(logits_ptr + row * vocab_size + columns, mask=inside, other=float("-inf"))
    bits = logits.to(tl.int32, bitcast=True)
    sortable = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    sortable = tl.where(logits == logits, sortable, 0x7FFFFFFF)  # what is no number is greatest
    keys = (sortable.to(tl.int64) << 32) + (0x7FFFFFFF - columns)
    tl.store(keys_ptr + row * tl.num_programs(0) + tl.program_id(0), tl.max(keys, axis=0))


def new_keys(logits: torch.Tensor) -> torch.Tensor:
    """Memory in RAM for what `argmax` finds in logits of this shape, on this device."""
    shape = logits.shape[0], triton.cdiv(logits.shape[1], _COLS)
    return torch.zeros(shape, dtype=torch.int64, pin_memory=logits.is_cuda)


def argmax(logits: torch.Tensor, keys: torch.Tensor) -> None:
    """logits: [rows, vocab_size] float32, contiguous -> keys, of `new_keys`: int64, the greatest of
    each piece of a row, its order above, its place below, smaller ones first."""
    num_rows, vocab_size = logits.shape
    shape = num_rows, triton.cdiv(vocab_size, _COLS)
    if not logits.is_contiguous() or logits.dtype != torch.float32 or keys.shape != shape:
        raise ValueError(f"argmax of {tuple(logits.shape)} {logits.dtype} to {tuple(keys.shape)}")
    launch(_argmax_kernel, shape[::-1], logits, keys, vocab_size, COLS=_COLS, num_warps=8)


def read(keys: torch.Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """What `argmax` found, once the stream has done it -> tokens and logits, [rows] each: of equal
    logits the first token; a logit that is not a number where there is one."""
    best = keys.numpy().max(axis=1)
    bits = (best >> 32).astype(np.int32)
    bits = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    return 0x7FFFFFFF - (best & 0xFFFFFFFF), bits.view(np.float32)
