"""How much of a resource a program gets: every rate that `predict` uses, with where it is from.

Each is a range (low, high): low is what good engines reach today, high what a careful one could.
docs/plan.md shows the formulas around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Range = tuple[float, float]

# Of a measured read bandwidth, what expert kernels reach: one that only multiplies Q4_K got 93 to
# 96 % on an Emerald Rapids host, where llama.cpp and kt-kernel got 60 to 74 %. Low: this version's
# experts for one token, 0.80 to 0.89 in four runs on 16 such cores.
MEASURED_RAM_SHARE: Range = (0.80, 0.96)
# Of a datasheet's channels x transfers x 8 bytes. High: pinned reads reach about 85 %, and of that
# the share above; low: what ik_llama.cpp's published 17.9 tok/s on one EPYC 9355 come to.
DATASHEET_RAM_SHARE: Range = (0.40, 0.82)
# GPU matrix-vector products, of the datasheet's memory bandwidth.
VRAM_SHARE: Range = (0.70, 0.90)
# The same for the few experts of a token. Low: what 263 to 280 tok/s of 11 layers of R1 on an H100,
# less all else, leave for them (0.85 to 0.95 TB/s).
VRAM_EXPERTS_SHARE: Range = (0.25, 0.80)
# Between GPU and CPU, a layer: flags in mapped memory, one CUDA graph, 28 KB each way, on an H100.
# Low: this version beside a layer of R1 with 16 threads.
HANDOFF_SECONDS: Range = (22e-6, 18.5e-6)
# Between two replays of a step's graph, on the host: tensors filled, tokens drawn. Low: this
# version with one request.
HOST_STEP_SECONDS: Range = (0.4e-3, 0.1e-3)
# Between GPUs, a layer whose experts lie on another one: a hidden state each way. Measured on two
# H100: 37 us through RAM, 14 over NVLink.
GPU_HOP_SECONDS: Range = (40e-6, 14e-6)
# Of a PCIe link's usual host-to-device rate (below): low while the CPUs read memory as well, as
# measured on an H100 (54.8 GB/s alone, 42 beside 48 reading threads).
PCIE_SHARE: Range = (0.77, 1.0)
# Of the datasheet's dense bf16 FLOP/s: matrix products of a chunk of a prompt, weights unpacked.
# Low: what 9,830 to 10,260 tok/s of 11 layers of R1 on an H100, less the experts, leave for them.
GPU_FLOPS_SHARE: Range = (0.12, 0.60)
# The same for routed experts, many small products. Low: the grouped kernels of this version on an
# H100 from 64 tokens an expert on (148 to 176 TFLOP/s).
GPU_EXPERT_FLOPS_SHARE: Range = (0.15, 0.45)
# The same for attention's scores and values in long prompts. This version on an H100: 427 to 503
# TFLOP/s, 0.43 to 0.51; high: what FlashAttention-3 publishes there.
GPU_SCORES_SHARE: Range = (0.25, 0.75)
# Bytes read and written for a byte of 4-bit weights that is unpacked to bf16 for a chunk and read.
UNPACKING_READS = 8
# Of the experts that a chunk would want if all were alike, those that it does. High: fitted to 11
# layers of random weights, which want some of them seldom (4,434 to 4,875 tok/s for 4,096).
WANTED_EXPERTS_SHARE: Range = (1.0, 0.90)
# Seconds between two kernels of a layer that depend on each other, times kernels in a layer.
GPU_LAYER_SECONDS: Range = (20e-6, 5e-6)
# A layer on the CPU besides reading its weights: calls, small operations, waking threads. Low: this
# version with the embedded model (248 tok/s in six layers, of which reading is a tenth).
CPU_LAYER_SECONDS: Range = (0.6e-3, 0.05e-3)

# Host to device with pinned memory, GB/s a lane and generation: 12.8, 25.6 and 54.8 for 16 lanes.
PCIE_BYTES_PER_LANE: Mapping[int, float] = MappingProxyType(
    {3: 0.80e9, 4: 1.60e9, 5: 3.42e9, 6: 6.8e9}
)

# Quantised weights that one core's kernels get through for one token, bytes/s, by instruction set.
# Measured on one Zen 4 core with this version's kernels (Q4_K): 0.4, 13.5, 18.8 and 20.6 GB/s; the
# high end is what such a core reads from memory at all. AMX does not help one token.
CORE_READ_BYTES: Mapping[str, Range] = MappingProxyType(
    {
        "scalar": (0.2e9, 0.8e9),
        "avx2": (5e9, 18e9),
        "avx512": (7e9, 25e9),
        "avx512vnni": (8e9, 28e9),
        "avx512bf16": (8e9, 28e9),
        "amx": (8e9, 28e9),
    }
)
# Products of a prompt of some hundred tokens with quantised weights, FLOP/s a core. Measured as
# above with 256 tokens (scalar: 32): 0.003, 0.038, 0.044 and 0.118 TFLOP/s, and 0.16 with packed
# weights of V2-Lite's shape and 512. BF16 dot products: experts of R1 with 24 and
# with 128 tokens each, 0.16 and 0.19. AMX: 16 Emerald Rapids cores, a layer of R1, 512 tokens in a
# busy hour (low) to 4,096 in a quiet one (high).
CORE_FLOPS: Mapping[str, Range] = MappingProxyType(
    {
        "scalar": (0.002e12, 0.004e12),
        "avx2": (0.025e12, 0.06e12),
        "avx512": (0.03e12, 0.08e12),
        "avx512vnni": (0.07e12, 0.17e12),
        "avx512bf16": (0.07e12, 0.20e12),
        "amx": (0.11e12, 0.36e12),
    }
)
UNKNOWN_ISA = "avx2"
