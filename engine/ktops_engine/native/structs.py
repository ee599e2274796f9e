"""The structs of csrc/include/ktops.h, field for field."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import ClassVar

ABI_VERSION = 2


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
        ("num_nodes", ctypes.c_uint32),
        ("huge_page_errno", ctypes.c_int32),
        ("numa_errno", ctypes.c_int32),
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


# In the order of ktops_struct_sizes.
STRUCTS: tuple[type[ctypes.Structure], ...] = (
    MatrixStruct,
    MatmulArgs,
    MoeArgs,
    BufferStruct,
    ReadArgs,
)
