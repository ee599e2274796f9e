"""What a plan says: bytes by part on each device, and the numbers that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ktops_engine.plan.model_bytes import WEIGHT_PARTS, Part


@dataclass(frozen=True)
class Share:
    """What one device holds: bytes by part. `usable_bytes` is what it can give."""

    device: str
    usable_bytes: int
    parts: Mapping[Part, int]

    @property
    def gpu_index(self) -> int:
        """Which GPU it is, counted as CUDA_VISIBLE_DEVICES does. Raises ValueError for RAM."""
        return int(self.device.removeprefix("gpu"))

    @property
    def weights_bytes(self) -> int:
        return sum(self.parts.get(part, 0) for part in WEIGHT_PARTS)

    @property
    def routed_bytes(self) -> int:
        return self.parts.get(Part.ROUTED_EXPERTS, 0)

    @property
    def hot_bytes(self) -> int:
        return self.parts.get(Part.HOT_EXPERTS, 0)

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Placement:
    """Where everything goes, in bytes, and with how many threads it is computed.

    In RAM, weights stay quantised as they are in the file, except the key/value up-projection
    (`kv_up_bytes`): attention on the CPU reads it along both of its sides, which blocks of
    quantised values along one side do not allow, so it is held as float32. The latent cache is
    float32 there too (the CPU has no faster form), and bfloat16 on a GPU.

    `gpu_layers` counts the layers, from the first on, of which a GPU holds all that every token
    uses; with `gpu_head` they are all, and the output head is there too. What is not there, the CPU
    computes after them. The routed experts of whole layers are on GPUs, the first layers that have
    any in the order of `gpus`: `expert_layers_by_gpu` says how many are on each of them, and
    `gpu_experts` counts the experts of all.

    Of the layers after those, the `hot_experts` most used experts have copies on the first GPU: by
    the counts, a token's experts are `hot_share` of the time (by bytes, over all layers) among
    them.
    """

    cpus: tuple[int, ...]
    ctx_size: int
    block_size: int
    num_blocks: int
    prefill_chunk: int
    ram: Share
    gpus: tuple[Share, ...] = ()
    gpu_layers: int = 0
    gpu_head: bool = False
    gpu_experts: int = 0
    expert_layers_by_gpu: tuple[int, ...] = ()
    hot_experts: int = 0
    hot_share: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def num_threads(self) -> int:
        return len(self.cpus)

    @property
    def gpu_expert_layers(self) -> int:
        """Layers whose routed experts are on any GPU."""
        return sum(self.expert_layers_by_gpu)

    @property
    def is_hybrid(self) -> bool:
        """Whether GPU and CPU compute together."""
        return bool(self.gpus)

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.ram.usable_bytes

    @property
    def weights_bytes(self) -> int:
        """Bytes of quantised weights in RAM."""
        return self.ram.weights_bytes

    @property
    def kv_up_bytes(self) -> int:
        return self.ram.parts.get(Part.KV_UP, 0)

    @property
    def kv_cache_bytes(self) -> int:
        return self.ram.parts.get(Part.KV_CACHE, 0)

    @property
    def runtime_bytes(self) -> int:
        return self.ram.parts.get(Part.BUFFERS, 0)

    @property
    def total_bytes(self) -> int:
        """Bytes in RAM."""
        return self.ram.total_bytes

    @property
    def vram_bytes(self) -> int:
        return sum(share.total_bytes for share in self.gpus)

    @property
    def first_vram_bytes(self) -> int:
        """Bytes on the GPU that does what every token uses; 0 without one."""
        return self.gpus[0].total_bytes if self.gpus else 0

    @property
    def every_token_vram_bytes(self) -> int:
        """Bytes in GPU memory besides routed experts."""
        return sum(share.total_bytes - share.routed_bytes - share.hot_bytes for share in self.gpus)

    @property
    def hot_bytes(self) -> int:
        """Bytes of copies of routed experts in GPU memory."""
        return sum(share.hot_bytes for share in self.gpus)
