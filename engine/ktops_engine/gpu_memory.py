"""A GPU whose memory is full: said in a sentence, with all that was taken given back.

GPUs are counted as CUDA_VISIBLE_DEVICES does, from 0 on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.plan import Placement
from ktops_engine.plan.sizes import gib
from ktops_engine.text import Text, text

T = TypeVar("T")


def load_within(placement: Placement, load: Callable[[], T]) -> T:
    """What `load` returns. Raises as it does, and KtopsError "gpu-out-of-memory" in place of
    torch's, which names the GPU, what was to be put there and what was free."""
    return _within(load, partial(_load_failed, placement))


def compute_within(compute: Callable[[], T]) -> T:
    """What `compute` returns, a step. Raises as it does, and KtopsError "gpu-out-of-memory" in
    place of torch's."""
    return _within(compute, _step_failed)


def _within(work: Callable[[], T], failed: Callable[[int, int], KtopsError]) -> T:
    """`failed` makes the error of a GPU and of its bytes that were free."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        gpu = _named_gpu(error)
    free = could_be_had(gpu)
    # Here, where no traceback holds the tensors of those who did not get far enough.
    torch.cuda.empty_cache()
    raise failed(gpu, free)


def _load_failed(placement: Placement, gpu: int, free: int) -> KtopsError:
    planned = sum(share.total_bytes for share in placement.gpus if share.gpu_index == gpu)
    return KtopsError(
        "gpu-out-of-memory",
        text(
            "the memory of {gpu} ran out while the model was loaded: the plan takes {planned} "
            "GiB of it, and {free} GiB were free for this process",
            gpu=_one_of(len(placement.gpus), gpu),
            planned=gib(planned),
            free=gib(free),
        ),
        text(
            "see what else uses the GPU: nvidia-smi; or use less of it: "
            "ktops serve --gpu-memory {size}GiB",
            size=max(1, 9 * min(free, planned) // (10 << 30)),
        ),
        exit_status=EXIT_NOT_ENOUGH,
    )


def _step_failed(gpu: int, free: int) -> KtopsError:
    return KtopsError(
        "gpu-out-of-memory",
        text(
            "The memory of {gpu} ran out, with {free} GiB of it for this process; this step is "
            "lost.",
            gpu=_one_of(torch.cuda.device_count(), gpu),
            free=gib(free),
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


def _one_of(count: int, gpu: int) -> Text:
    return text("GPU {index}", index=gpu) if count > 1 else text("the GPU")
