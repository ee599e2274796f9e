"""Weights in RAM as the GPU's copy engine reads them: pages registered with the driver, so that no
CPU copies on the way."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch

# A copy must not lie across two registered pieces, so these end at multiples of this address.
PIECE_BYTES = 1 << 30


def bytes_at(address: int, num_bytes: int) -> torch.Tensor:
    """A uint8 view of memory that the caller keeps alive."""
    return torch.frombuffer((ctypes.c_ubyte * num_bytes).from_address(address), dtype=torch.uint8)


@dataclass(frozen=True)
class Registration:
    """How far registering got: `num_bytes` from the start are pinned, `error` is CUDA's number for
    why not all, 0 when they are."""

    num_bytes: int
    error: int


def register(address: int, num_bytes: int) -> Registration:
    """Pin memory that begins at a page for the GPU, as far as the driver goes along (limits of
    locked memory, virtual machines). Copies from the rest work too, at a fraction of the speed.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    done = 0
    for start, end in _pieces(address, num_bytes):
        error = int(runtime.cudaHostRegister(start, end - start, 0))
        if error != 0:
            # The error would be raised by whatever comes next.
            with suppress(RuntimeError):
                torch.zeros(1, device="cuda")
            return Registration(done, error)
        done = end - address
    return Registration(done, 0)


def unregister(address: int, num_bytes: int) -> None:
    """Undo `register` for as many bytes as it pinned, before the memory is freed."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for start, _ in _pieces(address, num_bytes):
        runtime.cudaHostUnregister(start)


def copy_bytes(target: torch.Tensor, source: torch.Tensor) -> None:
    """Queue a copy from RAM, registered or not, to the GPU on the current stream. Both uint8, of
    one size and contiguous."""
    address = source.data_ptr()
    for start, end in _pieces(address, source.numel()):
        part = slice(start - address, end - address)
        target[part].copy_(source[part], non_blocking=True)


def _pieces(address: int, num_bytes: int) -> Iterator[tuple[int, int]]:
    """First and end address of each piece."""
    end = address + num_bytes
    while address < end:
        piece_end = min(end, (address // PIECE_BYTES + 1) * PIECE_BYTES)
        yield address, piece_end
        address = piece_end
