"""A layer of experts computed by kt-kernel (KTransformers), called directly in its extension: its
method for GGUF files (LLAMAFILE), as its own wrapper calls it."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ktops_engine.bench.shapes import LayerShape

if TYPE_CHECKING:
    from ktops_engine.bench.layer import ExpertBlocks

# Instruction sets of kt-kernel's extensions, best first, with a flag of /proc/cpuinfo each needs.
VARIANTS = (
    ("amx", "amx_tile"),
    ("avx512_bf16", "avx512_bf16"),
    ("avx512_vnni", "avx512_vnni"),
    ("avx512_base", "avx512bw"),
    ("avx2", "avx2"),
)
BLOCK_ROWS, GROUP_MIN_TOKENS = 32, 10  # what kt-kernel's own wrapper passes


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> uint16 bits of bfloat16, rounded to nearest even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


class KtKernelLayer:
    """All experts hold the same weights, `blocks`, in memory of their own."""

    def __init__(
        self, folder: Path, threads: int, shape: LayerShape, blocks: ExpertBlocks, max_tokens: int
    ) -> None:
        """`folder` holds the wheel unpacked. SystemExit when it has nothing for this CPU."""
        self.variant, module = _load_extension(folder)
        self._top_k = shape.num_experts_per_tok
        pool_config = module.WorkerPoolConfig()
        pool_config.subpool_count = 1
        pool_config.subpool_numa_map = [0]
        pool_config.subpool_thread_count = [threads]
        self._engine = module.CPUInfer(pool_config)
        on_gpu = np.zeros(shape.num_experts, dtype=np.bool_)
        config = module.moe.MOEConfig(
            shape.num_experts,
            shape.num_experts_per_tok,
            shape.hidden_size,
            shape.moe_intermediate_size,
            on_gpu.ctypes.data,
        )
        config.layer_idx = 0
        config.pool = self._engine.backend_
        config.m_block = BLOCK_ROWS
        config.group_min_len = GROUP_MIN_TOKENS
        config.max_len = config.group_max_len = max(max_tokens, GROUP_MIN_TOKENS)
        weights = [np.tile(part.ravel(), shape.num_experts) for part in blocks]
        config.gate_proj, config.up_proj, config.down_proj = (part.ctypes.data for part in weights)
        config.gate_type = config.up_type = int(shape.gate_type)
        config.down_type = int(shape.down_type)
        config.hidden_type = module.kvcache.ggml_type.BF16
        self._moe = module.moe.MOE(config)
        order = np.arange(shape.num_experts, dtype=np.int64)
        self._engine.submit(self._moe.load_weights_task(order.ctypes.data))
        self._engine.sync()
        self._used_by_address = on_gpu, config, order, weights

    def run(self, x: np.ndarray, ids: np.ndarray, weights: np.ndarray, y: np.ndarray) -> float:
        """Seconds of a call. x, y: bits of bfloat16 [tokens, hidden]; ids: int32 and weights:
        float32 [tokens, top_k]."""
        count = np.array([len(x)], dtype=np.int32)
        wide_ids = ids.astype(np.int64)
        start = time.perf_counter()
        self._engine.submit(
            self._moe.forward_task(
                count.ctypes.data,
                self._top_k,
                wide_ids.ctypes.data,
                weights.ctypes.data,
                x.ctypes.data,
                y.ctypes.data,
                False,
            )
        )
        self._engine.sync()
        return time.perf_counter() - start


def _load_extension(folder: Path) -> tuple[str, ModuleType]:
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].split("\n")[0].split())
    for variant, flag in VARIANTS:
        files = sorted(folder.glob(f"kt_kernel/_kt_kernel_ext_{variant}.*.so"))
        if flag in flags and files:
            spec = importlib.util.spec_from_file_location("kt_kernel_ext", files[0])
            if spec is None or spec.loader is None:
                continue
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return variant, module
    raise SystemExit(f"{folder} holds no extension of kt-kernel that this CPU can run")
