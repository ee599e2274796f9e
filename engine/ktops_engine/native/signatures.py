"""The functions of csrc/include/ktops.h: their arguments and results."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import MappingProxyType

from ktops_engine.native.structs import (
    BufferStruct,
    FfnDecodeArgs,
    HandoffArgs,
    HandoffLayout,
    HandoffTraffic,
    MatmulArgs,
    MatrixStruct,
    MlaDecodeArgs,
    MoeArgs,
    ReadArgs,
)

# The version comes first: a library of another one may lack the others.
SIGNATURES: Mapping[str, tuple[list[object], object]] = MappingProxyType(
    {
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
)
