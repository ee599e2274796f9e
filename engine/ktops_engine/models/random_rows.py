"""Random weights in valid blocks, as fast as memory can be written: one stretch of rows of each
kind is made, and laid down again and again.

What a tensor gets depends on its name, type and shape alone, not on the order in which tensors are
filled, nor on where: a model is the same one on the CPU alone and with a GPU.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ktops_engine.gguf import QuantType, TensorInfo
from ktops_engine.models.pieces import Piece
from ktops_engine.native.load import Pool

Bytes = npt.NDArray[np.uint8]

SEED = 20250127
DISTINCT_BYTES = 4 << 20  # of random blocks of a kind, which then come again
# Pieces begin at different blocks of the stretch, so that tensors and their experts differ.
NUM_STARTS = 1021


class RandomRows:
    """Makes stretches of blocks when they are first needed, and keeps them."""

    def __init__(self) -> None:
        self._stretches: dict[tuple[QuantType, float, float], Bytes] = {}

    def fill(self, pool: Pool, piece: Piece) -> None:
        """Give `piece` random weights, packed by the threads of `pool`: norms 1, the router's
        corrections 0, all else of a spread that leaves activations of one size from layer to
        layer."""
        mean, spread = _distribution(piece.tensor)
        key = (piece.tensor.type, mean, spread)
        block_bytes = piece.tensor.type.block_bytes
        needed = piece.num_bytes + NUM_STARTS * block_bytes
        stretch = self._stretches.get(key)
        if stretch is None or stretch.nbytes < needed:
            num_blocks = min(-(-needed // block_bytes), DISTINCT_BYTES // block_bytes)
            blocks = blocks_of_spread(piece.tensor.type, num_blocks, mean, spread)
            stretch = self._stretches[key] = np.resize(blocks, needed)
        pool.pack(piece.target, stretch.ctypes.data + _first_block(piece) * block_bytes)


def _first_block(piece: Piece) -> int:
    """Where in the stretch the weights of a piece begin."""
    place = zlib.crc32(f"{piece.tensor.name} {piece.first_byte}".encode())
    return place % NUM_STARTS


def blocks_of_spread(type: QuantType, num_blocks: int, mean: float, spread: float) -> Bytes:
    """Blocks of `type` as bytes, [num_blocks * block_bytes]: random weights of about that spread,
    around `mean` where the type is a plain number, around 0 where it is not.

    Quants are random bits, scales fit them: of b bits, evenly drawn, they have a standard deviation
    of 2**b / sqrt(12). The blocks are those of ggml-common.h. All scales of a K block are the same,
    so that float16 has the scale of a small spread; where kernels are held against float64, they
    are drawn as well (`bench.blocks`).
    """
    random = np.random.default_rng(SEED)
    if type.block_size == 1:
        return _plain(random, type, num_blocks, mean, spread)
    words = random.integers(0, 1 << 64, -(-num_blocks * type.block_bytes // 8), dtype=np.uint64)
    bits = words.view(np.uint8)[: num_blocks * type.block_bytes].reshape(num_blocks, -1)
    scale = spread * math.sqrt(12) / (1 << _QUANT_BITS[type])
    if type in (QuantType.Q4_K, QuantType.Q5_K):
        _set_scales_and_mins(bits, scale, 1 << _QUANT_BITS[type])
    elif type is QuantType.Q6_K:
        bits[:, 192:208] = _K_SCALE  # int8, of 16 weights each
        bits[:, 208:210] = _half(scale / _K_SCALE)
    else:
        bits[:, 0:2] = _half(scale)
    return bits.reshape(-1)


_QUANT_BITS: Mapping[QuantType, int] = {
    QuantType.Q4_0: 4,
    QuantType.Q5_0: 5,
    QuantType.Q8_0: 8,
    QuantType.Q4_K: 4,
    QuantType.Q5_K: 5,
    QuantType.Q6_K: 6,
}
_K_SCALE = 32  # of the 6 or 7 bits that a scale within a block has


def _set_scales_and_mins(blocks: Bytes, scale: float, levels: int) -> None:
    """Q4_K and Q5_K: w = d * scale * q - dmin * min, with the min that centres the weights."""
    blocks[:, 0:2] = _half(scale / _K_SCALE)
    blocks[:, 2:4] = _half(scale / _K_SCALE * (levels - 1) / 2)
    # Eight scales and eight mins of 6 bits, all 32: the first four of each in bytes 0 to 7, the low
    # bits of the other eight in bytes 8 to 11, their two high bits above the first eight.
    blocks[:, 4:12] = _K_SCALE | _K_SCALE >> 4 << 6
    blocks[:, 12:16] = _K_SCALE & 15 | (_K_SCALE & 15) << 4


def _half(value: float) -> Bytes:
    return np.array([value], np.float16).view(np.uint8)


def _plain(
    random: np.random.Generator, type: QuantType, count: int, mean: float, spread: float
) -> Bytes:
    values = random.standard_normal(count, np.float32)
    values *= np.float32(spread)
    values += np.float32(mean)
    if type is QuantType.F16:
        return values.astype(np.float16).view(np.uint8)
    if type is QuantType.BF16:
        return np.ascontiguousarray(values.view(np.uint16)[1::2]).view(np.uint8)
    return values.view(np.uint8)


def _distribution(tensor: TensorInfo) -> tuple[float, float]:
    """Mean and spread of a tensor's weights."""
    if len(tensor.shape) == 1:
        return (0.0, 0.0) if tensor.name.endswith(".bias") else (1.0, 0.0)
    return 0.0, tensor.shape[-1] ** -0.5
