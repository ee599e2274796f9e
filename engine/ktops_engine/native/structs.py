"""The structs of csrc/include/ktops.h, field for field."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import ClassVar

ABI_VERSION = 6


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

    _fields_: ClassVar = [
        ("num_requests", ctypes.c_uint64),
        ("num_bytes", ctypes.c_uint64),
        ("compute_ns", ctypes.c_uint64),
    ]


class ContextStruct(ctypes.Structure):
    """`ktops_context`: the cache slots that one token attends to, the last of them its own."""

    _fields_: ClassVar = [
        ("slots", ctypes.c_void_p),
        ("first_slot", ctypes.c_uint64),
        ("num_slots", ctypes.c_uint64),
    ]


class MlaDecodeArgs(ctypes.Structure):
    """`ktops_mla_decode_args`."""

    _fields_: ClassVar = [
        ("query_a", MatrixStruct),
        ("query_b", MatrixStruct),
        ("kv_a", MatrixStruct),
        ("key_up", MatrixStruct),
        ("value_up", MatrixStruct),
        ("output", MatrixStruct),
        ("input_norm", ctypes.c_void_p),
        ("query_norm", ctypes.c_void_p),
        ("latent_norm", ctypes.c_void_p),
        ("norm_eps", ctypes.c_float),
        ("score_scale", ctypes.c_float),
        ("x", ctypes.c_void_p),
        ("rotations", ctypes.c_void_p),
        ("cache", ctypes.c_void_p),
        ("cache_slots", ctypes.c_uint64),
        ("contexts", ctypes.c_void_p),
        ("num_tokens", ctypes.c_uint64),
    ]


class RouterStruct(ctypes.Structure):
    """`ktops_router`."""

    _fields_: ClassVar = [
        ("weight", MatrixStruct),
        ("bias", ctypes.c_void_p),
        ("top_k", ctypes.c_uint32),
        ("num_groups", ctypes.c_uint32),
        ("chosen_groups", ctypes.c_uint32),
        ("group_best", ctypes.c_uint32),
        ("is_sigmoid", ctypes.c_uint32),
        ("is_normalised", ctypes.c_uint32),
        ("scale", ctypes.c_float),
        ("reserved", ctypes.c_uint32),
    ]


class FfnDecodeArgs(ctypes.Structure):
    """`ktops_ffn_decode_args`."""

    _fields_: ClassVar = [
        ("router", RouterStruct),
        ("gate", MatrixStruct),
        ("up", MatrixStruct),
        ("down", MatrixStruct),
        ("shared_gate", MatrixStruct),
        ("shared_up", MatrixStruct),
        ("shared_down", MatrixStruct),
        ("input_norm", ctypes.c_void_p),
        ("norm_eps", ctypes.c_float),
        ("reserved", ctypes.c_uint32),
        ("x", ctypes.c_void_p),
        ("expert_ids", ctypes.c_void_p),
        ("expert_ns", ctypes.c_uint64),
        ("num_tokens", ctypes.c_uint64),
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
    ContextStruct,
    MlaDecodeArgs,
    RouterStruct,
    FfnDecodeArgs,
)
