"""Opens libktops.so and puts typed Python around it."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from ktops_engine.errors import EXIT_NOT_ENOUGH, KtopsError
from ktops_engine.native.cache import BuildInfo
from ktops_engine.native.structs import (
    ABI_VERSION,
    STRUCTS,
    BufferStruct,
    FfnDecodeArgs,
    HandoffArgs,
    HandoffLayout,
    HandoffTraffic,
    Layout,
    MatmulArgs,
    MatrixStruct,
    MlaDecodeArgs,
    MoeArgs,
    ReadArgs,
    Status,
)
from ktops_engine.text import text

_SIGNATURES: dict[str, tuple[list[object], object]] = {
    "ktops_abi_version": ([], ctypes.c_uint32),
    "ktops_struct_sizes": ([ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint32], ctypes.c_uint32),
    "ktops_status_string": ([ctypes.c_int32], ctypes.c_char_p),
    "ktops_isa": ([ctypes.POINTER(ctypes.c_char_p)], ctypes.c_int32),
    "ktops_isa_available": ([ctypes.c_uint32], ctypes.c_char_p),
    "ktops_type_block": (
        [ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.c_uint32)],
        ctypes.c_int32,
    ),
    "ktops_alloc": ([ctypes.c_uint64, ctypes.POINTER(BufferStruct)], ctypes.c_int32),
    "ktops_free": ([ctypes.POINTER(BufferStruct)], ctypes.c_int32),
    "ktops_pool_create": (
        [ctypes.POINTER(ctypes.c_int32), ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p)],
        ctypes.c_int32,
    ),
    "ktops_pool_destroy": ([ctypes.c_void_p], ctypes.c_int32),
    "ktops_pool_set_nodes": (
        [
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_uint32,
            ctypes.POINTER(ctypes.c_uint32),
        ],
        ctypes.c_int32,
    ),
    "ktops_place": (
        [
            ctypes.c_void_p,
            ctypes.POINTER(BufferStruct),
            ctypes.POINTER(MatrixStruct),
            ctypes.POINTER(ctypes.c_int32),
        ],
        ctypes.c_int32,
    ),
    "ktops_hold": (
        [ctypes.POINTER(BufferStruct), ctypes.POINTER(ctypes.c_int32)],
        ctypes.c_int32,
    ),
    "ktops_count_placed": (
        [
            ctypes.c_void_p,
            ctypes.POINTER(BufferStruct),
            ctypes.POINTER(MatrixStruct),
            ctypes.POINTER(ctypes.c_uint64),
            ctypes.POINTER(ctypes.c_uint64),
            ctypes.POINTER(ctypes.c_int32),
        ],
        ctypes.c_int32,
    ),
    "ktops_matmul": ([ctypes.c_void_p, ctypes.POINTER(MatmulArgs)], ctypes.c_int32),
    "ktops_moe_forward": ([ctypes.c_void_p, ctypes.POINTER(MoeArgs)], ctypes.c_int32),
    "ktops_mla_decode": ([ctypes.c_void_p, ctypes.POINTER(MlaDecodeArgs)], ctypes.c_int32),
    "ktops_ffn_decode": ([ctypes.c_void_p, ctypes.POINTER(FfnDecodeArgs)], ctypes.c_int32),
    "ktops_pack": (
        [ctypes.c_void_p, ctypes.POINTER(MatrixStruct), ctypes.c_void_p],
        ctypes.c_int32,
    ),
    "ktops_read": ([ctypes.c_void_p, ctypes.POINTER(ReadArgs)], ctypes.c_int32),
    "ktops_dequantize": (
        [ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64],
        ctypes.c_int32,
    ),
    "ktops_dequantize_rows": (
        [ctypes.POINTER(MatrixStruct), ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p],
        ctypes.c_int32,
    ),
    "ktops_handoff_layout_of": (
        [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(HandoffLayout)],
        ctypes.c_int32,
    ),
    "ktops_handoff_create": (
        [ctypes.POINTER(HandoffArgs), ctypes.POINTER(ctypes.c_void_p)],
        ctypes.c_int32,
    ),
    "ktops_handoff_destroy": ([ctypes.c_void_p], ctypes.c_int32),
    "ktops_handoff_serve": (
        [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64],
        ctypes.c_int32,
    ),
    "ktops_handoff_cancel": ([ctypes.c_void_p], ctypes.c_int32),
    "ktops_handoff_reset": ([ctypes.c_void_p], ctypes.c_int32),
    "ktops_handoff_get_traffic": (
        [ctypes.c_void_p, ctypes.POINTER(HandoffTraffic)],
        ctypes.c_int32,
    ),
}


def load_native(info: BuildInfo) -> Native:
    """Opens a built library.

    Raises KtopsError: native-load-failed (not a library, or another one), native-abi (of another
    version), unknown-isa (KTOPS_ISA).
    """
    try:
        _check_complete(info.path)
        library = ctypes.CDLL(os.fspath(info.path))
        for name, (arguments, result) in _SIGNATURES.items():
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


class Pool:
    """Threads that multiply. One call runs at a time; callers from other threads wait.

    All pointers are addresses of contiguous memory that stays valid during the call. `nodes` are
    the NUMA nodes that rows are shared out over, empty when they belong to no node.
    """

    def __init__(self, native: Native, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._native = native
        self._lock = threading.Lock()
        self._library = library
        self.nodes: tuple[int, ...] = ()
        self._matmul = library.ktops_matmul
        self._moe_forward = library.ktops_moe_forward
        self._mla_decode = library.ktops_mla_decode
        self._ffn_decode = library.ktops_ffn_decode
        self._pack = library.ktops_pack
        self._read = library.ktops_read
        self._handle: ctypes.c_void_p | None = handle
        # Made once: filling fields is cheaper than making structs.
        self._matmul_args = MatmulArgs()
        self._matmul_pointer = ctypes.pointer(self._matmul_args)
        self._moe_args = MoeArgs()
        self._moe_pointer = ctypes.pointer(self._moe_args)
        self._release = weakref.finalize(self, library.ktops_pool_destroy, handle)
        self._release.atexit = False  # workers end with the process

    def set_nodes(self, nodes: Sequence[int]) -> None:
        """The NUMA node of each thread, the caller's first. Large matrices are then shared out by
        rows over the different ones, unless there is one, or the library was built without NUMA.

        Raises KtopsError: native-call (not a node for each thread).
        """
        array, found = (ctypes.c_int32 * len(nodes))(*nodes), ctypes.c_uint32()
        with self._lock:
            status = self._library.ktops_pool_set_nodes(
                self._open_handle(), array, len(nodes), ctypes.byref(found)
            )
        self._native.check(status, f"giving {len(nodes)} threads a node")
        self.nodes = tuple(sorted(set(nodes))) if found.value > 1 else ()

    def place(self, buffer: NativeBuffer, matrix: Matrix) -> int:
        """Puts the pages of a matrix in `buffer`, where nothing has been written yet, on the nodes
        of their rows. Returns why the kernel refuses to be told nodes, an errno, or 0.

        Raises KtopsError: native-call (bad shape or type, not in the buffer).
        """
        refusal = ctypes.c_int32()
        with self._lock:
            status = self._library.ktops_place(
                self._open_handle(), buffer.struct, matrix.struct, ctypes.byref(refusal)
            )
        self._native.check(status, _describe("place", matrix, 0))
        return refusal.value

    def hold(self, buffer: NativeBuffer) -> int:
        """Keeps the kernel from moving pages of `buffer` to other nodes of its own accord, once all
        is placed. Returns why it refuses, an errno, or 0."""
        if not self.nodes:
            return 0
        refusal = ctypes.c_int32()
        status = self._library.ktops_hold(buffer.struct, ctypes.byref(refusal))
        self._native.check(status, "holding pages where they are")
        return refusal.value

    def count_placed(
        self, buffer: NativeBuffer, matrices: Iterable[Matrix]
    ) -> tuple[list[int], list[int], int]:
        """For each of `nodes`: bytes of the matrices in `buffer` that belong there, and those of
        them that are there; and why the kernel refuses to tell the latter, an errno, or 0.

        Raises KtopsError: native-call (bad shape or type, not in the buffer).
        """
        if not self.nodes:
            return [], [], 0
        wanted = (ctypes.c_uint64 * len(self.nodes))()
        there = (ctypes.c_uint64 * len(self.nodes))()
        refusal, last_refusal = ctypes.c_int32(), 0
        for matrix in matrices:
            with self._lock:
                status = self._library.ktops_count_placed(
                    self._open_handle(), buffer.struct, matrix.struct, wanted, there,
                    ctypes.byref(refusal),
                )  # fmt: skip
            self._native.check(status, _describe("count_placed", matrix, 0))
            last_refusal = refusal.value or last_refusal
        return list(wanted), list(there), last_refusal

    def matmul(self, weight: Matrix, x_ptr: int, y_ptr: int, num_tokens: int) -> None:
        """y[e] = x[e] @ weight[e].T for each of the weight's matrices.

        x: [num_experts, num_tokens, cols] float32, y: [num_experts, num_tokens, rows] float32.

        Raises KtopsError: native-call (bad shape, type or pointer), out-of-memory.
        """
        args = self._matmul_args
        with self._lock:
            args.weight = weight.struct
            args.x = x_ptr
            args.y = y_ptr
            args.num_tokens = num_tokens
            status = self._matmul(self._open_handle(), self._matmul_pointer)
        if status:
            self._native.check(status, _describe("matmul", weight, num_tokens))

    def moe_forward(
        self,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        x_ptr: int,
        expert_ids_ptr: int,
        expert_weights_ptr: int,
        y_ptr: int,
        num_tokens: int,
        top_k: int,
    ) -> None:
        """y[t] = sum over k of w[t, k] * down_e(silu(gate_e(x[t])) * up_e(x[t])), e = ids[t, k].

        x, y: [num_tokens, hidden] float32; ids: [num_tokens, top_k] int32, negative ones are
        skipped; w: [num_tokens, top_k] float32. With one expert and top_k 1, the pointers to ids
        and weights may both be 0: an ordinary feed-forward network.

        Raises KtopsError: native-call (bad shape, type, pointer or expert id), out-of-memory.
        """
        args = self._moe_args
        with self._lock:
            args.gate = gate.struct
            args.up = up.struct
            args.down = down.struct
            args.x = x_ptr
            args.expert_ids = expert_ids_ptr
            args.expert_weights = expert_weights_ptr
            args.y = y_ptr
            args.num_tokens = num_tokens
            args.top_k = top_k
            status = self._moe_forward(self._open_handle(), self._moe_pointer)
        if status:
            self._native.check(status, _describe("moe_forward", gate, num_tokens))

    def mla_decode(self, args: MlaDecodeArgs) -> None:
        """x += attention(norm(x)) of single new tokens, which enter the cache; see ktops.h.

        Raises KtopsError: native-call (bad shape, type, pointer or slot), out-of-memory.
        """
        with self._lock:
            status = self._mla_decode(self._open_handle(), ctypes.byref(args))
        if status:
            self._native.check(status, f"mla_decode of {args.num_tokens} tokens")

    def ffn_decode(self, args: FfnDecodeArgs) -> None:
        """x += feed_forward(norm(x)) of a few tokens, routing included; see ktops.h.

        Raises KtopsError: native-call (bad shape, type or pointer), out-of-memory.
        """
        with self._lock:
            status = self._ffn_decode(self._open_handle(), ctypes.byref(args))
        if status:
            self._native.check(status, f"ffn_decode of {args.num_tokens} tokens")

    def pack(self, target: Matrix, src_ptr: int) -> None:
        """Copies a matrix in the file's layout at `src_ptr` to `target` in the target's layout.

        Raises KtopsError: native-call (bad shape, type or pointer).
        """
        with self._lock:
            status = self._pack(self._open_handle(), target.struct, src_ptr)
        if status:
            self._native.check(status, _describe("pack", target, 0))

    def read(
        self,
        target: Matrix,
        file: int,
        offset: int,
        first_row: int = 0,
        num_rows: int | None = None,
    ) -> None:
        """Reads rows of a matrix, all of them unless told otherwise, from descriptor `file`, where
        the matrix begins at `offset` in the file's layout, to `target` in the target's layout.

        Rows are counted on through the experts; the first and the end must be multiples of 16
        within their expert, or its end. Raises OSError when the system refuses, EOFError when the
        file is too short, KtopsError native-call (bad shape, type or rows) and out-of-memory.
        """
        if num_rows is None:
            num_rows = target.num_experts * target.rows - first_row
        args = ReadArgs(target.struct, first_row, num_rows, offset, file, 0)
        with self._lock:
            status = self._read(self._open_handle(), ctypes.byref(args))
        if status == Status.FILE:
            if args.file_errno == 0:
                raise EOFError
            raise OSError(args.file_errno, os.strerror(args.file_errno))
        if status:
            self._native.check(status, _describe("read", target, 0))

    @contextmanager
    def held(self) -> Iterator[ctypes.c_void_p]:
        """The pool's handle for one call of the library; all other calls wait, closing too."""
        with self._lock:
            yield self._open_handle()

    def close(self) -> None:
        """Ends the threads. Closing twice does nothing."""
        with self._lock:
            self._handle = None
            self._release()

    def _open_handle(self) -> ctypes.c_void_p:
        if self._handle is None:
            raise KtopsError(
                "pool-closed", text("The threads of this pool have been ended already.")
            )
        return self._handle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _describe(call: str, weight: Matrix, num_tokens: int) -> str:
    return (
        f"{call} of {num_tokens} tokens with weights of type {weight.type}, "
        f"[{weight.num_experts}, {weight.rows}, {weight.cols}]"
    )
