"""Weights and memory as the native library takes them."""

from __future__ import annotations

import ctypes
import weakref
from types import TracebackType
from typing import Self

from ktops_engine.native.structs import BufferStruct, Layout, MatrixStruct


class Matrix:
    """Weights [num_experts, rows, cols] in GGUF blocks at `data_ptr`, which the owner keeps alive.

    `type` is the GGML number; `cols` must be a multiple of its block. Both layouts take the same
    bytes; only quantised types have the packed one.
    """

    __slots__ = ("cols", "data_ptr", "layout", "num_experts", "rows", "struct", "type")

    def __init__(
        self,
        data_ptr: int,
        type: int,
        rows: int,
        cols: int,
        num_experts: int = 1,
        layout: Layout = Layout.GGUF,
    ) -> None:
        self.data_ptr = data_ptr
        self.type = int(type)
        self.rows = rows
        self.cols = cols
        self.num_experts = num_experts
        self.layout = layout
        self.struct = MatrixStruct(data_ptr, rows, cols, self.type, layout, num_experts, 0)


class NativeBuffer:
    """Memory of the library. `view` is its bytes; whatever is made from `view` keeps it alive."""

    def __init__(self, library: ctypes.CDLL, granted: BufferStruct) -> None:
        self.address: int = granted.address
        self.num_bytes: int = granted.num_bytes
        self.struct = BufferStruct(granted.address, granted.num_bytes, 0, 0)
        array = (ctypes.c_ubyte * granted.num_bytes).from_address(granted.address)
        release = weakref.finalize(array, library.ktops_free, ctypes.byref(granted))
        release.atexit = False  # the process is about to return it all
        self.view = memoryview(array).cast("B")

    def free(self) -> None:
        """Returns the memory: now, or as soon as the last thing made from `view` is gone."""
        self.view = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.free()
