"""The structs of csrc/include/ktops.h, field for field."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import ClassVar

ABI_VERSION = 4


class Status(IntEnum):
    """`ktops_status`."""

    OK = 0
    NULL_POINTER = 1
    UNKNOWN_TYPE = 2
    UNKNOWN_LAYOUT = 3
    BAD_SHAPE = 4
    EXPERT_OUT_OF_RANGE = 5
    OUT_OF_MEMORY = 6
    THREADS = 7
    UNKNOWN_ISA = 8
    FILE = 9
    TIMEOUT = 10
    CANCELLED = 11
    GIVEN_UP = 12
    BAD_REQUEST = 13


class Layout(IntEnum):
    """`ktops_layout`: the file's own, or 16 rows interleaved."""

    GGUF = 0
    PANEL16 = 1


class MatrixStruct(ctypes.Structure):
    """`ktops_matrix`: weights [num_experts, rows, cols] in GGUF blocks, in a `Layout`."""

    _fields_: ClassVar = [
        ("data", ctypes.c_void_p),
        ("rows", ctypes.c_uint64),
        ("cols", ctypes.c_uint64),
        ("type", ctypes.c_uint32),
        ("layout", ctypes.c_uint32),
        ("num_experts", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class MatmulArgs(ctypes.Structure):
    """`ktops_matmul_args`."""

    _fields_: ClassVar = [
        ("weight", MatrixStruct),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("num_tokens", ctypes.c_uint64),
    ]


class MoeArgs(ctypes.Structure):
    """`ktops_moe_args`."""

    _fields_: ClassVar = [
        ("gate", MatrixStruct),
        ("up", MatrixStruct),
        ("down", MatrixStruct),
        ("x", ctypes.c_void_p),
        ("expert_ids", ctypes.c_void_p),
        ("expert_weights", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("num_tokens", ctypes.c_uint64),
        ("top_k", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class BufferStruct(ctypes.Structure):
    """`ktops_buffer`."""

    _fields_: ClassVar = [
        ("address", ctypes.c_void_p),
        ("num_bytes", ctypes.c_uint64),
        ("huge_page_errno", ctypes.c_int32),
        ("reserved", ctypes.c_uint32),
    ]


class ReadArgs(ctypes.Structure):
    """`ktops_read_args`."""

    _fields_: ClassVar = [
        ("target", MatrixStruct),
        ("first_row", ctypes.c_uint64),
        ("num_rows", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("file", ctypes.c_int32),
        ("file_errno", ctypes.c_int32),
    ]


class HandoffLayer(ctypes.Structure):
    """`ktops_handoff_layer`."""

    _fields_: ClassVar = [
        ("gate", MatrixStruct),
        ("up", MatrixStruct),
        ("down", MatrixStruct),
    ]


class HandoffLayout(ctypes.Structure):
    """`ktops_handoff_layout`: offsets in bytes into the block that GPU and CPU share."""

    asked: int
    layer: int
    given_up: int
    activations: int
    expert_ids: int
    expert_weights: int
    done: int
    result: int
    num_bytes: int

    _fields_: ClassVar = [
        ("asked", ctypes.c_uint64),
        ("layer", ctypes.c_uint64),
        ("given_up", ctypes.c_uint64),
        ("activations", ctypes.c_uint64),
        ("expert_ids", ctypes.c_uint64),
        ("expert_weights", ctypes.c_uint64),
        ("done", ctypes.c_uint64),
        ("result", ctypes.c_uint64),
        ("num_bytes", ctypes.c_uint64),
    ]


class HandoffArgs(ctypes.Structure):
    """`ktops_handoff_args`."""

    _fields_: ClassVar = [
        ("layers", ctypes.POINTER(HandoffLayer)),
        ("block", ctypes.c_void_p),
        ("num_block_bytes", ctypes.c_uint64),
        ("num_layers", ctypes.c_uint32),
        ("hidden", ctypes.c_uint32),
        ("top_k", ctypes.c_uint32),
        ("max_tokens", ctypes.c_uint32),
    ]


class HandoffTraffic(ctypes.Structure):
    """`ktops_handoff_traffic`."""

    num_requests: int
    num_bytes: int
    compute_ns: int
    wait_ns: int

    _fields_: ClassVar = [
        ("num_requests", ctypes.c_uint64),
        ("num_bytes", ctypes.c_uint64),
        ("compute_ns", ctypes.c_uint64),
        ("wait_ns", ctypes.c_uint64),
    ]


# In the order of ktops_struct_sizes.
STRUCTS: tuple[type[ctypes.Structure], ...] = (
    MatrixStruct,
    MatmulArgs,
    MoeArgs,
    BufferStruct,
    ReadArgs,
    HandoffLayer,
    HandoffLayout,
    HandoffArgs,
    HandoffTraffic,
)
