"""Random tensors in the layouts of GGUF, with the spread of a trained model's.

K-quant blocks are random bytes with scales that give that spread, since no quantiser is needed for
a random model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from ktops_engine.gguf import QuantType


def choose_type(types: Mapping[str, QuantType], name: str, columns: int) -> QuantType:
    """The type of a tensor under `types`, with the fallbacks a quantiser makes."""
    if "norm" in name or name.endswith(("ffn_gate_inp.weight", "exp_probs_b.bias")):
        return QuantType.F32
    kind = types.get(name.removesuffix(".weight").split(".")[-1], types[""])
    for candidate in (kind, QuantType.Q8_0, QuantType.F16):
        if columns % candidate.block_size == 0:
            return candidate
    raise AssertionError("F16 has blocks of one")


def random_tensor(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], kind: QuantType
) -> np.ndarray:
    """Random weights in `kind`'s layout, as GGUFWriter wants them (uint8 rows unless F32/F16)."""
    if name.endswith("norm.weight"):
        return (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
    if name.endswith("exp_probs_b.bias"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    columns = shape[-1]
    # Embeddings are large beside what the layers add, as in trained models: a rounding error then
    # stays far smaller than the distance between two experts' scores, and routing is stable.
    spread = 4.0 if name == "token_embd.weight" else columns**-0.5
    if kind in (QuantType.Q4_K, QuantType.Q5_K, QuantType.Q6_K):
        blocks = random_blocks(rng, kind, int(np.prod(shape)) // kind.block_size, spread)
        return blocks.reshape(*shape[:-1], -1)
    weights = (spread * rng.standard_normal(shape)).astype(np.float32)
    rows = quantize(weights.reshape(1, -1), GGMLQuantizationType(int(kind)))
    return rows.reshape(*shape[:-1], -1)


def random_blocks(
    rng: np.random.Generator, kind: QuantType, num_blocks: int, spread: float
) -> np.ndarray:
    """Valid K-quant blocks [num_blocks, block_bytes] whose weights have about the given spread.

    Q4_K and Q5_K: w = d*scale*q - dmin*min with 6-bit scales and mins; taking min = scale and
    dmin = d * mean(q) centres the weights. Q6_K: w = d*scale*(q-32) with int8 scales.
    """
    blocks = rng.integers(0, 256, (num_blocks, kind.block_bytes), dtype=np.uint8)
    jitter = rng.uniform(0.8, 1.25, num_blocks)
    if kind is QuantType.Q6_K:
        scales = rng.integers(16, 64, (num_blocks, 16)) * rng.choice([-1, 1], (num_blocks, 16))
        blocks[:, 192:208] = scales.astype(np.int8).view(np.uint8)
        d = spread * jitter / (18.5 * 42)
        blocks[:, 208:210] = d.astype(np.float16).reshape(-1, 1).view(np.uint8)
        return blocks
    levels = 16 if kind is QuantType.Q4_K else 32
    scales = rng.integers(16, 64, (num_blocks, 8), dtype=np.uint8)
    blocks[:, 4:16] = _pack_six_bit(scales, scales)
    d = spread * jitter / (levels / 12**0.5 * 42)
    blocks[:, 0:2] = d.astype(np.float16).reshape(-1, 1).view(np.uint8)
    blocks[:, 2:4] = (d * (levels - 1) / 2).astype(np.float16).reshape(-1, 1).view(np.uint8)
    return blocks


def _pack_six_bit(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Pack eight 6-bit scales and mins [n, 8] into K-quants' 12 bytes [n, 12].

    Bytes 0-3 and 4-7: scales and mins 0-3, the top two bits of each lent to number i+4;
    bytes 8-11: the low nibbles of scale and min 4-7.
    """
    packed = np.empty((len(scales), 12), dtype=np.uint8)
    packed[:, 0:4] = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    packed[:, 4:8] = mins[:, :4] | (mins[:, 4:] >> 4 << 6)
    packed[:, 8:12] = (scales[:, 4:] & 15) | (mins[:, 4:] & 15) << 4
    return packed
