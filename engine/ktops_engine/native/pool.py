"""Threads that multiply, and what they are asked to do."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ktops_engine.errors import KtopsError
from ktops_engine.native.memory import Matrix, NativeBuffer
from ktops_engine.native.structs import (
    FfnDecodeArgs,
    MatmulArgs,
    MlaDecodeArgs,
    MoeArgs,
    ReadArgs,
    Status,
)
from ktops_engine.text import text

if TYPE_CHECKING:
    from ktops_engine.native.load import Native


class Pool:
    """Threads that multiply. One call runs at a time; callers from other threads wait.

    All pointers are addresses of contiguous memory that stays valid during the call. `native` is
    the library that they run; `nodes` are the NUMA nodes that rows are shared out over, empty when
    they belong to no node.
    """

    def __init__(self, native: Native, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self.native = native
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
        self.native.check(status, f"giving {len(nodes)} threads a node")
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
        self.native.check(status, _describe("place", matrix, 0))
        return refusal.value

    def hold(self, buffer: NativeBuffer) -> int:
        """Keeps the kernel from moving pages of `buffer` to other nodes of its own accord, once all
        is placed. Returns why it refuses, an errno, or 0."""
        if not self.nodes:
            return 0
        refusal = ctypes.c_int32()
        status = self._library.ktops_hold(buffer.struct, ctypes.byref(refusal))
        self.native.check(status, "holding pages where they are")
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
            self.native.check(status, _describe("count_placed", matrix, 0))
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
            self.native.check(status, _describe("matmul", weight, num_tokens))

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
            self.native.check(status, _describe("moe_forward", gate, num_tokens))

    def mla_decode(self, args: MlaDecodeArgs) -> None:
        """x += attention(norm(x)) of single new tokens, which enter the cache; see ktops.h.

        Raises KtopsError: native-call (bad shape, type, pointer or slot), out-of-memory.
        """
        with self._lock:
            status = self._mla_decode(self._open_handle(), ctypes.byref(args))
        if status:
            self.native.check(status, f"mla_decode of {args.num_tokens} tokens")

    def ffn_decode(self, args: FfnDecodeArgs) -> None:
        """x += feed_forward(norm(x)) of a few tokens, routing included; see ktops.h.

        Raises KtopsError: native-call (bad shape, type or pointer), out-of-memory.
        """
        with self._lock:
            status = self._ffn_decode(self._open_handle(), ctypes.byref(args))
        if status:
            self.native.check(status, f"ffn_decode of {args.num_tokens} tokens")

    def pack(self, target: Matrix, src_ptr: int) -> None:
        """Copies a matrix in the file's layout at `src_ptr` to `target` in the target's layout.

        Raises KtopsError: native-call (bad shape, type or pointer).
        """
        with self._lock:
            status = self._pack(self._open_handle(), target.struct, src_ptr)
        if status:
            self.native.check(status, _describe("pack", target, 0))

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
            self.native.check(status, _describe("read", target, 0))

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
