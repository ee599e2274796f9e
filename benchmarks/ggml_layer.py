"""A layer of experts computed by ggml's shared libraries, as llama.cpp's graph of it does.

`folder` holds libggml-base.so and libggml-cpu.so, as the wheels of llama-cpp-python do in
llama_cpp/lib. Weights are repacked as llama.cpp does it, where ggml does that for their type.
"""

from __future__ import annotations

import ctypes
import time
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np

F32, I32 = 0, 26  # ggml_type
GRAPH_BYTES = 4 << 20
REPACKED = frozenset({2, 12})  # Q4_0 and Q4_K


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class ThreadpoolParams(ctypes.Structure):
    _fields_ = (
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("priority", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


class Ggml:
    """The functions of both libraries; all of them take and return pointers unless told below."""

    def __init__(self, folder: Path) -> None:
        base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self._libraries = (base, ctypes.CDLL(str(folder / "libggml-cpu.so")))

    def call(self, name: str, *arguments: object, result: object = c_void_p) -> object:
        library = next(lib for lib in self._libraries if hasattr(lib, name))
        function = getattr(library, name)
        function.restype = result
        return function(*arguments)

    def new_context(self) -> c_void_p:
        return c_void_p(self.call("ggml_init", InitParams(GRAPH_BYTES, None, True)))

    def tensor(self, context: c_void_p, type: int, *shape: int) -> c_void_p:
        sizes = (c_int64(size) for size in (*shape, 1, 1)[:3])
        return c_void_p(self.call("ggml_new_tensor_3d", context, c_int(type), *sizes))

    def apply(self, name: str, context: c_void_p, *operands: c_void_p) -> c_void_p:
        return c_void_p(self.call(name, context, *operands))

    def data(self, tensor: c_void_p) -> int:
        return int(self.call("ggml_get_data", tensor))

    def repacking_buffer_type(self) -> c_void_p | None:
        """The buffer type that interleaves rows; None where this build has none."""
        registry = c_void_p(self.call("ggml_backend_cpu_reg"))
        device = c_void_p(self.call("ggml_backend_reg_dev_get", registry, c_size_t(0)))
        name = b"ggml_backend_dev_get_extra_bufts"
        address = self.call("ggml_backend_reg_get_proc_address", registry, c_char_p(name))
        if not address:
            return None
        types = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)(device)
        for found in iter(types):
            if not found:
                return None
            label = self.call("ggml_backend_buft_name", c_void_p(found), result=c_char_p)
            if label == b"CPU_REPACK":
                return c_void_p(found)
        return None


class GgmlLayer:
    """gate, up: [intermediate, bytes], down: [hidden, bytes] of one expert; all have the same."""

    def __init__(
        self,
        folder: Path,
        threads: int,
        types: tuple[int, int, int],
        blocks: tuple[np.ndarray, ...],
        num_experts: int,
        sizes: tuple[int, int],
    ) -> None:
        self._ggml = ggml = Ggml(folder)
        self._hidden, self._intermediate = sizes
        self._backend = c_void_p(ggml.call("ggml_backend_cpu_init"))
        ggml.call("ggml_backend_cpu_set_n_threads", self._backend, c_int(threads), result=None)
        params = ggml.call(
            "ggml_threadpool_params_default", c_int(threads), result=ThreadpoolParams
        )
        pool = c_void_p(ggml.call("ggml_threadpool_new", ctypes.byref(params)))
        ggml.call("ggml_backend_cpu_set_threadpool", self._backend, pool, result=None)
        repacking = ggml.repacking_buffer_type()
        columns = (self._hidden, self._hidden, self._intermediate)
        self._weights = [
            self._load(type, cols, np.tile(part.ravel(), num_experts), len(part), repacking)
            for type, cols, part in zip(types, columns, blocks, strict=True)
        ]
        self._graphs: dict[tuple[int, int], tuple[c_void_p, list[c_void_p]]] = {}

    def _load(
        self, type: int, cols: int, data: np.ndarray, rows: int, repacking: c_void_p | None
    ) -> c_void_p:
        ggml, context = self._ggml, self._ggml.new_context()
        row_bytes = int(ggml.call("ggml_row_size", c_int(type), c_int64(cols), result=c_size_t))
        tensor = ggml.tensor(context, type, cols, rows, data.nbytes // row_bytes // rows)
        if repacking is not None and type in REPACKED:
            ggml.call("ggml_backend_alloc_ctx_tensors_from_buft", context, repacking)
        else:
            ggml.call("ggml_backend_alloc_ctx_tensors", context, self._backend)
        pointer = c_void_p(data.ctypes.data)
        sizes = c_size_t(0), c_size_t(data.nbytes)
        ggml.call("ggml_backend_tensor_set", tensor, pointer, *sizes, result=None)
        return tensor

    def _graph(self, num_tokens: int, top_k: int) -> tuple[c_void_p, list[c_void_p]]:
        """The graph, and its tensors x, ids, weights and y."""
        ggml, context = self._ggml, self._ggml.new_context()
        gate, up, down = self._weights
        x = ggml.tensor(context, F32, self._hidden, 1, num_tokens)
        ids = ggml.tensor(context, I32, top_k, num_tokens)
        weights = ggml.tensor(context, F32, 1, top_k, num_tokens)
        gated = ggml.apply("ggml_mul_mat_id", context, gate, x, ids)
        upped = ggml.apply("ggml_mul_mat_id", context, up, x, ids)
        hidden = ggml.apply("ggml_swiglu_split", context, gated, upped)
        parts = ggml.apply("ggml_mul_mat_id", context, down, hidden, ids)
        parts = ggml.apply("ggml_mul", context, parts, weights)
        row_bytes = self._hidden * 4
        views = [
            c_void_p(
                ggml.call(
                    "ggml_view_2d", context, parts, c_int64(self._hidden), c_int64(num_tokens),
                    c_size_t(top_k * row_bytes), c_size_t(k * row_bytes),
                )
            )
            for k in range(top_k)
        ]  # fmt: skip
        y = views[0]
        for view in views[1:]:
            y = ggml.apply("ggml_add", context, y, view)
        graph = c_void_p(ggml.call("ggml_new_graph", context))
        ggml.call("ggml_build_forward_expand", graph, y, result=None)
        ggml.call("ggml_backend_alloc_ctx_tensors", context, self._backend)
        return graph, [x, ids, weights, y]

    def run(self, x: np.ndarray, ids: np.ndarray, weights: np.ndarray, y: np.ndarray) -> float:
        """x, y: [tokens, hidden] float32, ids: [tokens, top_k] int32, weights the same in float32
        -> seconds of the computation."""
        if ids.shape not in self._graphs:
            self._graphs[ids.shape] = self._graph(*ids.shape)
        graph, tensors = self._graphs[ids.shape]
        for tensor, values in zip(tensors, (x, ids, weights), strict=False):
            ctypes.memmove(self._ggml.data(tensor), values.ctypes.data, values.nbytes)
        start = time.perf_counter()
        self._ggml.call("ggml_backend_graph_compute", self._backend, graph, result=c_int)
        seconds = time.perf_counter() - start
        ctypes.memmove(y.ctypes.data, self._ggml.data(tensors[-1]), y.nbytes)
        return seconds
