"""A model's weights in GPU memory: read block by block through RAM, packed as the kernels want."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import torch

from ktops_engine.gguf import GgufModel, QuantType
from ktops_engine.kernels.matrix import GpuMatrix
from ktops_engine.models.pieces import PANEL_ROWS
from ktops_engine.models.weights import Weights
from ktops_engine.native.load import Native

# Small, and used as numbers rather than as matrices: kept exact.
_FLOAT32_SUFFIXES = ("norm.weight", "ffn_gate_inp.weight", ".bias")
ALIGNMENT = 512  # bytes, as torch's own pieces of GPU memory


class GpuWeights:
    """Tensors by name: float32 norms, routers and biases, and matrices.

    Quantised matrices keep the bytes of the file, packed; those of another type, or whose rows do
    not fill panels, become bfloat16. All are on one device, but the routed experts of some layers.
    """

    def __init__(
        self, device: torch.device, expert_devices: Mapping[int, torch.device] | None = None
    ) -> None:
        """`expert_devices`: of the routed experts by layer, where that is not `device`."""
        self.device = device
        self._expert_devices = dict(expert_devices or {})
        self._float32: dict[str, torch.Tensor] = {}
        self._matrices: dict[str, GpuMatrix] = {}

    def load(
        self, native: Native, gguf: GgufModel, names: Iterable[str], fill: Callable[[Weights], None]
    ) -> None:
        """Take the tensors of one layer after the other through RAM, those of routed experts each
        alone; `fill` gives them their values there.

        Raises KtopsError as `fill`, and torch.OutOfMemoryError.
        """
        for group in _by_layer(names):
            staged = Weights(native, gguf, group)
            try:
                fill(staged)
                self._take(staged, gguf, group)
            finally:
                staged.free()

    def expert_device(self, layer: int) -> torch.device:
        """Where the routed experts of a layer are, if they were loaded."""
        return self._expert_devices.get(layer, self.device)

    def _take(self, staged: Weights, gguf: GgufModel, group: Sequence[str]) -> None:
        """Copy tensors that belong on one device."""
        is_routed = "_exps." in group[0]
        device = self.expert_device(int(group[0].split(".")[1])) if is_routed else self.device
        for name, data in zip(
            group, _copied([_as_kept(staged, gguf, name) for name in group], device), strict=True
        ):
            if name.endswith(_FLOAT32_SUFFIXES):
                self._float32[name] = data
                continue
            info = gguf.tensors[name]
            *experts, rows, cols = info.shape
            type = QuantType.BF16 if data.dtype == torch.bfloat16 else info.type
            self._matrices[name] = GpuMatrix(data, type, rows, cols, math.prod(experts))

    def __contains__(self, name: str) -> bool:
        return name in self._matrices or name in self._float32

    def matrix(self, name: str) -> GpuMatrix:
        """A matrix that was loaded."""
        return self._matrices[name]

    def float32(self, name: str) -> torch.Tensor:
        """A norm, router or bias that was loaded, in its shape."""
        return self._float32[name]


def _as_kept(staged: Weights, gguf: GgufModel, name: str) -> torch.Tensor:
    """A tensor in the form it has on the GPU, still in RAM."""
    info = gguf.tensors[name]
    if name.endswith(_FLOAT32_SUFFIXES):
        return staged.float32(name)
    if info.type.block_size > 1 and info.shape[-2] % PANEL_ROWS == 0:
        return torch.frombuffer(staged.data(name), dtype=torch.uint8)
    return staged.float32(name).bfloat16()


def _copied(tensors: Sequence[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Copies on a device, in one piece of its memory: to each alone torch would give more than it
    takes, 0.8 GiB in all for what every token uses of R1."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    room = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    for tensor, piece in zip(tensors, torch.split(room, sizes), strict=True):
        copy = piece[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        yield copy.copy_(tensor)


def _by_layer(names: Iterable[str]) -> Iterator[list[str]]:
    """Names in groups that belong to one layer, large ones and those outside layers each alone."""

    def layer(name: str) -> str:
        kind, _, rest = name.partition(".")
        return rest.partition(".")[0] if kind == "blk" and "_exps." not in name else name

    for _, group in groupby(sorted(names, key=layer), key=layer):
        yield list(group)
