"""Which NVIDIA GPUs this process may use, as nvidia-smi tells. No torch, no CUDA."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

from ktops_engine.machine import GpuFacts
from ktops_engine.plan.rates import PCIE_BYTES_PER_LANE

# The link's generation falls while the GPU idles, its width does not: a narrow one is a bad slot.
_FIELDS = "index,uuid,name,memory.total,memory.free,pcie.link.gen.max,pcie.link.width.current"
COMMAND = ("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")
TIME_LIMIT_S = 10.0
_MIB = 1 << 20

Run = Callable[[Sequence[str]], str]


def detect_gpus(
    environ: Mapping[str, str] = os.environ, run: Run | None = None
) -> tuple[GpuFacts, ...]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES lets through, in nvidia-smi's order.

    Their memory's bandwidth and FLOP/s stay None: the driver does not tell. Empty when there is no
    nvidia-smi, or it fails; why is the doctor's question.
    """
    if environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    try:
        lines = (run or _run)(COMMAND).splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else {part.strip() for part in visible.split(",")}
    found = []
    for line in lines:
        fields = [part.strip() for part in line.split(",")]
        if len(fields) != _FIELDS.count(",") + 1:
            continue
        index, uuid, name, total, free, generation, lanes = fields
        is_visible = wanted is None or _is_named(index, uuid, wanted)
        if is_visible and total.isdigit() and free.isdigit():
            found.append(
                GpuFacts(
                    name=name,
                    total_bytes=int(total) * _MIB,
                    free_bytes=int(free) * _MIB,
                    pcie_bandwidth=pcie_bandwidth(generation, lanes),
                )
            )
    return tuple(found)


def pcie_bandwidth(generation: str, lanes: str) -> float | None:
    """Bytes/s from pinned RAM to the GPU over a link; None when it is not one we know."""
    if not (generation.isdigit() and lanes.isdigit()):
        return None
    per_lane = PCIE_BYTES_PER_LANE.get(int(generation))
    return None if per_lane is None else per_lane * int(lanes)


def _is_named(index: str, uuid: str, wanted: set[str]) -> bool:
    return index in wanted or any(part and uuid.startswith(part) for part in wanted)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=True)
    return done.stdout
