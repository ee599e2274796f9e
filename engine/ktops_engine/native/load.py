"""Opens libktops.so and puts typed Python around it."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.memory import Matrix, NativeBuffer
from ktops_engine.native.pool import Pool
from ktops_engine.native.signatures import SIGNATURES
from ktops_engine.native.structs import ABI_VERSION, STRUCTS, BufferStruct, Status
from ktops_engine.text import text

__all__ = ["Matrix", "Native", "NativeBuffer", "Pool", "load_native"]


def load_native(info: BuildInfo) -> Native:
    """Opens a built library.

    Raises KtopsError: native-load-failed (not a library, or another one), native-abi (of another
    version), unknown-isa (KTOPS_ISA).
    """
    try:
        _check_complete(info.path)
        library = ctypes.CDLL(os.fspath(info.path))
        for name, (arguments, result) in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = result
            if name == "ktops_abi_version" and function() != ABI_VERSION:
                raise KtopsError(
                    "native-abi",
                    text(
                        "{path} has interface version {found}, this ktops needs {needed}.",
                        path=info.path,
                        found=function(),
                        needed=ABI_VERSION,
                    ),
                    "ktops build --force",
                )
    except (OSError, AttributeError, struct.error) as error:
        raise KtopsError(
            "native-load-failed",
            text("The kernel library cannot be loaded: {reason}.", reason=error),
            "ktops build --force",
        ) from error
    _check_struct_sizes(library, info)
    return Native(library)


def _check_complete(path: Path) -> None:
    """Raises OSError when a file is not ELF or ends before its last segment does: the dynamic
    linker maps such a file without looking and the process dies of SIGBUS."""
    content = path.read_bytes()
    if content[:5] != b"\x7fELF\x02":
        raise OSError(f"{path} is not a 64-bit ELF library")
    (table,) = struct.unpack_from("<Q", content, 32)
    entry_bytes, count = struct.unpack_from("<HH", content, 54)
    for index in range(count):
        entry = table + index * entry_bytes
        offset, _, _, file_bytes = struct.unpack_from("<QQQQ", content, entry + 8)
        if offset + file_bytes > len(content):
            raise OSError(f"{path} is truncated")


def _check_struct_sizes(library: ctypes.CDLL, info: BuildInfo) -> None:
    sizes = (ctypes.c_uint32 * len(STRUCTS))()
    count = library.ktops_struct_sizes(sizes, len(STRUCTS))
    expected = [ctypes.sizeof(kind) for kind in STRUCTS]
    if count != len(STRUCTS) or list(sizes) != expected:
        raise KtopsError(
            "native-abi",
            text(
                "{path} lays out its arguments in {found} bytes, this ktops in {expected}.",
                path=info.path,
                found=list(sizes),
                expected=expected,
            ),
            "ktops build --force",
        )


class Native:
    """The loaded library. `isa` is what new pools use, `isa_available` all this machine can run."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        name = ctypes.c_char_p()
        self.check(library.ktops_isa(ctypes.byref(name)), "choosing an instruction set")
        self.isa = (name.value or b"").decode()
        available: list[str] = []
        while found := library.ktops_isa_available(len(available)):
            available.append(found.decode())
        self.isa_available = tuple(available)

    @property
    def library(self) -> ctypes.CDLL:
        """The functions of ktops.h, with the types of their arguments."""
        return self._library

    def create_pool(self, cpus: Sequence[int], nodes: Sequence[int] | None = None) -> Pool:
        """Threads for `len(cpus)` CPUs: the caller and a worker pinned to each of `cpus[1:]`.

        `nodes` are those of the CPUs: rows are then shared out over them (`Pool.nodes`).

        Raises KtopsError: native-call (no CPUs), threads-failed, unknown-isa, out-of-memory.
        """
        handle = ctypes.c_void_p()
        array = (ctypes.c_int32 * len(cpus))(*cpus)
        status = self._library.ktops_pool_create(array, len(cpus), ctypes.byref(handle))
        self.check(status, f"starting {len(cpus)} threads")
        pool = Pool(self, self._library, handle)
        if nodes is not None:
            pool.set_nodes(nodes)
        return pool

    def alloc(self, num_bytes: int) -> NativeBuffer:
        """Zeroed memory on huge pages where possible. Raises KtopsError: out-of-memory."""
        granted = BufferStruct()
        status = self._library.ktops_alloc(num_bytes, ctypes.byref(granted))
        self.check(status, f"allocating {num_bytes} bytes")
        return NativeBuffer(self._library, granted)

    def dequantize(self, type: int, src_ptr: int, dst_ptr: int, count: int) -> None:
        """`count` weights at `src_ptr` as float32 at `dst_ptr`, on the calling thread.

        Raises KtopsError: native-call (unknown type, `count` not a multiple of the block).
        """
        status = self._library.ktops_dequantize(type, src_ptr, dst_ptr, count)
        if status:
            self.check(status, f"dequantizing {count} weights of type {type}")

    def dequantize_rows(self, weight: Matrix, first_row: int, num_rows: int, dst_ptr: int) -> None:
        """Some rows, counted on through the experts, of a matrix in any layout as float32
        [num_rows, cols] at `dst_ptr`, on the calling thread.

        Raises KtopsError: native-call (unknown type, rows that are not there).
        """
        status = self._library.ktops_dequantize_rows(weight.struct, first_row, num_rows, dst_ptr)
        if status:
            self.check(status, f"dequantizing {num_rows} rows from row {first_row} on")

    def check(self, status: int, doing: str) -> None:
        """Raises the KtopsError that stands for a status other than OK."""
        if status == Status.OK:
            return
        reason = self._library.ktops_status_string(status).decode()
        message = text(
            "The kernel library failed at {doing}: {reason}.", doing=doing, reason=reason
        )
        if status == Status.UNKNOWN_ISA:
            raise KtopsError("unknown-isa", message, "unset KTOPS_ISA")
        if status == Status.OUT_OF_MEMORY:
            raise KtopsError("out-of-memory", message, "free -h", exit_status=EXIT_NOT_ENOUGH)
        if status == Status.THREADS:
            raise KtopsError("threads-failed", message, "ulimit -u")
        raise KtopsError("native-call", message, "ktops doctor")
