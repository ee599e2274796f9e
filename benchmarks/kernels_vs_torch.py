"""The native kernels beside torch on the same weights dequantised to float32, in one run.

    python benchmarks/kernels_vs_torch.py [--threads 2] [--rows 16384] [--cols 7168]

For each weight type and number of tokens: milliseconds of both (best of several, taken in turns),
their ratio (above 1: the kernels are faster), the weights read in GB/s and the products in GFLOP/s.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as QuantType

from ktops_engine.native.build import build_native
from ktops_engine.native.load import Matrix, Native, Pool, load_native

TYPES = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q5_0", "BF16", "F16", "F32")
# Where the float16 scales of a block stand, so that random bytes do not become infinite weights.
SCALE_OFFSETS = {
    "Q4_0": (0,),
    "Q5_0": (0,),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_weights(name: str, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Valid blocks of a type, uint8 [rows, row_bytes]."""
    if name in ("F32", "F16", "BF16"):
        values = torch.from_numpy(rng.standard_normal((rows, cols), dtype=np.float32))
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
        return values.to(dtype).view(torch.uint8).numpy()
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[QuantType[name]]
    blocks = np.frombuffer(rng.bytes(rows * cols // block_size * block_bytes), dtype=np.uint8)
    blocks = blocks.reshape(-1, block_bytes).copy()
    for offset in SCALE_OFFSETS[name]:
        scales = rng.uniform(0.001, 0.002, len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def best_times(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the fastest call of each; calls alternate, so both meet the same neighbours."""
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + 1.5
    calls = 0
    while calls < 5 or time.perf_counter() < end:
        for i, function in enumerate((first, second)):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
        calls += 1
    return best[0], best[1]


def measure(native: Native, pool: Pool, name: str, args: argparse.Namespace) -> None:
    """Prints one line for each number of tokens."""
    rng = np.random.default_rng(1)
    packed = random_weights(name, args.rows, args.cols, rng)
    dense = torch.empty(args.rows, args.cols)
    type_number = QuantType[name].value
    native.dequantize(type_number, packed.ctypes.data, dense.data_ptr(), dense.numel())
    weight = Matrix(packed.ctypes.data, type_number, args.rows, args.cols)
    for tokens in args.tokens:
        x = torch.randn(tokens, args.cols)
        y = torch.empty(tokens, args.rows)
        expected = torch.empty(tokens, args.rows)
        ours, theirs = best_times(
            lambda: pool.matmul(weight, x.data_ptr(), y.data_ptr(), tokens),  # noqa: B023
            lambda: torch.mm(x, dense.T, out=expected),  # noqa: B023
        )
        error = ((y - expected).norm() / expected.norm()).item()
        print(
            f"{name:>5} {tokens:6d} {ours * 1e3:10.3f} {theirs * 1e3:10.3f} {theirs / ours:7.2f} "
            f"{packed.nbytes / ours / 1e9:8.1f} {2 * dense.numel() * tokens / ours / 1e9:9.1f} "
            f"{error:9.1e}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--cols", type=int, default=7168)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    native = load_native(build_native())
    cpus = sorted(os.sched_getaffinity(0))[: args.threads]
    torch.set_num_threads(args.threads)
    print(
        f"{platform.node()}: {args.threads} threads, {native.isa}, torch {torch.__version__}, "
        f"weights [{args.rows}, {args.cols}]"
    )
    print(" type tokens   ktops ms   torch ms   ratio     GB/s   GFLOP/s     error")
    with native.create_pool(cpus) as pool, torch.inference_mode():
        for name in args.types:
            measure(native, pool, name, args)


if __name__ == "__main__":
    main()
