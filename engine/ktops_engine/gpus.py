"""Which NVIDIA GPUs this process may use, as nvidia-smi tells. torch is not imported for it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path

from ktops_engine.errors import KtopsError
from ktops_engine.machine import GpuFacts, MachineFacts, detect_machine
from ktops_engine.plan.rates import PCIE_BYTES_PER_LANE
from ktops_engine.text import Text, text
from ktops_engine.visible_gpus import visible_gpus

# The link's generation falls while the GPU idles, its width does not: a narrow one is a bad slot.
_FIELDS = "index,uuid,name,memory.total,memory.free,pcie.link.gen.max,pcie.link.width.current"
COMMAND = ("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")
TIME_LIMIT_S = 10.0
# Names the wheel that fits this machine's driver.
TORCH_CHECK = "ktops doctor --only py.torch_cuda"
_MIB = 1 << 20

Run = Callable[[Sequence[str]], str]


def engine_machine() -> MachineFacts:
    """This machine as the engine sees it: its GPUs, and what keeps it from computing on them."""
    gpus = detect_gpus()
    obstacle = find_gpu_obstacle() if gpus else None
    return replace(detect_machine(), gpus=gpus, gpu_obstacle=obstacle)


def find_gpu_obstacle() -> Text | None:
    """What the engine's GPU kernels lack in this Python, None when nothing. Told from files:
    importing torch takes seconds."""
    if not torch_has_cuda():
        return text("torch here was built without CUDA; {command}", command=TORCH_CHECK)
    if importlib.util.find_spec("triton") is None:
        return text("Triton is not installed; {command}", command="pip install triton")
    return None


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    try:
        version = (Path(found.origin).parent / "version.py").read_text()
    except OSError:
        return False
    return re.search(r"^cuda\b[^=\n]*= *['\"]", version, re.MULTILINE) is not None


def detect_gpus(
    environ: Mapping[str, str] = os.environ, run: Run | None = None
) -> tuple[GpuFacts, ...]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES lets through, in its order; without it in
    nvidia-smi's. A number means the GPU that nvidia-smi gives it to: see `count_as_nvidia_smi`.

    Their memory's bandwidth and FLOP/s stay None: the driver does not tell. Empty when there is no
    nvidia-smi, or it fails; why is the doctor's question.
    """
    variable = environ.get("CUDA_VISIBLE_DEVICES")
    if variable == "":
        return ()
    try:
        lines = (run or _run)(COMMAND).splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    found: list[tuple[str, GpuFacts]] = []
    for line in lines:
        fields = [part.strip() for part in line.split(",")]
        if len(fields) != _FIELDS.count(",") + 1:
            continue
        index, uuid, name, total, free, generation, lanes = fields
        if total.isdigit() and free.isdigit():
            gpu = GpuFacts(
                name=name,
                total_bytes=int(total) * _MIB,
                free_bytes=int(free) * _MIB,
                pcie_bandwidth=pcie_bandwidth(generation, lanes),
                uuid=uuid,
            )
            found.append((index, gpu))
    places = visible_gpus(variable, [(index, gpu.uuid) for index, gpu in found])
    return tuple(found[place][1] for place in places)


def count_as_nvidia_smi(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have CUDA count GPUs by their place on the bus, as nvidia-smi does and with it the plan: by
    itself it begins with the fastest. Works until something in this process has used CUDA."""
    environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"


def check_order(planned: Sequence[str], found: Sequence[str]) -> None:
    """Refuse GPUs that CUDA counts otherwise than the plan: UUIDs of both, in their order, with or
    without "GPU-" before them.

    A GPU that the plan does not know, such as a slice of one, is nobody's mistake.

    Raises KtopsError "gpu-order".
    """
    names = [uuid.removeprefix("GPU-") for uuid in planned]
    for index, uuid in enumerate(uuid.removeprefix("GPU-") for uuid in found):
        if uuid in names and names.index(uuid) != index:
            raise KtopsError(
                "gpu-order",
                text(
                    "CUDA counts GPUs in another order than nvidia-smi here, so the plan would go "
                    "to the wrong ones"
                ),
                "export CUDA_DEVICE_ORDER=PCI_BUS_ID",
            )


def pcie_bandwidth(generation: str, lanes: str) -> float | None:
    """Bytes/s from pinned RAM to the GPU over a link; None when it is not one we know."""
    if not (generation.isdigit() and lanes.isdigit()):
        return None
    per_lane = PCIE_BYTES_PER_LANE.get(int(generation))
    return None if per_lane is None else per_lane * int(lanes)


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=True)
    return done.stdout
