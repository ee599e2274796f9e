"""A GPU whose memory is full: said in a sentence, with all that was taken given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.plan import Placement
from ktops_engine.text import text

T = TypeVar("T")
GIB = 1 << 30


def load_within(placement: Placement, load: Callable[[], T]) -> T:
    """What `load` returns. Raises as it does, and KtopsError "gpu-out-of-memory" in place of
    torch's."""
    try:
        return load()
    except torch.OutOfMemoryError:
        free = could_be_had()
    # Here, where no traceback holds the tensors of those who did not get far enough.
    torch.cuda.empty_cache()
    raise KtopsError(
        "gpu-out-of-memory",
        text(
            "the GPU's memory ran out while the model was loaded: the plan takes {planned:.1f} GiB "
            "of it, and {free:.1f} GiB were free for this process",
            planned=placement.vram_bytes / GIB,
            free=free / GIB,
        ),
        text(
            "see what else uses the GPU: nvidia-smi; or use less of it: "
            "ktops serve --gpu-memory {size}GiB",
            size=max(1, 9 * min(free, placement.vram_bytes) // (10 * GIB)),
        ),
        exit_status=EXIT_NOT_ENOUGH,
    )


def compute_within(compute: Callable[[], T]) -> T:
    """What `compute` returns, a step. Raises as it does, and KtopsError "gpu-out-of-memory" in
    place of torch's."""
    try:
        return compute()
    except torch.OutOfMemoryError:
        free = could_be_had()
    torch.cuda.empty_cache()
    raise KtopsError(
        "gpu-out-of-memory",
        text(
            "The GPU's memory ran out, with {free:.1f} GiB of it for this process; this step is "
            "lost.",
            free=free / GIB,
        ),
        "nvidia-smi",
        exit_status=EXIT_NOT_ENOUGH,
    )


def could_be_had() -> int:
    """Bytes of the first GPU that are free or this process' own; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved()
