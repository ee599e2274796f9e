"""A GPU whose memory is full: said in a sentence, with all that was taken given back.

GPUs are counted as CUDA_VISIBLE_DEVICES does, from 0 on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.plan import Placement
from ktops_engine.text import Text, text

T = TypeVar("T")
GIB = 1 << 30


def load_within(placement: Placement, load: Callable[[], T]) -> T:
    """What `load` returns. Raises as it does, and KtopsError "gpu-out-of-memory" in place of
    torch's, which names the GPU, what was to be put there and what was free."""
    try:
        return load()
    except torch.OutOfMemoryError as error:
        gpu = _named_gpu(error)
    free = could_be_had(gpu)
    # Here, where no traceback holds the tensors of those who did not get far enough.
    torch.cuda.empty_cache()
    planned = sum(share.total_bytes for share in placement.gpus if share.gpu_index == gpu)
    raise KtopsError(
        "gpu-out-of-memory",
        text(
            "the memory of {gpu} ran out while the model was loaded: the plan takes {planned:.1f} "
            "GiB of it, and {free:.1f} GiB were free for this process",
            gpu=_one_of_several(gpu) if len(placement.gpus) > 1 else text("the GPU"),
            planned=planned / GIB,
            free=free / GIB,
        ),
        text(
            "see what else uses the GPU: nvidia-smi; or use less of it: "
            "ktops serve --gpu-memory {size}GiB",
            size=max(1, 9 * min(free, planned) // (10 * GIB)),
        ),
        exit_status=EXIT_NOT_ENOUGH,
    )


def compute_within(compute: Callable[[], T]) -> T:
    """What `compute` returns, a step. Raises as it does, and KtopsError "gpu-out-of-memory" in
    place of torch's."""
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        gpu = _named_gpu(error)
    free = could_be_had(gpu)
    torch.cuda.empty_cache()
    raise KtopsError(
        "gpu-out-of-memory",
        text(
            "The memory of {gpu} ran out, with {free:.1f} GiB of it for this process; this step "
            "is lost.",
            gpu=_one_of_several(gpu) if torch.cuda.device_count() > 1 else text("the GPU"),
            free=free / GIB,
        ),
        "nvidia-smi",
        exit_status=EXIT_NOT_ENOUGH,
    )


def could_be_had(gpu: int = 0) -> int:
    """Bytes of a GPU that are free or this process' own; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    free, _ = torch.cuda.mem_get_info(gpu)
    return free + torch.cuda.memory_reserved(gpu)


def cuda_uuids() -> list[str]:
    """UUIDs of the GPUs that torch sees, in its order; empty without any."""
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(count)]


def _named_gpu(error: torch.OutOfMemoryError) -> int:
    """The GPU that torch's message says is full; the first one where it names none."""
    found = re.search(r"\bGPU (\d+)\b", str(error))
    return int(found[1]) if found else 0


def _one_of_several(gpu: int) -> Text:
    return text("GPU {index}", index=gpu)
