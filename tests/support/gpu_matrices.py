"""Random quantised matrices as GPU kernels read them, with the weights they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ktops_engine.bench.blocks import random_blocks
from ktops_engine.gguf import QuantType, dequantize
from ktops_engine.kernels.matrix import GpuMatrix

Bytes = npt.NDArray[np.uint8]

QUANTISED = (
    QuantType.Q4_K,
    QuantType.Q5_K,
    QuantType.Q6_K,
    QuantType.Q8_0,
    QuantType.Q5_0,
    QuantType.Q4_0,
)
PANEL_ROWS = 16
# Of a block: byte where the words begin, number of words, byte of the half (csrc/README.md).
_CUTS = {
    QuantType.Q4_K: (0, 36, None),
    QuantType.Q5_K: (0, 44, None),
    QuantType.Q6_K: (0, 52, 208),
    QuantType.Q8_0: (2, 8, 0),
    QuantType.Q4_0: (2, 4, 0),
    QuantType.Q5_0: (2, 5, 0),
}


def pack_panels(type: QuantType, blocks: Bytes) -> Bytes:
    """Blocks of the file [rows, blocks of a row, bytes of a block] in the layout PANEL16."""
    words_at, num_words, half_at = _CUTS[type]
    rows, num_blocks, _ = blocks.shape
    panels = blocks.reshape(rows // PANEL_ROWS, PANEL_ROWS, num_blocks, -1)
    packed = []
    for first in range(0, num_blocks, 2):
        chunk = panels[:, :, first : first + 2]
        words = chunk[..., words_at : words_at + 4 * num_words]
        words = words.reshape(*chunk.shape[:3], num_words, 4)
        packed.append(words.transpose(0, 2, 3, 1, 4).reshape(len(panels), -1))
        if half_at is not None:
            halves = chunk[..., half_at : half_at + 2]
            packed.append(halves.transpose(0, 2, 1, 3).reshape(len(panels), -1))
    return np.concatenate(packed, axis=1).reshape(-1)


def random_matrix(
    type: QuantType, rows: int, cols: int, num_experts: int, device: str, seed: int
) -> tuple[GpuMatrix, torch.Tensor]:
    """A random matrix on `device` and its weights, float32 [num_experts, rows, cols] there."""
    rng = np.random.default_rng(seed)
    shape = (num_experts, rows, cols)
    if type is QuantType.BF16:
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(cols**-0.5)
        plain = torch.from_numpy(values).to(device, torch.bfloat16)
        return GpuMatrix(plain, type, rows, cols, num_experts), plain.float()
    blocks = random_blocks(type, num_experts * rows, cols, rng)
    weights = torch.from_numpy(dequantize(type, blocks.reshape(-1), shape)).to(device)
    by_block = blocks.reshape(num_experts * rows, -1, type.block_bytes)
    data = torch.from_numpy(pack_panels(type, by_block)).to(device)
    return GpuMatrix(data, type, rows, cols, num_experts), weights
