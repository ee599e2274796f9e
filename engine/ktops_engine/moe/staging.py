"""Buffers between RAM and the GPU, and the streams that fill and empty them.

Where there is no GPU (kernels are interpreted, in tests) everything happens at once, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ktops_engine.kernels.routing import Routing

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

NUM_BUFFERS = 3  # one that is computed with, one that has come, one that is filled


class Staging:
    """Buffers in turn, and one that is filled ahead. Each is filled on the copy stream once the
    kernels are done that used it, and used on the current stream once it is filled.

    They take (NUM_BUFFERS * group_experts + ahead_experts) * expert_bytes of GPU memory.
    """

    def __init__(
        self, device: torch.device, expert_bytes: int, group_experts: int, ahead_experts: int
    ) -> None:
        self.group_experts = group_experts
        self.ahead_experts = ahead_experts
        self._device = device
        self._on_gpu = device.type == "cuda"
        sizes = [group_experts] * NUM_BUFFERS + [ahead_experts]
        self._buffers = [
            torch.empty(size * expert_bytes, dtype=torch.uint8, device=device) for size in sizes
        ]
        self._turn = 0
        self._host: dict[str, torch.Tensor] = {}
        if self._on_gpu:
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._to_host = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._used = [_event() for _ in self._buffers]
            self._filled = [_event() for _ in self._buffers]

    def next_buffer(self) -> int:
        """Number of the buffer whose turn it is."""
        self._turn = (self._turn + 1) % NUM_BUFFERS
        return self._turn

    @property
    def ahead(self) -> int:
        """Number of the buffer that is filled ahead."""
        return NUM_BUFFERS

    @contextmanager
    def filling(self, buffer: int) -> Iterator[torch.Tensor]:
        """Within, copies from pinned memory into the buffer are queued on the copy stream."""
        if not self._on_gpu:
            yield self._buffers[buffer]
            return
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._used[buffer])
            yield self._buffers[buffer]
            self._filled[buffer].record()

    @contextmanager
    def using(self, buffer: int) -> Iterator[None]:
        """Within, kernels that read the buffer are queued on the current stream."""
        if self._on_gpu:
            torch.cuda.current_stream(self._device).wait_event(self._filled[buffer])
        yield
        if self._on_gpu:
            self._used[buffer].record()

    def mark(self) -> Any:
        """A point in the current stream."""
        if not self._on_gpu:
            return None
        event = _event(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, began: Any, ended: Any) -> float:
        """Between two marks, waiting for the second."""
        if not self._on_gpu:
            return 0.0
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000

    def host_rows(self, name: str, shape: torch.Size) -> torch.Tensor:
        """A float32 tensor in RAM that the GPU reaches, the same memory for each name. It grows to
        powers of two, which is how torch takes pinned memory anyway."""
        wanted = shape.numel()
        if name not in self._host or self._host[name].numel() < wanted:
            self._host.pop(name, None)  # before more is taken: torch may use it for others
            size = 1 << (wanted - 1).bit_length()
            self._host[name] = torch.empty(size, dtype=torch.float32, pin_memory=self._on_gpu)
        return self._host[name][:wanted].view(shape)

    def to_host(
        self, x: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[], None]]:
        """Queue rows of x, as float32, to RAM, beside what the current stream does from now on.
        Returns where they will be, and what waits for them."""
        picked = x.index_select(0, rows).float()
        target = self.host_rows("x", picked.shape)
        if not self._on_gpu:
            target.copy_(picked)
            return target, lambda: None
        self._to_host.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._to_host):
            target.copy_(picked, non_blocking=True)
            picked.record_stream(self._to_host)
            done = _event()
            done.record()
        return target, done.synchronize

    def read_choice(self, routing: Routing) -> Callable[[], tuple[Ids, Floats]]:
        """Queue copies of experts' ids and weights to RAM; returns what waits for them, and for
        nothing queued later: [tokens, top_k] each."""
        ids, weights = routing.expert_ids, routing.expert_weights
        if not self._on_gpu:
            return lambda: (ids.numpy(), weights.numpy())
        copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            for tensor in (ids, weights)
        ]
        for copy, tensor in zip(copies, (ids, weights), strict=True):
            copy.copy_(tensor, non_blocking=True)
        done = _event()
        done.record()

        def wait() -> tuple[Ids, Floats]:
            done.synchronize()
            return copies[0].numpy(), copies[1].numpy()

        return wait

    def from_host(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows in RAM, brought to the device; to be used on the current stream."""
        return rows.to(self._device, non_blocking=True)


def _event(*, enable_timing: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=enable_timing)  # type: ignore[no-untyped-call]
